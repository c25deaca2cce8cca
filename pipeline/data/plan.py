"""Which samples are in which batch: a pure function of (index, seed, global batch), whatever the number of workers.

The samples of all epochs form one endless sequence; step s trains on its positions [s * batch, (s + 1) * batch). Each
epoch holds each sample once, or as often as its rate says (see rates.py). Where an epoch does not divide into batches,
a batch takes the last samples of one epoch and the first of the next. So a position is (seed, step), resuming is
starting at a step, and a rank's share is a slice of the batch.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import RunConfig
from pipeline.data.augment import resized
from pipeline.data.mixture import load_mixture
from pipeline.data.quarantine import DataError
from pipeline.data.rates import Float64, Int64, Rates, mixed_rates, repeat_factors
from pipeline.data.shuffle import Places, in_batches, shuffle

NO_PARTNER = -1
SMALLEST_PX = 32  # shorter side below which a crowded batch is not scaled down further


@dataclass(frozen=True)
class PlannedBatch:
    """One global batch, or a worker's share of it."""

    step: int
    rows: Int64  # [batch], rows of the plan's index
    epochs: Int64  # [batch], of each sample
    visits: Int64  # [batch], how often the sample came before: the randomness of its augmentation. The epoch at rate 1
    partners: Int64  # [batch], rows whose instances are pasted onto each sample; NO_PARTNER where none are
    size_px: int  # shorter side for every image of the batch
    bounded: bool  # a larger size was drawn, but would have passed max_instance_pixels

    @property
    def all_rows(self) -> Int64:
        """What has to be read: `rows`, then those of the partners that there are."""
        return np.concatenate([self.rows, self.partners[self.partners != NO_PARTNER]])

    def share(self, rank: int, world: int) -> "PlannedBatch":
        """The slice of worker `rank` out of `world`."""
        count = len(self.rows) // world
        part = slice(rank * count, (rank + 1) * count)
        arrays = (self.rows[part], self.epochs[part], self.visits[part], self.partners[part])
        return PlannedBatch(self.step, *arrays, self.size_px, self.bounded)


@dataclass(frozen=True)
class _Epoch:
    """An epoch laid out."""

    rows: Int64  # [length], in order
    visits: Int64  # [length]


class Plan:
    """The batches of a run.

    Rows are shuffled in windows of whole Parquet row groups, so that reading stays local; batches hold images of one
    aspect bucket (but for the few that are left over at an epoch's end), so that little of a batch is padding.

    Args:
        index: rows that take part, as load_index or load_mixture gave them (see records.INDEX_SCHEMA).
        seed: of every shuffle.
        batch_images: global batch.
        sizes_px: shorter sides, one is drawn a batch.
        longest_px: longer side at most.
        window_groups: row groups shuffled together.
        aspect_buckets: ranges of width / height, evenly spaced in its logarithm from 1:2 to 2:1.
        rates: float64 [N], visits an epoch of each row; None: 1 each.
        max_instance_pixels: instances of the batch's most crowded image x pixels of the padded batch at most; a batch
            above it takes the largest smaller size that keeps to it: of `sizes_px`, then in steps of `divisor` down to
            32 pixels, where it stays. None: no bound.
        divisor: padded sides are multiples of this, pixels.
        copy_paste_probability: of a sample to get a partner, another row of its global batch.

    Raises:
        DataError: there is nothing to plan.
    """

    def __init__(
        self,
        index: pa.Table,
        *,
        seed: int,
        batch_images: int,
        sizes_px: tuple[int, ...],
        longest_px: int,
        window_groups: int,
        aspect_buckets: int,
        rates: Float64 | None = None,
        max_instance_pixels: int | None = None,
        divisor: int = 32,
        copy_paste_probability: float = 0.0,
    ) -> None:
        if index.num_rows == 0:
            raise DataError(
                "no image to train on: the shards hold no image with a usable instance; "
                "look at the summary that `maskrcnn shard` printed, or set data.drop_empty=false"
            )
        self.index = index
        self.seed, self.batch_images, self.window_groups = seed, batch_images, window_groups
        self.sizes_px, self.longest_px, self.divisor = sizes_px, longest_px, divisor
        self.max_instance_pixels = max_instance_pixels
        self.copy_paste_probability = copy_paste_probability
        self.rates = Rates(rates, index.num_rows, seed)
        self._sample_id, self._instances = index["sample_id"].to_numpy(), index["instances"].to_numpy()
        self._height, self._width = index["height"].to_numpy(), index["width"].to_numpy()
        edges = 2.0 ** np.linspace(-1, 1, aspect_buckets + 1)[1:-1]
        self.bucket = np.digitize(self._width / self._height, edges)  # [N]
        self._cached: dict[int, _Epoch] = {}

    @functools.cached_property  # a tenth of a second of COCO; a search looks at the plans of all its trials
    def places(self) -> Places:
        """Where each row lies, as `places_of` says."""
        return places_of(self.index)

    @property
    def samples(self) -> int:
        """Rows of the index."""
        return self.index.num_rows  # type: ignore[no-any-return]

    def epoch_order(self, epoch: int) -> Int64:
        """The rows of `epoch`, in order: each once, or as often as its rate says."""
        return self._epoch(epoch).rows

    def batch(self, step: int) -> PlannedBatch:
        """The global batch of `step`, counted from 0."""
        first, left = step * self.batch_images, self.batch_images
        epoch = self.rates.epoch_of(first)
        parts: list[tuple[Int64, Int64, Int64]] = []
        while left:
            laid_out, start = self._epoch(epoch), first - self.rates.length_before(epoch)
            rows, visits = laid_out.rows[start : start + left], laid_out.visits[start : start + left]
            parts.append((rows, np.full(len(rows), epoch, dtype=np.int64), visits))
            first, left, epoch = first + len(rows), left - len(rows), epoch + 1
        rows, epochs, visits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        drawn_px = int(np.random.default_rng((self.seed, 1, step)).choice(self.sizes_px))
        size_px = self._bounded_size(rows, drawn_px)
        return PlannedBatch(step, rows, epochs, visits, self._partners(rows, visits), size_px, size_px < drawn_px)

    def bounded_batches(self, steps: range) -> int:
        """How many of these steps train at a smaller size than was drawn, because of max_instance_pixels."""
        return sum(self.batch(step).bounded for step in steps)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._cached:
            self._cached = {number: kept for number, kept in self._cached.items() if number == epoch - 1}
            self._cached[epoch] = self._lay_out(epoch)
        return self._cached[epoch]

    def _lay_out(self, epoch: int) -> _Epoch:
        before = self.rates.visits_before(epoch)  # [N]
        counts = self.rates.visits_before(epoch + 1) - before  # [N]
        entries = np.repeat(np.arange(self.samples), counts)  # [length], rows
        nth = np.arange(len(entries)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a row in this epoch
        visits = before[entries] + nth
        order = shuffle(entries, self.places, self.window_groups, np.random.default_rng((self.seed, 0, epoch)))
        head = min(-self.rates.length_before(epoch) % self.batch_images, len(entries))
        order = order[in_batches(self.bucket[entries[order]], self.batch_images, head)]
        return _Epoch(entries[order], visits[order])

    def _bounded_size(self, rows: Int64, drawn_px: int) -> int:
        if self.max_instance_pixels is None:
            return drawn_px
        crowd = int(self._instances[rows].max())
        sizes = list(zip(self._height[rows].tolist(), self._width[rows].tolist(), strict=True))
        lowest = min(self.sizes_px)
        stepwise = range((lowest - 1) // self.divisor * self.divisor, SMALLEST_PX - 1, -self.divisor)
        candidates: list[int] = [*sorted({size for size in self.sizes_px if size <= drawn_px}, reverse=True), *stepwise]
        for size_px in candidates:
            if crowd * self._padded_pixels(sizes, size_px) <= self.max_instance_pixels:
                return size_px
        return candidates[-1]

    def _padded_pixels(self, sizes: list[tuple[int, int]], size_px: int) -> int:
        new = [resized(height, width, size_px, self.longest_px) for height, width in sizes]
        height, width = max(height for height, _ in new), max(width for _, width in new)
        return (height + -height % self.divisor) * (width + -width % self.divisor)

    def _partners(self, rows: Int64, visits: Int64) -> Int64:
        partners = np.full(len(rows), NO_PARTNER, dtype=np.int64)
        if not self.copy_paste_probability:
            return partners
        for place, (row, visit) in enumerate(zip(rows.tolist(), visits.tolist(), strict=True)):
            generator = np.random.default_rng((self.seed, 5, visit, int(self._sample_id[row]) % 2**63))
            others = rows[rows != row]
            if generator.random() < self.copy_paste_probability and len(others):
                partners[place] = others[generator.integers(len(others))]
        return partners


def places_of(index: pa.Table) -> Places:
    """Where the rows of an index or of a mixture lie, row groups and shards numbered from 0."""
    shard_keys = [name for name in ("dataset", "shard") if name in index.column_names]
    shard = _number([index[name].to_numpy() for name in shard_keys])
    group = _number([shard, index["row_group"].to_numpy()])
    return Places(group, shard[np.unique(group, return_index=True)[1]])


def _number(keys: list[Int64]) -> Int64:
    """int64 [N]: equal keys have equal numbers, which count from 0 in the order of the keys."""
    return np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def plan_of(config: RunConfig) -> Plan:
    """The plan of a run, of the shards that its configuration names.

    `plan.index` is what rows count in; its column `dataset` says which location of data.train a row lies in.

    Raises:
        DataError: the shards cannot be read, or there is nothing to plan.
    """
    data, train = config.data, config.train
    assert data.train is not None
    index = load_mixture(data.train)
    if data.drop_empty:
        index = index.filter(pc.greater(index["instances"], 0)).combine_chunks()
    rates = None
    if data.repeat_threshold is not None:
        rates = repeat_factors(index["classes"], data.repeat_threshold)
    if data.mix_weights is not None:
        factors = np.ones(index.num_rows) if rates is None else rates
        rates = mixed_rates(factors, index["dataset"].to_numpy(), data.mix_weights)
    return Plan(
        index,
        seed=train.seed,
        batch_images=train.batch_images,
        sizes_px=data.train_sizes_px,
        longest_px=data.train_max_size_px,
        window_groups=data.window_groups,
        aspect_buckets=data.aspect_buckets,
        rates=rates,
        max_instance_pixels=data.max_instance_pixels,
        divisor=config.model.input.divisor,
        copy_paste_probability=data.augment.copy_paste_probability,
    )
