"""`maskrcnn benchmark data`: what the way of a record costs, from COCO's files to the training loop."""

import statistics
import tempfile
from pathlib import Path

from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.delivery import delivery_config, measure_delivery
from pipeline.benchmarks.loader_peers import compare_loaders
from pipeline.benchmarks.memory import measure_epochs
from pipeline.benchmarks.reading import measure_index, measure_reading, measure_sharding, measure_windows
from pipeline.config import ClusterConfig
from pipeline.ray_cluster import start_ray

BATCH_IMAGES, SHORTER_PX, STEPS = 8, 800, 100


def benchmark_data(annotations: Path, images: Path, *, threads: int, rounds: int, epochs: int) -> None:
    """Run all parts and print a table of each."""
    with tempfile.TemporaryDirectory(prefix="maskrcnn-benchmark-") as place:
        shards = Path(place) / "shards"
        _sharding(annotations, images, shards)
        _loaders(annotations, images, rounds)
        _reading(shards, Path(place))
        start_ray(ClusterConfig())
        _delivery(shards, threads, rounds)
        if epochs:
            _memory(shards, threads, epochs)


def _sharding(annotations: Path, images: Path, shards: Path) -> None:
    found = measure_sharding(annotations, images, shards)
    out.print(f"sharding: {found.images} images, {found.images_per_cpu_second:.0f} a CPU second", highlight=False)


def _loaders(annotations: Path, images: Path, rounds: int) -> None:
    with progress("decode, augment, collate", rounds) as meter:
        found = compare_loaders(annotations, images, rounds=rounds, on_round=meter.reach)
    ours = found.figures[0].cpu_ms
    table = Table("loader, one thread", "CPU ms an image", "x ours", title=f"{found.images} images to {SHORTER_PX} px")
    for figure in found.figures:
        table.add_row(figure.loader, f"{figure.cpu_ms:.2f}", f"{figure.cpu_ms / ours:.1f}")
    out.print(table)
    same = "equal to Pillow's" if found.decoder_equal else "NOT equal to Pillow's"
    out.print(
        f"decoded pixels {same}; resized ones at most {found.resize_levels} of 255 from Pillow's", highlight=False
    )


def _reading(shards: Path, place: Path) -> None:
    # So few that each is of a row group of its own, as those of a task are in a large data set.
    read = measure_reading(shards, window_groups=512, task_rows=4)
    out.print(
        f"an epoch in tasks of 4 random rows: {read.bytes_a_used_byte:.2f} bytes read a byte of picture, "
        f"metadata {100 * read.metadata_share:.1f} % once an epoch, {read.requests_a_row:.1f} requests a row",
        highlight=False,
    )
    index = measure_index(place)
    out.print(
        f"index of {index.rows} images: loads in {index.load_seconds:.2f} s, {index.megabytes:.0f} MB, "
        f"first batch planned after {index.plan_seconds:.2f} s",
        highlight=False,
    )
    table = Table("row groups shuffled together", "batch mates again, x chance", "row groups a task", title="windows")
    for window in measure_windows(index.rows):
        table.add_row(str(window.window_groups), f"{window.repeated_mates:.2f}", f"{window.groups_a_task:.0f}")
    out.print(table)


def _delivery(shards: Path, threads: int, rounds: int) -> None:
    config = delivery_config(str(shards), BATCH_IMAGES, SHORTER_PX)
    with progress("delivery", rounds) as meter:
        found = measure_delivery(config, STEPS, threads, rounds, meter.reach)
    bare = found[0].images_per_second
    title = (
        f"{threads} threads, tasks or processes; {STEPS} batches of {BATCH_IMAGES} at {SHORTER_PX} px, {rounds} rounds"
    )
    table = Table("way to the training loop", "images/s", "of the bare loop", title=title)
    for one in found:
        share = statistics.median(a / b for a, b in zip(one.images_per_second, bare, strict=True))
        table.add_row(one.way, f"{statistics.median(one.images_per_second):.0f}", f"{100 * share:.0f} %")
    out.print(table)


def _memory(shards: Path, threads: int, epochs: int) -> None:
    config = delivery_config(str(shards), BATCH_IMAGES, SHORTER_PX)
    with progress("epochs", epochs) as meter:
        found = measure_epochs(config, epochs, threads, meter.reach)
    out.print("MB after each epoch: " + " ".join(f"{megabytes:.0f}" for megabytes in found), highlight=False)
