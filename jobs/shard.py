"""`maskrcnn shard coco|shapes|migrate`: a data set becomes shards; what was left out is counted and named.

A format is a function that makes a `Dataset` and hands it to `_shard`.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from jobs.console import out, progress
from pipeline.data.coco import read_coco
from pipeline.data.manifest import MANIFEST, QUARANTINE, Manifest, load_manifest
from pipeline.data.quarantine import Quarantine
from pipeline.data.shapes import generate_shapes
from pipeline.data.sharding import ROWS_PER_GROUP, ROWS_PER_SHARD, shard_dataset
from pipeline.data.shards_v1 import read_shards_v1
from pipeline.data.source import Dataset
from pipeline.data.storage import Storage

TRAIN_IMAGES, VAL_IMAGES = 3000, 300  # of the generated data set


def shard_coco(
    annotations: Path,
    images: str,
    out_dir: str,
    *,
    strict: bool,
    overwrite: bool,
    rows_per_shard: int | None,
    workers: int | None,
) -> None:
    """Shard COCO instances and show what is in the shards."""
    dataset = read_coco(annotations, images, Quarantine(strict))
    target = Storage.at(out_dir)
    _show({target: _shard(dataset, target, annotations.stem, overwrite, workers, rows_per_shard or ROWS_PER_SHARD)})


def migrate(old: str, out_dir: str, *, overwrite: bool, workers: int | None) -> None:
    """Write shards of format 1 again in today's format, in their order."""
    dataset, options = read_shards_v1(old, Quarantine())
    target = Storage.at(out_dir)
    manifest = _shard(
        dataset,
        target,
        Storage.at(old).name,
        overwrite,
        workers,
        options["rows_per_shard"],
        options["rows_per_group"],
        seed=None,
    )
    _show({target: manifest})


def shard_shapes(out_dir: Path, *, train_images: int | None, val_images: int | None, seed: int) -> None:
    """Generate scenes in COCO's layout in `out_dir`/coco and shard them; what is there already is kept."""
    sizes = {"train": train_images or TRAIN_IMAGES, "val": val_images or VAL_IMAGES}
    coco = out_dir / "coco"
    with progress("drawing scenes", sum(sizes.values())) as meter:
        settings = generate_shapes(
            coco,
            train=sizes["train"],
            val=sizes["val"],
            seed=seed,
            workers=os.cpu_count(),
            progress=lambda done, _total: meter.reach(done),
        )
    manifests = {}
    for split in sizes:
        target = Storage.at(out_dir / split)
        if target.exists(MANIFEST):
            present = load_manifest(target)
            if present.generator == {"name": "shapes", **asdict(settings)}:
                manifests[target] = present
                continue
        dataset = read_coco(coco / f"annotations/instances_{split}.json", coco / split, Quarantine(strict=True))
        manifests[target] = _shard(dataset, target, split, overwrite=True, workers=1)  # done before a Ray would start
    _show(manifests)


def _shard(
    dataset: Dataset,
    target: Storage,
    name: str,
    overwrite: bool,
    workers: int | None,
    rows_per_shard: int = ROWS_PER_SHARD,
    rows_per_group: int = ROWS_PER_GROUP,
    seed: int | None = 0,
) -> Manifest:
    """Shard with a progress bar."""
    with progress(f"sharding {name}", len(dataset.entries)) as meter:
        return shard_dataset(
            dataset,
            target,
            seed=seed,
            rows_per_shard=rows_per_shard,
            rows_per_group=rows_per_group,
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, _total: meter.reach(done),
        )


def _show(manifests: Mapping[Storage, Manifest]) -> None:
    """A column a directory: counts, then what was set aside and why."""
    table = Table(box=None, pad_edge=False)
    table.add_column("shards in")
    for storage in manifests:
        table.add_column(str(storage), justify="right", overflow="fold")
    rows = {
        "images": "images",
        "instances": "instances",
        "crowd": "crowd regions",
        "empty": "images without annotations",
        "grayscale": "grayscale images",
        "quarantined_images": "images in quarantine",
        "quarantined_annotations": "annotations in quarantine",
    }
    for key, label in rows.items():
        table.add_row(label, *(str(manifest.counts[key]) for manifest in manifests.values()))
    table.add_row("classes", *(str(len(manifest.class_names)) for manifest in manifests.values()))
    megabytes = (sum(shard.bytes for shard in manifest.shards) / 1e6 for manifest in manifests.values())
    table.add_row("size", *(f"{size:.1f} MB" for size in megabytes))
    out.print(table)
    for storage, manifest in manifests.items():
        for reason, count in manifest.quarantined.items():
            out.print(f"  {count} x {reason}", highlight=False, markup=False)
        if manifest.quarantined:
            out.print(f"  each of them: {storage.child(QUARANTINE)}", highlight=False, markup=False, soft_wrap=True)
