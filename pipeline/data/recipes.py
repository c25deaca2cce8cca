"""From a planned batch and its records to work for the collator: which recipe each sample gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import MaskTarget
from pipeline.config import AugmentConfig
from pipeline.data.augment import Recipe, draw_recipe
from pipeline.data.collate import Work
from pipeline.data.plan import NO_PARTNER, PlannedBatch
from pipeline.data.records import Record


@dataclass(frozen=True)
class Recipes:
    """What turns records into inputs; picklable, it goes to the tasks that decode."""

    seed: int
    longest_px: int  # longer side at most
    augment: AugmentConfig
    divisor: int  # padded sides are multiples of it
    targets: MaskTarget
    keypoints: tuple[int, ...] | None  # flip order; None for targets without keypoints
    proposals: int | None = None  # of another system, an image at most; None: none are read

    def work(self, batch: PlannedBatch, records: Sequence[Record]) -> list[Work]:
        """`records` are those of `batch.all_rows`: its samples, then the partners of those that have one."""
        samples, partners = records[: len(batch.rows)], iter(records[len(batch.rows) :])
        work = []
        for record, visit, partner in zip(samples, batch.visits.tolist(), batch.partners.tolist(), strict=True):
            recipe = self._recipe(record, batch.size_px, visit)
            if partner == NO_PARTNER:
                work.append(Work(record, recipe))
            else:
                other = next(partners)
                work.append(Work(record, recipe, other, self._recipe(other, batch.size_px, visit)))
        return work

    def _recipe(self, record: Record, size_px: int, visit: int) -> Recipe:
        """`visit`, not the epoch: a sample that comes twice in an epoch is not augmented alike."""
        height, width = record["height"], record["width"]
        return draw_recipe(height, width, size_px, self.longest_px, self.augment, self.seed, visit, record["sample_id"])
