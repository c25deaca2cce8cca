"""What a sample trains as: its first visits in a run, by the run's own plan and recipes."""

from itertools import count

import numpy as np

from pipeline.data.collate import Work
from pipeline.data.plan import NO_PARTNER, Plan
from pipeline.data.quarantine import DataError
from pipeline.data.recipes import Recipes
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import to_records
from pipeline.data.storage import Location


def planned_visits(
    plan: Plan, recipes: Recipes, location: Location, sample_id: int, visits: int
) -> list[tuple[str, Work]]:
    """(title, work) of the first visits of a sample.

    Args:
        plan: of one data set.
        recipes: of the same run.
        location: of the data set's shards.
        sample_id: which.
        visits: how many.

    Raises:
        DataError: the sample does not train, or the shards cannot be read.
    """
    found = np.flatnonzero(plan.index["sample_id"].to_numpy() == sample_id)
    if not len(found):
        raise DataError(
            f"sample {sample_id} does not train: it has no instance (crowd regions do not count) and "
            "data.drop_empty is true; choose another sample, or add data.drop_empty=false"
        )
    made: list[tuple[str, Work]] = []
    for epoch in count():
        for position in np.flatnonzero(plan.epoch_order(epoch) == found[0]).tolist():
            step, place = divmod(plan.rates.length_before(epoch) + position, plan.batch_images)
            alone = plan.batch(step).share(place, plan.batch_images)
            records = to_records(read_rows(location, plan.index.take(alone.all_rows)))
            title = f"step {step}, {alone.size_px} px"
            if alone.partners[0] != NO_PARTNER:
                title += f", pasted from {records[1]['sample_id']}"
            made += [(title, work) for work in recipes.work(alone, records)]
            if len(made) == visits:
                return made
    raise AssertionError("a sample comes at least once an epoch")
