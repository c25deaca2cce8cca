"""Memory of the data path over many epochs: of this process and all that it started, Ray included."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.data.loader import training_batches
from pipeline.data.plan import plan_of


def measure_epochs(config: RunConfig, epochs: int, threads: int, on_epoch: Callable[[int], None]) -> list[float]:
    """MB (proportional set size) after each epoch. Ray must run. Linux only."""
    plan = plan_of(config)
    steps = plan.samples // config.train.batch_images
    batches = training_batches(config, plan, range(steps * epochs), 0, 1, threads, float(threads), _refuse)
    found = []
    for count, _ in enumerate(batches, start=1):
        if count % steps == 0:
            found.append(tree_megabytes())
            on_epoch(len(found))
    return found


def tree_megabytes() -> float:
    """Proportional set size of this process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))

    def below(process: int) -> Iterator[int]:
        yield process
        for child in children.get(process, []):
            yield from below(child)

    return sum(_megabytes(process) for process in below(int(Path("/proc/self").resolve().name)))


def _megabytes(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _refuse(sample_id: int, reason: str) -> None:
    raise ValueError(f"sample {sample_id} cannot be decoded: {reason}; run `maskrcnn shard` again")
