"""The order within an epoch: row groups shuffled in windows, so that reading stays local, and batches of one aspect.

`measure_window` says how random that is. A sample should meet other samples in each epoch; a small window brings the
row group of its shard along each time. The share of its batch mates that it had in the epoch before too, over that
share where everything is shuffled together, is 1 for a perfect shuffle and grows as the window shrinks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def shuffle(group: Int64, window_groups: int, generator: np.random.Generator) -> Int64:
    """A permutation of the entries 0..n-1, window after window of `window_groups` whole row groups.

    Args:
        group: int64 [n], the row group of each entry, from 0.
        window_groups: row groups shuffled together.
        generator: of the randomness.
    """
    if not len(group):
        return np.empty(0, dtype=np.int64)
    rank_of_group = generator.permutation(int(group.max()) + 1)
    window = rank_of_group[group] // window_groups  # [n]
    return np.lexsort((generator.random(len(group)), window))


def in_batches(bucket: Int64, batch: int, head: int) -> Int64:
    """A permutation of the entries 0..n-1 that makes batches of one bucket, in the order in which these fill up.

    The first `head` entries stay (they complete the last batch of the epoch before); what fills no batch comes last,
    bucket after bucket.

    Args:
        bucket: int64 [n], of each entry in its shuffled order.
        batch: entries a batch.
        head: entries that stay in front.
    """
    rest = np.arange(head, len(bucket))
    by_bucket = rest[np.argsort(bucket[rest], kind="stable")]
    whole, left = [], []
    for part in np.split(by_bucket, np.flatnonzero(np.diff(bucket[by_bucket])) + 1):
        full = len(part) - len(part) % batch
        whole.append(part[:full].reshape(-1, batch))
        left.append(part[full:])
    batches = np.concatenate(whole)
    batches = batches[np.argsort(batches[:, -1])]  # a batch is ready when its last entry comes by
    return np.concatenate([np.arange(head), batches.reshape(-1), *left])


@dataclass(frozen=True)
class WindowFigures:
    """What a window size gives."""

    window_groups: int
    repeated_mates: float  # share of batch mates that were mates in the epoch before, over a full shuffle's; 1 is best
    groups_a_task: float  # distinct row groups that the rows of one read task lie in, mean


def measure_window(
    group: Int64,
    bucket: Int64,
    *,
    window_groups: int,
    batch_images: int,
    task_rows: int,
    epochs: int = 4,
    seed: int = 0,
) -> WindowFigures:
    """How random and how local an order is, each sample once an epoch.

    Args:
        group: int64 [N], the row group of each sample, from 0.
        bucket: int64 [N], its aspect bucket.
        window_groups: row groups shuffled together.
        batch_images: global batch; must be at least 2.
        task_rows: rows one task reads, of one worker that reads all.
        epochs: pairs of following epochs that are counted; more are more exact.
        seed: of the shuffles.
    """
    n, tasks = len(group), -(-len(group) // task_rows)
    task = np.arange(n) // task_rows
    groups = int(group.max()) + 1
    again = pairs = distinct = 0
    before: Int64 | None = None  # [N], the batch of each sample in the epoch before
    for epoch in range(epochs + 1):
        order = shuffle(group, window_groups, np.random.default_rng((seed, 0, epoch)))
        order = order[in_batches(bucket[order], batch_images, 0)]
        number = np.empty(n, dtype=np.int64)
        number[order] = np.arange(n) // batch_images
        if before is not None:
            again += _pairs(before * n + number)
            pairs += _pairs(number)
            distinct += len(np.unique(task * groups + group[order]))
        before = number
    # Shuffled together, a sample's mate of one epoch is any other of its bucket in the next.
    sizes = np.bincount(bucket)
    sizes = sizes[sizes > 1]
    expected = float((sizes * np.minimum((batch_images - 1) / (sizes - 1), 1)).sum() / n)
    return WindowFigures(window_groups, again / pairs / expected, distinct / (epochs * tasks))


def _pairs(key: Int64) -> int:
    """Pairs of entries with the same key."""
    counts = np.unique(key, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
