"""Cityscapes' AP of results for pictures of shards: reads the ground truth, which scoring itself does not."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.storage import Location
from pipeline.evaluation.cityscapes_ap import CityscapesAp, evaluate_cityscapes, join, match
from pipeline.evaluation.cityscapes_truth import from_record, read_ground_truth


def score_shards(shards: Location, found: Mapping[int, Sequence[Mapping[str, Any]]]) -> CityscapesAp:
    """AP of the results (see `match`) of some pictures of Cityscapes' shards: sample id -> results. Raises DataError.

    A row group is in memory at a time, and of each picture that was read a row a detection.
    """
    records = read_ground_truth(shards, found.keys())
    return evaluate_cityscapes(join([match(from_record(record), found[record["sample_id"]]) for record in records]))
