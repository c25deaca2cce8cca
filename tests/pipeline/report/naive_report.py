"""Slow and plain versions of what a report counts, for boxes: loops over images, detections and objects."""

from collections import defaultdict
from typing import Any

import numpy as np

KINDS = ("class", "place", "class and place", "duplicate", "background")


def iou(a: list[float], b: list[float], crowd: bool = False) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


class Naive:
    """COCO's matching at .5 and TIDE's questions, one detection after the other."""

    def __init__(self, truth: dict[str, Any], results: list[dict[str, Any]], limit: int = 100) -> None:
        self.truth = truth
        self.results = [dict(r, place=n) for n, r in enumerate(results)]
        self.verdict: dict[int, str] = {}
        self.meant: dict[int, dict[str, Any]] = {}
        self.found: set[int] = set()  # annotation ids
        self.objects = [a for a in truth["annotations"] if not a["iscrowd"]]
        self.order: list[dict[str, Any]] = []  # by image, then falling score
        for image in sorted(i["id"] for i in truth["images"]):
            of_image = sorted((r for r in self.results if r["image_id"] == image), key=lambda r: -r["score"])
            taken: dict[int, int] = defaultdict(int)
            for result in of_image:
                taken[result["category_id"]] += 1
                if taken[result["category_id"]] <= limit:
                    self.order.append(result)
                    self._match(result, image)
        for result in self.order:
            if result["place"] not in self.verdict:
                self._explain(result)

    def _match(self, result: dict[str, Any], image: int) -> None:
        mine = [
            a for a in self.truth["annotations"] if a["image_id"] == image and a["category_id"] == result["category_id"]
        ]
        best, most = None, 0.5
        for a in mine:
            if not a["iscrowd"] and a["id"] not in self.found and iou(result["bbox"], a["bbox"]) >= most:
                best, most = a, iou(result["bbox"], a["bbox"])
        if best is not None:
            self.found.add(best["id"])
            self.verdict[result["place"]] = "right"
            self.meant[result["place"]] = best
        elif any(a["iscrowd"] and iou(result["bbox"], a["bbox"], True) >= 0.5 for a in mine):
            self.verdict[result["place"]] = "ignored"

    def _explain(self, result: dict[str, Any]) -> None:
        here = [a for a in self.objects if a["image_id"] == result["image_id"]]

        def best(rows: list[dict[str, Any]]) -> tuple[float, dict[str, Any] | None]:
            top, chosen = 0.0, None
            for a in rows:
                if iou(result["bbox"], a["bbox"]) > top:
                    top, chosen = iou(result["bbox"], a["bbox"]), a
            return top, chosen

        same, same_object = best([a for a in here if a["category_id"] == result["category_id"]])
        other, other_object = best([a for a in here if a["category_id"] != result["category_id"]])
        if 0.1 <= same < 0.5:
            verdict, meant = "place", same_object
        elif other >= 0.5:
            verdict, meant = "class", other_object
        elif same >= 0.5:
            verdict, meant = "duplicate", same_object
        elif max(same, other) >= 0.1:
            verdict, meant = "class and place", None
        else:
            verdict, meant = "background", None
        self.verdict[result["place"]] = verdict
        if meant is not None:
            self.meant[result["place"]] = meant

    def missed(self) -> list[dict[str, Any]]:
        meant = {self.meant[p]["id"] for p, v in self.verdict.items() if v in ("class", "place")}
        return [a for a in self.objects if a["id"] not in self.found and a["id"] not in meant]

    def ap(self, rows: list[tuple[float, int, bool]], asked: dict[int, int]) -> float:
        """Mean AP of (score, class, right) in order; a class with objects of which none is asked for has AP 1."""
        aps = []
        for category in sorted({a["category_id"] for a in self.objects}):
            mine = sorted((r for r in rows if r[1] == category), key=lambda r: -r[0])
            if not asked[category]:
                aps.append(1.0)
                continue
            curve, hits = [], 0
            for n, (_, _, right) in enumerate(mine, start=1):
                hits += right
                curve.append((hits / asked[category], hits / n))
            points = [max((p for r, p in curve if r >= want), default=0.0) for want in np.linspace(0, 1, 101)]
            aps.append(sum(points) / 101)
        return sum(aps) / len(aps)

    def costs(self) -> dict[str, float]:
        counted: dict[int, int] = defaultdict(int)
        for a in self.objects:
            counted[a["category_id"]] += 1
        base = self.ap(self._rows(None), counted)
        gains = {kind: self.ap(self._rows(kind), counted) - base for kind in KINDS}
        fewer = dict(counted)
        for a in self.missed():
            fewer[a["category_id"]] -= 1
        gains["missed"] = self.ap(self._rows(None), fewer) - base
        return {"ap": base, **gains}

    def _rows(self, mend: str | None) -> list[tuple[float, int, bool]]:
        rows = []
        for r in self.order:
            verdict = self.verdict[r["place"]]
            if verdict == "ignored":
                continue
            if verdict != mend:
                rows.append((r["score"], r["category_id"], verdict == "right"))
            elif mend in ("class", "place") and self._is_best(r):
                rows.append((r["score"], self.meant[r["place"]]["category_id"], True))
        return rows

    def _is_best(self, result: dict[str, Any]) -> bool:
        """Whether the object is free, and none before this detection means it with a wrong class or place."""
        meant = self.meant[result["place"]]["id"]
        rivals = [
            r["place"]
            for r in self.order
            if self.verdict[r["place"]] in ("class", "place") and self.meant[r["place"]]["id"] == meant
        ]
        return meant not in self.found and rivals[0] == result["place"]

    def confusion(self, min_score: float, classes: list[int]) -> np.ndarray:
        """Objects and detections by class, background last."""
        place = {category: k for k, category in enumerate(classes)}
        matrix = np.zeros((len(classes) + 1, len(classes) + 1), dtype=np.int64)
        taken: set[int] = set()
        for r in self.order:
            if r["score"] < min_score:
                continue
            free = [
                (iou(r["bbox"], a["bbox"]), a)
                for a in self.objects
                if a["image_id"] == r["image_id"] and a["id"] not in taken
            ]
            top = max((v for v, _ in free), default=0.0)
            if top >= 0.5:
                chosen = next(a for v, a in free if v == top)
                taken.add(chosen["id"])
                matrix[place[chosen["category_id"]], place[r["category_id"]]] += 1
            elif self.verdict[r["place"]] != "ignored":
                matrix[-1, place[r["category_id"]]] += 1
        for a in self.objects:
            if a["id"] not in taken:
                matrix[place[a["category_id"]], -1] += 1
        return matrix


def scene(
    seed: int, images: int = 12, classes: int = 3, grid: bool = False, ties: bool = True, crowds: float = 0.15
) -> tuple[dict[str, Any], list[Any]]:
    """Random truth and results: crowds, empty images, equal scores (and with `grid` equal overlaps), all errors."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 3 * i + 1, "width": 100, "height": 100} for i in range(images)],
        "categories": [{"id": 2 * k + 5, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    results = []

    def box() -> list[float]:
        if grid:
            return [float(v) for v in (*rng.integers(0, 6, 2) * 10, *rng.integers(1, 4, 2) * 10)]
        return [float(v) for v in (*rng.uniform(0, 60, 2), *rng.uniform(4, 40, 2))]

    for image in truth["images"]:
        for _ in range(int(rng.integers(0, 6))):
            given, category = box(), int(rng.choice([c["id"] for c in truth["categories"]]))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": given,
                    "area": given[2] * given[3],
                    "iscrowd": int(rng.random() < crowds),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = given if grid else (np.array(given) + rng.normal(0, 4, 4)).clip(1).tolist()
                results.append((image["id"], category if rng.random() < 0.6 else 5, moved))
        results += [(image["id"], int(rng.choice([5, 7])), box()) for _ in range(int(rng.integers(0, 3)))]
    found = [
        {"image_id": i, "category_id": c, "bbox": b, "score": round(float(rng.random()), 1)} for i, c, b in results
    ]
    if not ties:
        for result, rank in zip(found, rng.permutation(len(found)), strict=True):
            result["score"] = float((rank + 1) / (len(found) + 2))
    return truth, [found[n] for n in rng.permutation(len(found))]
