"""The ground truth of a Cityscapes picture as its evaluation needs it: from a row of shards, or from instance ids."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import rle
from pipeline.data.cityscapes_labels import CATEGORY_IDS, INSTANCES_A_LABEL, LABELS
from pipeline.data.instance_ids import regions
from pipeline.data.manifest import load_manifest, shard_name
from pipeline.data.quarantine import DataError
from pipeline.data.records import Record
from pipeline.data.shards import load_index, read_groups, to_records
from pipeline.data.storage import Location, Storage
from pipeline.evaluation import spans
from pipeline.evaluation.spans import Spans

COLUMNS = ("sample_id", "file_name", "height", "width", "classes", "crowd", "rles", "semantic")  # what is read
_IGNORED = [label.id for label in LABELS if label.train_id is None and label.id >= 0]
# The official script looks for void among *instance* ids, where single caravans and trailers (29000 ...) are not 29
# and 30: they are no void there. Groups of them are; sharding stores those as unlabeled.
_VOID_LABELS = np.isin(np.arange(256), [i for i in _IGNORED if not LABELS[i].has_instances])  # by label id
_VOID_INSTANCES = np.isin(np.arange(1 << 16), _IGNORED)  # by instance id


@dataclass(frozen=True)
class Truth:
    """One picture with its G regions, objects and groups of objects, of the 8 classes that are scored."""

    height: int  # pixels
    width: int
    classes: NDArray[np.int64]  # [G], 1..8
    groups: NDArray[np.bool_]  # [G]: many objects that nobody told apart
    regions: Spans  # where they lie; no pixel is in two
    void: Spans  # what is not scored at all


def from_record(record: Record, labels: NDArray[np.uint8] | None = None) -> Truth:
    """Of a row of Cityscapes' shards (COLUMNS); `labels` spare decoding them again. DataError where it has none."""
    height, width = record["height"], record["width"]
    labels = label_map(record) if labels is None else labels
    return Truth(
        height,
        width,
        np.array(record["classes"], dtype=np.int64),
        np.array(record["crowd"], dtype=np.bool_),
        spans.of_rles(record["rles"], height, width),
        spans.of_values(labels, _VOID_LABELS),
    )


def from_instance_ids(ids: NDArray[np.uint16]) -> Truth:
    """Of the image of a *_gtFine_instanceIds.png [H, W]."""
    found = list(regions(ids))
    scored = [r for r in found if _label(r.id) in CATEGORY_IDS]
    height, width = ids.shape
    return Truth(
        height,
        width,
        np.array([CATEGORY_IDS.index(_label(r.id)) + 1 for r in scored], dtype=np.int64),
        np.array([r.id < INSTANCES_A_LABEL for r in scored], dtype=np.bool_),
        spans.of_rles([rle.from_counts(r.runs.tolist(), height, width) for r in scored], height, width),
        spans.of_values(ids, _VOID_INSTANCES),
    )


def label_map(record: Record) -> NDArray[np.uint8]:
    """Label ids [H, W] of a row. Raises DataError where it has none."""
    if not record["semantic"]:
        raise DataError(
            f"{record['file_name']} has no label ids, which Cityscapes' evaluation needs (they say what is void); "
            "evaluate on shards that `maskrcnn shard cityscapes` wrote of train or val"
        )
    with Image.open(BytesIO(record["semantic"]), formats=["PNG"]) as image:
        labels = np.asarray(image)
    if labels.shape != (record["height"], record["width"]) or labels.dtype != np.uint8:
        raise DataError(
            f"the label ids of {record['file_name']} must be 8-bit grey of {record['height']} x {record['width']} "
            f"pixels, got {labels.dtype} {labels.shape}; write the shards again"
        )
    return labels


def read_ground_truth(shards: Location, sample_ids: Set[int] | None = None) -> Iterator[Record]:
    """COLUMNS of each row, a row group in memory at a time; None: of all rows. Raises DataError."""
    storage = Storage.at(shards)
    check_cityscapes(storage)
    index = load_index(storage)
    if sample_ids is not None:
        index = index.filter(pa.array(np.isin(index["sample_id"].to_numpy(), list(sample_ids))))
    places = sorted(set(zip(index["shard"].to_pylist(), index["row_group"].to_pylist(), strict=True)))
    for shard, group in places:
        for record in to_records(read_groups(storage, shard_name(shard), [group], COLUMNS)):
            if sample_ids is None or record["sample_id"] in sample_ids:
                yield record


def check_cityscapes(shards: Location) -> None:
    """Raises DataError where shards do not hold Cityscapes' classes with its ground truth."""
    manifest = load_manifest(shards)
    if manifest.scoring != "cityscapes" or manifest.category_ids != CATEGORY_IDS:
        raise DataError(
            f"{shards} holds data that are scored by {manifest.scoring!r}, not by Cityscapes' protocol; set "
            "evaluate.protocol=coco, or evaluate on shards that `maskrcnn shard cityscapes` wrote of train or val"
        )


def _label(instance_id: int) -> int:
    return instance_id if instance_id < INSTANCES_A_LABEL else instance_id // INSTANCES_A_LABEL
