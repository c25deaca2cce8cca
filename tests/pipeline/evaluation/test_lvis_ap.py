"""LVIS's federated AP against a plain implementation of its rules (Gupta et al. 2019, and lvis-api)."""

import math
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_truth import style_of

RANGES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def federated(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    categories = [{"id": c, "name": f"class {c}", "frequency": "rcfrcf"[c % 6]} for c in (2, 9, 4, 1, 7)]
    ids = [c["id"] for c in categories]
    images, annotations, results = [], [], []
    for image in range(1, 13):
        present = [int(c) for c in rng.permutation(ids)[: rng.integers(0, 4)]]
        absent = [c for c in ids if c not in present and rng.random() < 0.3]
        partial = [c for c in present if rng.random() < 0.4]
        images.append(
            {"id": image, "height": 300, "width": 300, "neg_category_ids": absent}
            | {"not_exhaustive_category_ids": partial}
        )
        for category in present:
            for _ in range(int(rng.integers(1, 4))):
                w, h = np.exp(rng.uniform(2, 5.2, 2))
                box = [float(rng.uniform(0, 300 - w)), float(rng.uniform(0, 300 - h)), float(w), float(h)]
                annotations.append(
                    {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3] * 0.8}
                )
                for _ in range(int(rng.integers(0, 4))):
                    moved = (np.array(box) + rng.normal(0, 0.07, 4) * [w, h, w, h]).clip(0.5, None).tolist()
                    results.append({"image_id": image, "category_id": category, "bbox": moved})
        for _ in range(int(rng.integers(0, 12)) if image != 3 else 400):  # more than 300 of one image
            box = [float(v) for v in rng.uniform(1, 120, 4)]
            results.append({"image_id": image, "category_id": int(rng.choice(ids)), "bbox": box})
    for result in results:
        result["score"] = round(float(rng.random()), 2)
    return {"images": images, "categories": categories, "annotations": annotations}, results


def iou(a: list[float], b: list[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = w * h if w > 0 and h > 0 else 0.0
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def match(
    found: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    threshold: float,
    area: tuple[float, float],
    all_seen: bool,
) -> tuple[list[tuple[float, bool]], int]:
    """(score, hit) of the detections that count in one image and class, and how many objects there are to find."""
    outside = [not area[0] <= o["area"] <= area[1] for o in objects]
    taken: set[int] = set()
    rows = []
    for one in sorted(found, key=lambda r: -r["score"]):
        best, chosen = min(threshold, 1 - 1e-10), None
        for ignored in (False, True):  # an object that does not count is taken only where no other fits
            if chosen is not None:
                break
            for place, thing in enumerate(objects):
                if outside[place] == ignored and place not in taken and iou(one["bbox"], thing["bbox"]) >= best:
                    best, chosen = iou(one["bbox"], thing["bbox"]), place
        if chosen is None:
            counts = all_seen and area[0] <= one["bbox"][2] * one["bbox"][3] <= area[1]
        else:
            taken.add(chosen)
            counts = not outside[chosen]
        if counts:
            rows.append((one["score"], chosen is not None))
    return rows, outside.count(False)


def naive(truth: dict[str, Any], results: list[dict[str, Any]], limit: int = 300) -> dict[str, float]:
    kept = []
    for image in truth["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        kept += sorted(own, key=lambda r: -r["score"])[:limit]
    precision: dict[tuple[float, int, str], list[float]] = {}
    recall: dict[tuple[float, int, str], float] = {}
    for category in (c["id"] for c in truth["categories"]):
        for name, area in RANGES.items():
            for threshold in THRESHOLDS:
                rows: list[tuple[float, bool]] = []
                total = 0
                for image in truth["images"]:
                    key = (image["id"], category)
                    objects = [a for a in truth["annotations"] if (a["image_id"], a["category_id"]) == key]
                    if not objects and category not in image["neg_category_ids"]:
                        continue  # nobody looked for it: what is found there is neither right nor wrong
                    found = [r for r in kept if (r["image_id"], r["category_id"]) == key]
                    all_seen = category not in image["not_exhaustive_category_ids"]
                    more, count = match(found, objects, threshold, area, all_seen)
                    rows, total = rows + more, total + count
                if not total:
                    continue
                hits = np.cumsum([hit for _, hit in sorted(rows, key=lambda row: -row[0])])
                right = hits / (np.arange(len(hits)) + 1)
                reached = hits / total
                at = [max(right[reached >= r], default=0.0) for r in np.linspace(0, 1, 101)]
                precision[threshold, category, name] = [float(v) for v in at]
                recall[threshold, category, name] = float(reached[-1]) if len(hits) else 0.0
    frequency = {c["id"]: c["frequency"] for c in truth["categories"]}

    def ap(area: str = "all", only: float | None = None, kind: str = "rcf") -> float:
        chosen = [
            v
            for (t, c, a), v in precision.items()
            if a == area and (only is None or math.isclose(t, only)) and frequency[c] in kind
        ]
        return float(np.mean(chosen)) if chosen else math.nan

    def ar(area: str = "all") -> float:
        chosen = [v for (_, _, a), v in recall.items() if a == area]
        return float(np.mean(chosen)) if chosen else math.nan

    return {
        "AP": ap(),
        "AP50": ap(only=0.5),
        "AP75": ap(only=0.75),
        "AP_small": ap("small"),
        "AP_medium": ap("medium"),
        "AP_large": ap("large"),
        "AP_rare": ap(kind="r"),
        "AP_common": ap(kind="c"),
        "AP_frequent": ap(kind="f"),
        "AR_300": ar(),
        "AR_small": ar("small"),
        "AR_medium": ar("medium"),
        "AR_large": ar("large"),
    }


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_rules_written_down(seed: int) -> None:
    truth, results = federated(seed)
    assert style_of(truth) == "lvis"
    ap = evaluate_coco(truth, results, "box", style="lvis")
    expected = naive(truth, results)
    assert list(ap.stats) == list(expected)
    assert ap.stats == pytest.approx(expected, abs=1e-12, nan_ok=True)
    plain = evaluate_coco(truth, results, "box")
    assert plain.stats["AP"] != ap.stats["AP"]  # the federated rules do something


def test_a_subset_of_classes_keeps_the_limit_of_all() -> None:
    truth, results = federated(1)
    ap = evaluate_coco(truth, results, "box", style="lvis", categories=["class 9", "class 4"])
    everything = evaluate_coco(truth, results, "box", style="lvis")
    assert ap.per_class == {name: everything.per_class[name] for name in ("class 4", "class 9")}


def test_coco_files_are_no_lvis_and_pycocotools_does_not_know_it() -> None:
    truth, results = federated(0)
    plain = {**truth, "categories": [{k: c[k] for k in ("id", "name")} for c in truth["categories"]]}
    assert style_of(plain) == "coco"
    with pytest.raises(UserError, match="needs engine columns or hotcoco, got pycocotools"):
        evaluate_coco(truth, results, "box", "pycocotools", "lvis")
    with pytest.raises(UserError, match="LVIS has no keypoint task"):
        evaluate_coco(truth, results, "keypoint", style="lvis")
