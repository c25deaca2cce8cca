"""COCO average precision of boxes or masks, by a compiled engine (hotcoco) or by pycocotools, with equal numbers.

Shape legend: T 10 IoU thresholds, R 101 recall thresholds, K classes, A 4 area ranges, M 3 limits of detections.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import hotcoco
import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.config import Engine
from pipeline.errors import UserError

Task = Literal["bbox", "segm"]
Floats = npt.NDArray[np.float64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # axis T
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # axis R
AREA_RANGES = ("all", "small", "medium", "large")  # axis A: small < 32^2 pixels^2 < medium < 96^2 < large
MAX_DETECTIONS = (1, 10, 100)  # axis M, an image and class
STAT_NAMES = (  # COCO's official order
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


@dataclass(frozen=True)
class CocoAp:
    """One task's numbers, 0..1. NaN where COCO says -1: there is no ground truth to find."""

    task: Task
    stats: dict[str, float]  # the 12 of STAT_NAMES, in that order
    per_class: dict[str, float]  # class name -> AP (all thresholds and areas, 100 detections), in order of category id
    instances: dict[str, int]  # class name -> ground-truth objects, crowd regions not counted
    precision: Floats  # [T, R, K, A, M], -1 where there is no ground truth
    recall: Floats  # [T, K, A, M], -1 where there is no ground truth

    def precision_curve(self, iou: float | None) -> Floats:
        """[R] precision at RECALL_THRESHOLDS, mean over classes, at one IoU threshold or (None) over all of them."""
        at = self.precision[:, :, :, 0, -1]  # [T, R, K]
        if iou is not None:
            (index,) = np.nonzero(np.isclose(IOU_THRESHOLDS, iou))
            if not index.size:
                known = ", ".join(f"{t:.2f}" for t in IOU_THRESHOLDS)
                raise ValueError(f"COCO's IoU thresholds are {known}, got {iou}; choose one of them")
            at = at[index]
        present = at[0, 0] > -1  # [K]: no ground truth means -1 everywhere
        if not present.any():
            return np.full(at.shape[1], np.nan)
        return np.asarray(at[:, :, present].mean(axis=(0, 2)), dtype=np.float64)


def evaluate_coco(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], task: Task, engine: Engine = "hotcoco"
) -> CocoAp:
    """COCO's AP and AR of `results` against `ground_truth`; neither is changed.

    Args:
        ground_truth: COCO's annotation file in memory: "images" (id, height, width), "categories" (id, name) and
            "annotations" (image_id, category_id, bbox xywh in pixels, area in pixels^2, iscrowd, segmentation).
        results: COCO's results format (image_id, category_id, score, and bbox or segmentation).
        task: "bbox" scores boxes. "segm" scores masks, and takes a detection's area from its mask: pycocotools would
            take the box's if a result has one, which moves objects to another size range.
        engine: "hotcoco" or "pycocotools"; the numbers are equal bit for bit.
    """
    truth = _ground_truth(ground_truth, task)
    found = _results(results, truth, task)
    precision, recall = _ENGINES[engine](truth, found, task)
    names = class_names(truth["categories"])
    counted = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    return CocoAp(
        task=task,
        stats=_summary(precision, recall),
        per_class={name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names.values())},
        instances={name: counted[category] for category, name in names.items()},
        precision=precision,
        recall=recall,
    )


def class_names(categories: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Category id -> name, by rising id, as axis K has them; of equal names each gets its id added."""
    ordered = sorted(categories, key=lambda c: int(c["id"]))
    uses = Counter(str(c["name"]) for c in ordered)
    return {int(c["id"]): f"{c['name']} ({c['id']})" if uses[c["name"]] > 1 else str(c["name"]) for c in ordered}


def _ground_truth(source: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A checked copy with just what the engines read, so that they cannot differ over anything else."""
    images = [{"id": i["id"], "height": i["height"], "width": i["width"]} for i in source["images"]]
    categories = [{"id": c["id"], "name": c["name"]} for c in source["categories"]]
    image_ids = _unique([i["id"] for i in images], "image")
    category_ids = _unique([c["id"] for c in categories], "category")
    if not image_ids or not category_ids:
        raise UserError(
            f"AP needs images and categories, got {len(images)} and {len(categories)}; check the validation data"
        )
    needed = ["image_id", "category_id", "bbox", "area", *(["segmentation"] if task == "segm" else [])]
    annotations = []
    for number, source_annotation in enumerate(source["annotations"], start=1):
        what = f"annotation {source_annotation.get('id', number)} of the ground truth"
        missing = [key for key in needed if key not in source_annotation]
        if missing:
            raise UserError(f"{what} needs {', '.join(needed)}, but has no {', '.join(missing)}; add it to the data")
        annotation = {key: source_annotation[key] for key in needed}
        _check_ids(annotation, image_ids, category_ids, what)
        # pycocotools takes an annotation with id 0 for "no match", so ours count from 1.
        annotations.append({**annotation, "id": number, "iscrowd": int(source_annotation.get("iscrowd", 0))})
    return {"images": images, "categories": categories, "annotations": annotations}


def _results(source: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], task: Task) -> list[dict[str, Any]]:
    """Checked copies with only the task's geometry (the engines write into what they get)."""
    key = "segmentation" if task == "segm" else "bbox"
    sizes = {i["id"]: [i["height"], i["width"]] for i in truth["images"]}
    category_ids = {c["id"] for c in truth["categories"]}
    copies = []
    for number, result in enumerate(source):  # half a million of them for COCO's val2017: nothing slow in here
        image, category, score, shape = result["image_id"], result["category_id"], result["score"], result.get(key)
        if image not in sizes or category not in category_ids:
            _check_ids(result, sizes.keys(), category_ids, f"result {number}")
        if not math.isfinite(score):
            raise UserError(f"result {number} needs a finite score, got {score}; drop it, or look for NaN weights")
        if shape is None:
            fix = "evaluate boxes only, or predict masks too" if task == "segm" else "add the box, xywh in pixels"
            raise UserError(f"result {number} needs {key!r} for task {task!r}, got only {sorted(result)}; {fix}")
        if task == "segm":
            if list(shape["size"]) != sizes[image]:
                raise UserError(
                    f"result {number} needs a mask of its image's size {sizes[image]} (height, width), got "
                    f"{list(shape['size'])}; paste masks in the original image, not in the network's input"
                )
            geometry: Any = {"size": sizes[image], "counts": shape["counts"]}
        else:
            geometry = list(map(float, shape))
            if len(geometry) != 4 or not math.isfinite(sum(geometry)) or geometry[2] < 0 or geometry[3] < 0:
                raise UserError(
                    f"result {number} needs a bbox [x, y, width, height] of finite pixels, got {shape}; drop it"
                )
        copies.append({"image_id": image, "category_id": category, "score": float(score), key: geometry})
    return copies


def _unique(ids: list[int], what: str) -> set[int]:
    repeated = sorted(i for i, uses in Counter(ids).items() if uses > 1)
    if repeated:
        raise UserError(f"{what} ids of the ground truth must be unique, got {repeated[:5]} twice; renumber them")
    return set(ids)


def _check_ids(row: Mapping[str, Any], image_ids: Iterable[int], category_ids: Iterable[int], what: str) -> None:
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if row[key] not in known:
            some = ", ".join(map(str, sorted(known)[:5]))
            raise UserError(
                f"{what} needs a {key} of the ground truth (it has {some}, ...), got {row[key]}; "
                "evaluate on the data set that was predicted on"
            )


def _run_hotcoco(truth: dict[str, Any], found: list[dict[str, Any]], task: Task) -> tuple[Floats, Floats]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]."""
    source = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(source, source.load_res(found), task)
    evaluator.evaluate()
    evaluator.accumulate()
    return _arrays(evaluator.eval)


def _run_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]], task: Task) -> tuple[Floats, Floats]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress, and has no switch for that
        source = COCO()
        source.dataset = truth
        source.createIndex()
        if found:
            detected = source.loadRes(found)
        else:  # loadRes looks at the first result
            detected = COCO()
            detected.dataset = {**truth, "annotations": []}
            detected.createIndex()
        evaluator = COCOeval(source, detected, task)
        evaluator.evaluate()
        evaluator.accumulate()
    return _arrays(evaluator.eval)


def _arrays(evaluated: Mapping[str, Any] | None) -> tuple[Floats, Floats]:
    assert evaluated is not None  # after accumulate()
    return np.asarray(evaluated["precision"], dtype=np.float64), np.asarray(evaluated["recall"], dtype=np.float64)


_ENGINES: dict[Engine, Callable[[dict[str, Any], list[dict[str, Any]], Task], tuple[Floats, Floats]]] = {
    "hotcoco": _run_hotcoco,
    "pycocotools": _run_pycocotools,
}


def _summary(precision: Floats, recall: Floats) -> dict[str, float]:
    """cocoeval.py: summarize, without its print-out."""
    values = [
        _mean(precision[:, :, :, 0, -1]),
        _mean(precision[0, :, :, 0, -1]),  # IoU .50
        _mean(precision[5, :, :, 0, -1]),  # IoU .75
        *(_mean(precision[:, :, :, area, -1]) for area in (1, 2, 3)),
        *(_mean(recall[:, :, 0, limit]) for limit in (0, 1, 2)),
        *(_mean(recall[:, :, area, -1]) for area in (1, 2, 3)),
    ]
    return dict(zip(STAT_NAMES, values, strict=True))


def _mean(values: Floats) -> float:
    """Mean of what is defined (not -1), NaN if nothing is."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else math.nan
