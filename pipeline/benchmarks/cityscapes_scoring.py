"""What scoring by Cityscapes' protocols costs: ours against cityscapesscripts, on generated streets, in one process.

Both score the same detections and label maps in turn; CPU time is the process's. As in a run, ours gets detections as
run lengths and reads the ground truth from shards. The official script reads the released files' layout and a
submission, whose writing is counted apart; so is the mere decoding of its masks, which faster arithmetic cannot spare.
Label maps are read from the same PNGs by both.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.benchmarks.cityscapes_peer import official_ap, official_iou
from pipeline.data import rle
from pipeline.data.cityscapes import GROUND_TRUTH, PICTURES, read_cityscapes
from pipeline.data.cityscapes_labels import CATEGORY_IDS
from pipeline.data.quarantine import Quarantine
from pipeline.data.records import Record
from pipeline.data.sharding import shard_dataset
from pipeline.data.streets import generate_streets
from pipeline.evaluation.cityscapes_shards import score_shards
from pipeline.evaluation.cityscapes_submission import write_picture
from pipeline.evaluation.cityscapes_truth import label_map, read_ground_truth
from pipeline.evaluation.semantic import score_label_maps

Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Scoring:
    """CPU milliseconds a picture: the median of the rounds."""

    pictures: int
    detections: float  # a picture
    ap_ms: float
    official_ap_ms: float
    writing_ms: float  # the submission
    decoding_ms: float  # of the submission's masks alone
    iou_ms: float
    official_iou_ms: float
    difference: float  # the largest between one of our numbers and the official one


def measure_scoring(
    directory: Path,
    *,
    pictures: int,
    height_px: int,
    detections: int,
    rounds: int,
    seed: int = 0,
    on_round: Callable[[int], None] | None = None,
) -> Scoring:
    """Generate streets with detections and label maps below `directory`, and score them.

    Args:
        directory: for all files.
        pictures: how many.
        height_px: of a picture, which is twice as wide. Cityscapes' are 1024.
        detections: a picture, about.
        rounds: in which ours and the official scripts take turns.
        seed: of everything.
        on_round: told how many rounds are done.
    """
    root, shards, submission = directory / "cityscapes", directory / "shards", directory / "submission"
    generate_streets(root, train=0, val=pictures, seed=seed, height_px=height_px, workers=1)
    shard_dataset(read_cityscapes(root, "val", Quarantine(strict=True)), shards)
    instance_ids, label_ids, label_maps = [], [], {}
    found: dict[int, Results] = {}
    writing = 0.0
    for record in read_ground_truth(shards):
        rng = np.random.default_rng([seed, record["sample_id"]])
        results = found[record["sample_id"]] = invent_detections(rng, record, detections)
        began = time.process_time()
        write_picture(submission, record["file_name"], results)
        writing += time.process_time() - began
        stem = str(root / record["file_name"]).replace(f"_{PICTURES}.png", "").replace(PICTURES, GROUND_TRUTH)
        instance_ids.append(Path(f"{stem}_{GROUND_TRUTH}_instanceIds.png"))
        label_ids.append(Path(f"{stem}_{GROUND_TRUTH}_labelIds.png"))
        path = label_maps[record["sample_id"]] = directory / f"{PurePosixPath(stem).name}_labels.png"
        Image.fromarray(_noisy(rng, label_map(record))).save(path)

    def ap() -> NDArray[np.float64]:
        return score_shards(shards, found).aps

    def iou() -> list[float]:
        return list(score_label_maps(shards, lambda record: _read(label_maps[record["sample_id"]])).stats.values())

    def decode() -> None:
        for path in submission.rglob("*.png"):
            _read(path)

    parts: list[Callable[[], Any]] = [
        ap,
        lambda: official_ap(instance_ids, submission)["matrix"],
        decode,
        iou,
        lambda: _means(official_iou(label_ids, [*label_maps.values()])),
    ]
    milliseconds: list[list[float]] = [[] for _ in parts]
    scores: list[Any] = []
    for number in range(rounds):
        scores = []
        for part, took in zip(parts, milliseconds, strict=True):
            began = time.process_time()
            scores.append(part())
            took.append(1000 * (time.process_time() - began) / pictures)
        if on_round is not None:
            on_round(number + 1)
    ap_ms, official_ap_ms, decoding_ms, iou_ms, official_iou_ms = map(statistics.median, milliseconds)
    return Scoring(
        pictures=pictures,
        detections=sum(map(len, found.values())) / pictures,
        ap_ms=ap_ms,
        official_ap_ms=official_ap_ms,
        writing_ms=1000 * writing / pictures,
        decoding_ms=decoding_ms,
        iou_ms=iou_ms,
        official_iou_ms=official_iou_ms,
        difference=max(_difference(scores[0], scores[1]), _difference(scores[3], scores[4])),
    )


def invent_detections(rng: np.random.Generator, record: Record, count: int) -> Results:
    """What a network might find in a picture: its objects, moved a little, and ellipses anywhere."""
    height, width = record["height"], record["width"]
    results: Results = []
    for counts, class_ in zip(record["rles"], record["classes"], strict=True):
        mask = np.roll(rle.to_mask(counts, height, width), rng.integers(-3, 4, 2), axis=(0, 1))
        results.append(_result(mask, CATEGORY_IDS[class_ - 1], rng.beta(4, 2)))
    y, x = np.ogrid[:height, :width]
    while len(results) < count:
        centre, radii = rng.uniform((0, 0), (height, width)), rng.uniform(0.01, 0.1, 2) * height
        mask = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        results.append(_result(mask, int(rng.choice(CATEGORY_IDS)), rng.beta(1, 4)))
    return results


def _result(mask: NDArray[Any], label: int, score: float) -> dict[str, Any]:
    segmentation = {"size": list(mask.shape), "counts": rle.from_mask(mask).decode("ascii")}
    return {"category_id": label, "score": score, "segmentation": segmentation}


def _noisy(rng: np.random.Generator, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels with rectangles of other labels."""
    noisy, (height, width) = labels.copy(), labels.shape
    for _ in range(20):
        y, x = rng.integers(0, height), rng.integers(0, width)
        noisy[y : y + height // 10, x : x + height // 10] = rng.integers(0, 34)
    return noisy


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _means(official: dict[str, Any]) -> list[float]:
    return [official[f"averageScore{kind}"] for kind in ("Classes", "InstClasses", "Categories", "InstCategories")]


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest; infinite where one is defined and the other is not."""
    a, b = np.asarray(ours), np.asarray(theirs)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    return float(np.nan_to_num(np.abs(a - b)).max())
