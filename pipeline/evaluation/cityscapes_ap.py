"""Cityscapes' instance-level AP, in memory; equal to cityscapesscripts' evalInstanceLevelSemanticLabeling.

    tables = [match(from_record(record), results) for ...]
    ap = evaluate_cityscapes(join(tables))

(cityscapes_shards.py does that for shards.) A picture's table can be made on any worker.

What differs from COCO's AP: a match needs more than the overlap (COCO: at least); of the detections of an object the
best scored one counts, however the others overlap; a detection without a match is left out where more of it than the
overlap is void, in a group, or in an object of less than 100 pixels; the curve of precision is not made monotonous,
and a step of recall counts the mean of the precision on both sides.

The official script ends with an IndexError where a class has objects, and detections that are all left out; here
its AP is 0, as it is where the class has no detections at all. Its ranges of distance need depths that the public
ground truth does not have; like there, they are off.

Legend: P detections, G regions of the ground truth, K 8 classes, T 10 overlaps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cityscapes_labels import CATEGORY_IDS, CLASS_NAMES, LABEL_IDS
from pipeline.errors import UserError
from pipeline.evaluation import spans
from pipeline.evaluation.coco_results import Warned
from pipeline.evaluation.protocols import CITYSCAPES, Protocol

if TYPE_CHECKING:  # it reads shards, and whoever writes tables does not
    from pipeline.evaluation.cityscapes_truth import Truth

Floats = NDArray[np.float64]

OVERLAPS = np.arange(0.5, 1.0, 0.05)  # axis T, IoU; the official script's, to the last bit
MIN_REGION_PX = 100  # smaller objects are not to be found


@dataclass(frozen=True)
class Matches:
    """All that AP needs of some pictures: a row a detection that is not empty."""

    classes: NDArray[np.int64]  # [P], 1..K
    scores: Floats  # [P]
    ious: Floats  # [P], with the region of its class that it overlaps most
    objects: NDArray[np.int64]  # [P], the number of that region among the objects that count, -1: it is none of them
    ignored: Floats  # [P], share of its pixels that are void, in a group or in a small object (0..; some count twice)
    counted: NDArray[np.int64]  # [K], objects that count: single ones of at least MIN_REGION_PX


@dataclass(frozen=True)
class CityscapesAp:
    """The numbers of masks, 0..1. NaN where there is no object that counts."""

    protocol: ClassVar[Protocol] = CITYSCAPES
    warnings: ClassVar[tuple[Warned, ...]] = ()  # as CocoAp's: damaged results are refused here
    sigmas: ClassVar[None] = None  # as CocoAp's
    stats: dict[str, float]  # AP, AP50
    per_class: dict[str, float]  # class name -> AP
    per_class_50: dict[str, float]  # class name -> AP at an overlap of 0.5
    instances: dict[str, int]  # class name -> objects that count
    aps: Floats  # [K, T]

    def at_50(self) -> "CityscapesAp":
        """The same with the classes' AP50 in the place of their AP."""
        return replace(self, per_class=self.per_class_50)


def match(truth: "Truth", results: Sequence[Mapping[str, Any]]) -> Matches:
    """Hold the detections of one picture against its ground truth.

    Args:
        truth: of the picture.
        results: of the picture, in COCO's results format: "category_id" (a label id; labels that are not scored are
            left out), "score", "segmentation" (an RLE of the picture's size with compressed counts).
    """
    found = [_checked(result, truth) for result in results]
    found = [one for one in found if one[0]]
    try:
        masks = spans.of_rles([counts for _, _, counts in found], truth.height, truth.width)
    except ValueError as error:
        raise UserError(f"a detection's mask is damaged: {error}; predict again") from error
    pixels = spans.areas(masks, len(found))  # [P]
    areas = spans.areas(truth.regions, len(truth.classes))  # [G]
    small = areas < MIN_REGION_PX
    counts = ~truth.groups & ~small
    classes = np.array([class_ for class_, _, _ in found], dtype=np.int64)
    shared = spans.overlaps(masks, len(found), truth.regions, len(areas))  # [P, G]
    shared *= classes[:, None] == truth.classes
    void = spans.overlaps(masks, len(found), truth.void, 1)[:, 0]
    # A small group counts twice, as it does there.
    ignored = void + shared @ (truth.groups.astype(np.int64) + small)
    ious, objects = np.zeros(len(found)), np.full(len(found), -1)
    if len(areas):
        iou = shared / (areas + pixels[:, None] - shared)  # [P, G]; a region has pixels
        # More than a half of a union can be shared with one region only, so that above 0.5 there is no choice.
        best = iou.argmax(axis=1)
        ious = iou[np.arange(len(found)), best]
        objects = np.where(counts, np.cumsum(counts) - 1, -1)[best]
    some = pixels > 0
    return Matches(
        classes[some],
        np.array([score for _, score, _ in found], dtype=np.float64)[some],
        ious[some],
        objects[some],
        ignored[some] / pixels[some],
        np.bincount(truth.classes[counts] - 1, minlength=len(CLASS_NAMES)),
    )


def join(tables: Sequence[Matches]) -> Matches:
    """The matches of several sets of pictures as one."""
    counted = np.array([table.counted for table in tables], dtype=np.int64).reshape(-1, len(CLASS_NAMES))
    before = np.cumsum(counted.sum(axis=1)) - counted.sum(axis=1)
    objects = [np.where(t.objects < 0, -1, t.objects + first) for t, first in zip(tables, before, strict=True)]
    none = np.zeros(0)
    return Matches(
        np.concatenate([none.astype(np.int64), *(table.classes for table in tables)]),
        np.concatenate([none, *(table.scores for table in tables)]),
        np.concatenate([none, *(table.ious for table in tables)]),
        np.concatenate([none.astype(np.int64), *objects]),
        np.concatenate([none, *(table.ignored for table in tables)]),
        counted.sum(axis=0),
    )


def evaluate_cityscapes(matches: Matches) -> CityscapesAp:
    """AP of all pictures."""
    aps = np.array([_class_aps(matches, class_) for class_ in range(1, len(CLASS_NAMES) + 1)])
    return CityscapesAp(
        stats={"AP": _mean(aps), "AP50": _mean(aps[:, 0])},
        per_class={name: float(np.average(row)) for name, row in zip(CLASS_NAMES, aps, strict=True)},
        per_class_50={name: float(row[0]) for name, row in zip(CLASS_NAMES, aps, strict=True)},
        instances=dict(zip(CLASS_NAMES, matches.counted.tolist(), strict=True)),
        aps=aps,
    )


def _class_aps(matches: Matches, class_: int) -> Floats:
    """AP [T] of one class."""
    objects_in_all = int(matches.counted[class_ - 1])
    if not objects_in_all:
        return np.full(len(OVERLAPS), math.nan)
    # By object, of each the best scored first.
    mine = np.flatnonzero(matches.classes == class_)
    mine = mine[np.lexsort((-matches.scores[mine], matches.objects[mine]))]
    scores, objects = matches.scores[mine], matches.objects[mine]
    ious, ignored = matches.ious[mine], matches.ignored[mine]
    aps = np.zeros(len(OVERLAPS))
    for place, overlap in enumerate(OVERLAPS):
        hits = ious > overlap
        of_object = np.flatnonzero(hits & (objects >= 0))
        first = np.diff(objects[of_object], prepend=-1) > 0  # the others of an object are false
        true, doubles = scores[of_object[first]], scores[of_object[~first]]
        false = np.concatenate((doubles, scores[~hits & (ignored <= overlap)]))
        aps[place] = _area(true, false, objects_in_all)
    return aps


def _area(true: Floats, false: Floats, objects: int) -> float:
    """Area under precision over recall of detections with these scores, integrated as the official script does."""
    scores = np.concatenate((true, false))
    if not len(scores):
        return 0.0
    order = np.argsort(scores, kind="stable")
    _, firsts = np.unique(scores[order], return_index=True)  # [N] of each score, ascending, the first detection
    true_below = np.concatenate(([0], np.cumsum(order < len(true))))[firsts]  # [N]
    hits = len(true) - true_below
    precision = np.append(hits / (len(scores) - firsts), 1.0)  # no detection at all: 1
    recall = np.append(hits / objects, 0.0)
    # The step of a point reaches half the way to the point before and to the one after it.
    padded = np.concatenate((recall[:1], recall, [0.0]))
    return float(precision @ (0.5 * padded[:-2] - 0.5 * padded[2:]))


def _checked(result: Mapping[str, Any], truth: "Truth") -> tuple[int, float, bytes]:
    """Class (0: not scored), score and counts of a result."""
    label, score, shape = result["category_id"], float(result["score"]), result.get("segmentation")
    if label not in LABEL_IDS:
        raise UserError(f"a detection's category_id must be a label id of Cityscapes, got {label}; see its labels.py")
    if not math.isfinite(score):
        raise UserError(f"a detection needs a finite score, got {score}; drop it, or look for NaN weights")
    if shape is None:
        raise UserError(
            f"Cityscapes' protocol scores masks, and a detection has only {sorted(result)}; predict masks too, or set "
            "evaluate.protocol=coco"
        )
    if list(shape["size"]) != [truth.height, truth.width]:
        raise UserError(
            f"a detection needs a mask of its picture's size {[truth.height, truth.width]} (height, width), got "
            f"{list(shape['size'])}; paste masks in the original picture, not in the network's input"
        )
    counts = shape["counts"]
    class_ = CATEGORY_IDS.index(label) + 1 if label in CATEGORY_IDS else 0
    return class_, score, counts if isinstance(counts, bytes) else counts.encode("ascii", errors="replace")


def _mean(aps: Floats) -> float:
    """Over what is defined; NaN if nothing is."""
    return math.nan if np.isnan(aps).all() else float(np.nanmean(aps))
