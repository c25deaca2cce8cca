"""What each detection hit, or what is wrong with it, and which objects were found: all that a report counts.

    diagnosis = diagnose(truth, found)       # what check_truth and check_results gave

Matching is COCO's at one overlap (IoU, for keypoints OKS) of .5: by falling score, within a class, crowd and other
ignored objects as COCO has them. What is wrong with a false alarm is said as TIDE does (Bolya et al., ECCV 2020, and
its code where that is more precise): by its overlap with the objects of the picture, .5 to hit and .1 to be near.

Legend: D detections that count, by image and then by falling score; G objects that count (no crowd); K classes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.coco_ap import class_names
from pipeline.evaluation.coco_truth import Json, Truth
from pipeline.report.overlaps import overlaps_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HIT, NEAR = 0.5, 0.1  # TIDE's t_f and t_b
RIGHT, CLASS, PLACE, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)  # verdicts on detections


@dataclass(frozen=True)
class Diagnosis:
    """Verdicts on detections and objects; places in `found` and in the annotations lead back to them."""

    image_ids: Ints  # [I], rising
    category_ids: tuple[int, ...]  # K, rising
    names: tuple[str, ...]  # K
    # detections
    places: Ints  # [D], in the checked results
    images: Ints  # [D], 0..I-1
    classes: Ints  # [D], 0..K-1
    scores: Floats  # [D]
    verdicts: Ints  # [D]
    objects: Ints  # [D], the object that was hit, or that is nearest to what is wrong; -1 none
    overlaps: Floats  # [D], with that object
    # objects
    annotations: Ints  # [G], places in the checked ground truth
    object_images: Ints  # [G]
    object_classes: Ints  # [G]
    areas: Floats  # [G], pixels^2
    finders: Ints  # [G], the detection that hit it; -1 none
    # pairs of a detection and an object of any class that overlap by at least HIT, by detection, best overlap first
    pair_detections: Ints
    pair_objects: Ints

    @property
    def counted(self) -> Ints:
        """[K] objects of each class."""
        return np.bincount(self.object_classes, minlength=len(self.names))


def diagnose(truth: Truth, found: Sequence[Json]) -> Diagnosis:
    """Verdicts on checked results; see the module's docstring."""
    image_ids = np.array(sorted(truth.sizes), dtype=np.int64)
    names = class_names(truth.coco["categories"])
    place_of = {category: k for k, category in enumerate(names)}
    annotations = truth.coco["annotations"]
    objects = _columns(annotations, image_ids, place_of)
    given = _columns(found, image_ids, place_of)
    scores = np.array([r["score"] for r in found], dtype=np.float64)
    dropped, lenient = _federated(truth, given, image_ids, place_of)
    order = np.lexsort((-scores, given[0]))  # stable: equal scores in the file's order, as in pycocotools
    order = order[~dropped[order]]
    if not truth.protocol.federated:
        order = order[_ranks(given[0][order], given[1][order], len(names)) < truth.protocol.limits[-1]]
    images, classes = given[0][order], given[1][order]
    counts = np.array([not a["iscrowd"] and a.get("num_keypoints", 1) > 0 for a in annotations], dtype=np.bool_)
    crowd = np.array([bool(a["iscrowd"]) for a in annotations], dtype=np.bool_)
    by_image = np.argsort(objects[0], kind="stable")
    kept = by_image[counts[by_image]]  # G
    set_aside = by_image[~counts[by_image]]
    verdicts = np.full(len(order), BACKGROUND)
    hit, overlaps = np.full(len(order), -1), np.zeros(len(order))
    finders = np.full(len(kept), -1)
    pairs: list[tuple[Ints, Ints]] = []
    overlap = overlaps_of(truth, found, annotations)
    steps = np.arange(len(image_ids) + 1)
    ends = [np.searchsorted(column, steps) for column in (images, objects[0][kept], objects[0][set_aside])]
    for i in np.unique(images).tolist():
        d, g, a = (slice(int(end[i]), int(end[i + 1])) for end in ends)
        picture = _Picture(
            overlap(order[d], kept[g], None),
            classes[d][:, None] == objects[1][kept[g]],
            overlap(order[d], set_aside[a], crowd[set_aside[a]]) * (classes[d][:, None] == objects[1][set_aside[a]]),
            crowd[set_aside[a]],
        )
        verdicts[d], mine, overlaps[d], finder = picture.judge(lenient[order[d]])
        hit[d] = np.where(mine >= 0, mine + g.start, -1)
        finders[g] = np.where(finder >= 0, finder + d.start, -1)
        rows, columns = np.nonzero(picture.overlaps >= HIT)
        best = np.lexsort((-picture.overlaps[rows, columns], rows))
        pairs.append((rows[best] + d.start, columns[best] + g.start))
    return Diagnosis(
        image_ids=image_ids,
        category_ids=tuple(names),
        names=tuple(names.values()),
        places=order,
        images=images,
        classes=classes,
        scores=scores[order],
        verdicts=verdicts,
        objects=hit,
        overlaps=overlaps,
        annotations=kept,
        object_images=objects[0][kept],
        object_classes=objects[1][kept],
        areas=np.array([annotations[i]["area"] for i in kept.tolist()], dtype=np.float64),
        finders=finders,
        pair_detections=np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in pairs)]),
        pair_objects=np.concatenate([np.zeros(0, np.int64), *(columns for _, columns in pairs)]),
    )


@dataclass(frozen=True)
class _Picture:
    """One picture: D detections by falling score, G objects, A regions that are set aside."""

    overlaps: Floats  # [D, G]
    same: NDArray[np.bool_]  # [D, G], of one class
    ignored: Floats  # [D, A] overlaps; 0 with another class
    crowd: NDArray[np.bool_]  # [A], which may take any number of detections

    def judge(self, lenient: NDArray[np.bool_]) -> tuple[Ints, Ints, Floats, Ints]:
        """[D] verdicts, [D] objects, [D] overlaps with them, and [G] the detections that found them.

        `lenient` [D] are detections of which a false one is no error.
        """
        mine = np.where(self.same, self.overlaps, 0.0)
        hit, aside, finders = self._match(mine, lenient)
        others = np.where(self.same, 0.0, self.overlaps)
        best, best_other, best_any = (_best(o) for o in (mine, others, self.overlaps))
        # TIDE's order of questions. What overlaps an object of its class by HIT and did not hit it came second to it.
        conditions = [
            hit >= 0,
            aside,
            (best.value >= NEAR) & (best.value < HIT),
            best_other.value >= HIT,
            best.value >= HIT,
            best_any.value >= NEAR,
        ]
        verdicts = np.select(conditions, [RIGHT, IGNORED, PLACE, CLASS, DUPLICATE, BOTH], BACKGROUND)
        objects = np.select(
            conditions, [hit, -1, best.place, best_other.place, best.place, best_any.place], best_any.place
        )
        if self.overlaps.shape[1]:
            values = np.where(objects >= 0, self.overlaps[np.arange(len(objects)), objects], 0.0)
        else:
            values = np.zeros(len(objects))
        return verdicts, objects, values, finders

    def _match(self, mine: Floats, lenient: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """COCO's matching: each detection takes the free object of its class that it overlaps most, from HIT on.

        Of equal overlaps the last; a region that is set aside only where there is no object left.
        """
        hit, finders = np.full(len(mine), -1), np.full(mine.shape[1], -1)
        aside = lenient.copy()
        taken = np.zeros(len(self.crowd), dtype=np.bool_)
        for d in np.flatnonzero((mine >= HIT).any(axis=1) | (self.ignored >= HIT).any(axis=1)).tolist():
            free = np.where(finders < 0, mine[d], 0.0)
            if free.size and free.max() >= HIT:
                g = len(free) - 1 - int(free[::-1].argmax())
                hit[d], finders[g] = g, d
                continue
            free = np.where(taken, 0.0, self.ignored[d])
            if free.size and free.max() >= HIT:
                a = len(free) - 1 - int(free[::-1].argmax())
                taken[a] = not self.crowd[a]
                aside[d] = True
        return hit, aside, finders


@dataclass(frozen=True)
class _Best:
    value: Floats  # [D], 0 without objects
    place: Ints  # [D], -1 where nothing overlaps


def _best(overlaps: Floats) -> _Best:
    if not overlaps.shape[1]:
        return _Best(np.zeros(len(overlaps)), np.full(len(overlaps), -1))
    place = overlaps.argmax(axis=1)
    value = overlaps[np.arange(len(overlaps)), place]
    return _Best(value, np.where(value > 0, place, -1))


def _columns(rows: Sequence[Json], image_ids: Ints, place_of: Mapping[int, int]) -> tuple[Ints, Ints]:
    """Places of each row's image and class."""
    images = np.array([row["image_id"] for row in rows], dtype=np.int64)
    return np.searchsorted(image_ids, images), np.array([place_of[r["category_id"]] for r in rows], dtype=np.int64)


def _ranks(images: Ints, classes: Ints, count: int) -> Ints:
    """How many of the same image and class come before each detection."""
    groups = images * count + classes
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups)
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - first
    return ranks


def _federated(
    truth: Truth, given: tuple[Ints, Ints], image_ids: Ints, place_of: Mapping[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """LVIS: which results are of a class that was not looked for in their image, and of one not annotated in full."""
    dropped, lenient = np.zeros(len(given[0]), dtype=np.bool_), np.zeros(len(given[0]), dtype=np.bool_)
    if not truth.protocol.federated:
        return dropped, lenient
    known: dict[int, set[int]] = defaultdict(set)
    partial: dict[int, set[int]] = {}
    for annotation in truth.coco["annotations"]:
        known[annotation["image_id"]].add(place_of[annotation["category_id"]])
    for image in truth.coco["images"]:
        known[image["id"]] |= {place_of[c] for c in image["neg_category_ids"]}
        partial[image["id"]] = {place_of[c] for c in image["not_exhaustive_category_ids"]}
    for number, (image, k) in enumerate(zip(image_ids[given[0]].tolist(), given[1].tolist(), strict=True)):
        dropped[number] = k not in known[image]
        lenient[number] = k in partial[image]
    return dropped, lenient
