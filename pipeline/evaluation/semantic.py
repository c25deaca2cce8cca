"""IoU of label maps by Cityscapes' protocol; equal to cityscapesscripts' evalPixelLevelSemanticLabeling.

    counts = sum((count_pixels(labels, predicted, truth) for ...), PixelCounts.none())     a picture at a time
    scores = iou_scores(counts)

Pixels whose ground truth is not scored count nowhere. Predicted labels that are not scored count as missed. iIoU is
the IoU of a class with objects whose true pixels are weighted so that each object is as important as one of average
size; its false pixels are those of IoU.

Legend: L 34 labels, H x W pixels.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cityscapes_labels import CATEGORY_IDS, LABELS, Label
from pipeline.data.records import Record
from pipeline.data.storage import Location
from pipeline.errors import UserError
from pipeline.evaluation import spans
from pipeline.evaluation.cityscapes_truth import Truth, from_record, label_map, read_ground_truth

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]  # [H, W] label ids

_DRAWN = tuple(label for label in LABELS if label.id >= 0)  # label i has id i
_SCORED = tuple(label for label in _DRAWN if label.train_id is not None)  # in the order of the train ids 0, 1, ...
_L = len(_DRAWN)  # ids are 0..L - 1
CATEGORIES = tuple(dict.fromkeys(label.category for label in _SCORED))
_AVERAGE_PX = {  # pixels of an object of average size, as the official script has them
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


@dataclass(frozen=True)
class PixelCounts:
    """Of some pictures; those of others are added with `+`."""

    confusion: NDArray[np.int64]  # [L, L] pixels by label in the ground truth and label predicted
    # Weighted pixels of the objects of each label [L], that are predicted as that label, and that are not:
    found: Floats
    missed: Floats
    # The same where any label of its category will do:
    category_found: Floats
    category_missed: Floats

    @classmethod
    def none(cls) -> "PixelCounts":
        """Of no picture."""
        return cls(np.zeros((_L, _L), dtype=np.int64), *(np.zeros(_L) for _ in range(4)))

    def __add__(self, other: "PixelCounts") -> "PixelCounts":
        return PixelCounts(
            self.confusion + other.confusion,
            self.found + other.found,
            self.missed + other.missed,
            self.category_found + other.category_found,
            self.category_missed + other.category_missed,
        )


@dataclass(frozen=True)
class SemanticScores:
    """0..1. NaN where there is nothing to score, which means leave out."""

    stats: dict[str, float]  # IoU, iIoU (means over classes), IoU_category, iIoU_category
    per_class: dict[str, float]  # of the 19 classes that are scored: IoU
    per_class_instance: dict[str, float]  # of the 8 classes with objects: iIoU
    per_category: dict[str, float]  # of 7 categories: IoU
    per_category_instance: dict[str, float]  # human and vehicle: iIoU


def count_pixels(labels: Labels, predicted: Labels, truth: Truth | None = None) -> PixelCounts:
    """Hold the predicted labels of one picture against its ground truth.

    Args:
        labels: ground truth [H, W], label ids.
        predicted: [H, W], label ids (not train ids: see from_train_ids).
        truth: its objects, for iIoU; None: iIoU is left out.
    """
    if predicted.shape != labels.shape:
        raise UserError(
            f"predicted labels must have the picture's size {labels.shape} (height, width), got {predicted.shape}; "
            "predict in the original picture, not in the network's input"
        )
    for what, each in (("ground-truth", labels), ("predicted", predicted)):
        if each.dtype.kind not in "iu" or (each.size and (each.min() < 0 or each.max() >= _L)):
            got = each.dtype if each.dtype.kind not in "iu" else f"{each.min()}..{each.max()}"
            raise UserError(f"{what} labels must be label ids 0..{_L - 1}, got {got}; convert train ids to label ids")
    codes = labels.astype(np.uint16) * np.uint16(_L) + predicted.astype(np.uint16)
    confusion = np.bincount(codes.reshape(-1), minlength=_L * _L).reshape(_L, _L).astype(np.int64)
    sums = [np.zeros(_L) for _ in range(4)]
    if truth is not None:
        _add_objects(sums, predicted, truth)
    return PixelCounts(confusion, *sums)


def iou_scores(counts: PixelCounts) -> SemanticScores:
    """The scores of all pictures."""
    confusion = counts.confusion
    classes = {label.name: _iou(confusion, [label], [label]) for label in _SCORED}
    with_objects = {
        label.name: _object_iou(confusion, counts.found[label.id], counts.missed[label.id], [label], [label])
        for label in _SCORED
        if label.has_instances
    }
    categories, category_objects = {}, {}
    for category in CATEGORIES:
        everything = [label for label in _DRAWN if label.category == category]
        scored = [label for label in everything if label.train_id is not None]
        categories[category] = _iou(confusion, scored, scored)
        if all(label.has_instances for label in everything):
            # Predictions of all labels of the category count here, of caravans and trailers too.
            ids = [label.id for label in scored]
            found, missed = counts.category_found[ids].sum(), counts.category_missed[ids].sum()
            category_objects[category] = _object_iou(confusion, found, missed, scored, everything)
    return SemanticScores(
        stats={
            "IoU": _mean(classes.values()),
            "iIoU": _mean(with_objects.values()),
            "IoU_category": _mean(categories.values()),
            "iIoU_category": _mean(category_objects.values()),
        },
        per_class=classes,
        per_class_instance=with_objects,
        per_category=categories,
        per_category_instance=category_objects,
    )


def score_label_maps(shards: Location, predict: Callable[[Record], Labels]) -> SemanticScores:
    """Scores of all pictures of Cityscapes' shards; `predict` gives the label ids of each (it gets no image)."""
    counts = PixelCounts.none()
    for record in read_ground_truth(shards):
        labels = label_map(record)
        counts += count_pixels(labels, predict(record), from_record(record, labels))
    return iou_scores(counts)


def from_train_ids(train_ids: Labels) -> Labels:
    """Train ids 0..18 (255: none) [H, W] as label ids (0: unlabeled)."""
    wrong = np.setdiff1d(train_ids, [*(label.train_id for label in _SCORED), 255])
    if len(wrong):
        raise UserError(f"train ids must be 0..{len(_SCORED) - 1} or 255, got {wrong[:5].tolist()}; see labels.py")
    table = np.zeros(256, dtype=np.uint8)
    table[: len(_SCORED)] = [label.id for label in _SCORED]
    found: Labels = table[train_ids]
    return found


def to_train_ids(labels: Labels) -> Labels:
    """Label ids [H, W] as train ids; 255 where the label is not scored."""
    table = np.full(256, 255, dtype=np.uint8)
    table[[label.id for label in _SCORED]] = range(len(_SCORED))
    found: Labels = table[labels]
    return found


def _add_objects(sums: Sequence[Floats], predicted: Labels, truth: Truth) -> None:
    """Add the weighted pixels of a picture's objects to found, missed, category_found and category_missed."""
    regions, columns = truth.regions, spans.down_columns(predicted)
    of = np.repeat(regions.owners, regions.ends - regions.starts)  # [pixels of all regions]
    codes = of * _L + columns[spans.pixels(regions)]
    seen = np.bincount(codes, minlength=len(truth.classes) * _L).reshape(-1, _L)  # [G, L] pixels by predicted label
    for class_, group, by_label in zip(truth.classes, truth.groups, seen, strict=True):
        label = CATEGORY_IDS[class_ - 1]
        name, category = _DRAWN[label].name, _DRAWN[label].category
        if group:
            continue
        size = by_label.sum()
        weight = _AVERAGE_PX[name] / size
        alike = by_label[[other.id for other in _DRAWN if other.category == category]].sum()
        for total, pixels in zip(sums, (by_label[label], size - by_label[label], alike, size - alike), strict=True):
            total[label] += pixels * weight


def _iou(confusion: NDArray[np.int64], rows: Sequence[Label], columns: Sequence[Label]) -> float:
    """IoU of what is labelled as one of `rows` with what is predicted as one of `columns`."""
    mine = [label.id for label in rows]
    true = confusion[np.ix_(mine, [label.id for label in columns])].sum()
    return _ratio(true, confusion[mine].sum() + _false(confusion, rows, columns))


def _object_iou(
    confusion: NDArray[np.int64], found: float, missed: float, rows: Sequence[Label], columns: Sequence[Label]
) -> float:
    return _ratio(found, found + missed + _false(confusion, rows, columns))


def _false(confusion: NDArray[np.int64], rows: Sequence[Label], columns: Sequence[Label]) -> int:
    """Pixels predicted as one of `columns` that are labelled as something else that is scored."""
    others = [label.id for label in _SCORED if label not in rows]
    return int(confusion[np.ix_(others, [label.id for label in columns])].sum())


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    """Over what is defined; NaN if nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
