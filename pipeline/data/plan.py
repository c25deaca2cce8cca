"""Which samples are in which batch: a pure function of (index, seed, global batch), whatever the number of workers.

The samples of all epochs form one endless sequence; step s trains on its positions [s * batch, (s + 1) * batch). Each
epoch holds each sample exactly once. Where an epoch does not divide into batches, a batch takes the last samples of one
epoch and the first of the next. So a position is (seed, step), resuming is starting at a step, and a rank's share is a
slice of the batch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlannedBatch:
    """One global batch."""

    step: int
    rows: Int64  # [batch], rows of the index
    epochs: Int64  # [batch], of each sample: the randomness of its augmentation
    size_px: int  # shorter side for every image of the batch

    def share(self, rank: int, world: int) -> "PlannedBatch":
        """The slice of worker `rank` out of `world`."""
        count = len(self.rows) // world
        part = slice(rank * count, (rank + 1) * count)
        return PlannedBatch(self.step, self.rows[part], self.epochs[part], self.size_px)


class Plan:
    """The batches of a run.

    Rows are shuffled in windows of whole Parquet row groups, so that reading stays local; batches hold images of one
    aspect bucket (but for the few that are left over at an epoch's end), so that little of a batch is padding.

    Args:
        index: rows of index.parquet that take part (see records.INDEX_SCHEMA).
        seed: of every shuffle.
        batch_images: global batch.
        sizes_px: shorter sides, one is drawn a batch.
        window_groups: row groups shuffled together.
        aspect_buckets: ranges of width / height, evenly spaced in its logarithm from 1:2 to 2:1.

    Raises:
        ValueError: there is nothing to plan.
    """

    def __init__(
        self,
        index: pa.Table,
        seed: int,
        batch_images: int,
        sizes_px: tuple[int, ...],
        window_groups: int,
        aspect_buckets: int,
    ) -> None:
        if index.num_rows == 0:
            raise ValueError(
                "no image to train on: the shards hold no image with a usable instance; "
                "look at the summary that `maskrcnn shard` printed, or set data.drop_empty=false"
            )
        self.seed = seed
        self.batch_images = batch_images
        self.sizes_px = sizes_px
        self.window_groups = window_groups
        group_keys = np.stack([index["shard"].to_numpy(), index["row_group"].to_numpy()], 1)
        self._group = np.unique(group_keys, axis=0, return_inverse=True)[1].reshape(-1)  # [N] 0..groups-1
        aspect = index["width"].to_numpy() / index["height"].to_numpy()
        edges = 2.0 ** np.linspace(-1, 1, aspect_buckets + 1)[1:-1]
        self._bucket = np.digitize(aspect, edges)  # [N]
        self._cached: dict[int, Int64] = {}

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return len(self._group)

    def epoch_order(self, epoch: int) -> Int64:
        """Every row of the index once, in the order of `epoch`."""
        if epoch not in self._cached:
            self._cached = {e: o for e, o in self._cached.items() if e == epoch - 1}
            self._cached[epoch] = self._order(epoch)
        return self._cached[epoch]

    def _order(self, epoch: int) -> Int64:
        generator = np.random.default_rng((self.seed, 0, epoch))
        groups = int(self._group.max()) + 1
        rank_of_group = generator.permutation(groups)
        window = rank_of_group[self._group] // self.window_groups  # [N]
        shuffled = np.lexsort((generator.random(self.samples), window))
        batch = self.batch_images
        head = min(-epoch * self.samples % batch, self.samples)  # these complete the previous epoch's last batch
        pending: dict[int, list[int]] = {int(bucket): [] for bucket in np.unique(self._bucket)}
        order: list[int] = shuffled[:head].tolist()
        for row in shuffled[head:].tolist():
            waiting = pending[int(self._bucket[row])]
            waiting.append(row)
            if len(waiting) == batch:
                order += waiting
                waiting.clear()
        for waiting in pending.values():
            order += waiting
        return np.array(order, dtype=np.int64)

    def batch(self, step: int) -> PlannedBatch:
        """The global batch of `step`, counted from 0."""
        positions = np.arange(step * self.batch_images, (step + 1) * self.batch_images, dtype=np.int64)
        epochs, places = np.divmod(positions, self.samples)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            member = epochs == epoch
            rows[member] = self.epoch_order(int(epoch))[places[member]]
        size_px = np.random.default_rng((self.seed, 1, step)).choice(self.sizes_px)
        return PlannedBatch(step, rows, epochs, int(size_px))
