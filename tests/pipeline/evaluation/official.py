"""The official evaluator, called as its own users call it: the oracle of what our engines say."""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def official(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str,
    *,
    sigmas: Sequence[float] | None = None,
    limits: Sequence[int] | None = None,
    classes: bool = True,
    category_ids: Sequence[int] | None = None,
) -> Arrays:
    """Stats (empty with other limits than the official ones), precision and recall of pycocotools."""
    keys = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
    with contextlib.redirect_stdout(io.StringIO()):
        source = COCO()
        source.dataset = copy.deepcopy(truth)
        for number, annotation in enumerate(source.dataset["annotations"], start=1):
            annotation["id"] = number
        source.createIndex()
        kept = ("image_id", "category_id", "score", keys[iou_type])
        evaluator = COCOeval(source, source.loadRes([{k: copy.copy(r[k]) for k in kept} for r in results]), iou_type)
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        if limits is not None:
            evaluator.params.maxDets = list(limits)
        if category_ids is not None:
            evaluator.params.catIds = list(category_ids)
        evaluator.params.useCats = int(classes)
        evaluator.evaluate()
        evaluator.accumulate()
        if limits is None:
            evaluator.summarize()
    evaluated = evaluator.eval
    assert evaluated is not None
    return np.asarray(evaluator.stats), evaluated["precision"], evaluated["recall"]
