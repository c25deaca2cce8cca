"""What each task is scored by: the geometry that is compared, the ranges and limits, and the official numbers in order.

    PROTOCOLS["coco"]["keypoint"].stats    COCO's ten numbers of keypoints

Shape legend: T 10 thresholds of IoU (keypoints: OKS), R 101 recall thresholds, K classes, A area ranges, M limits of
detections.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Task = Literal["box", "mask", "keypoint", "proposal"]
Style = Literal["coco", "lvis"]
Geometry = Literal["bbox", "segmentation", "keypoints"]  # the key of a result that is compared

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # axis T
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # axis R
EPS = np.spacing(1)  # cocoeval.py adds it to what it divides by
AREA_RANGES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels²
AREAS = tuple(AREA_RANGES)
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # of LVIS's classes


class Stat(NamedTuple):
    """One number: a mean over thresholds and classes of precision (AP) or of recall (AR)."""

    name: str
    meaning: str  # for people
    iou: float | None = None  # None: all thresholds
    area: str = "all"
    limit: int | None = None  # detections an image and class; None: as many as the protocol takes
    frequency: str | None = None  # only classes of this frequency

    @property
    def is_recall(self) -> bool:
        """Whether it is an AR."""
        return self.name.startswith("AR")


@dataclass(frozen=True)
class Protocol:
    """How a task is scored."""

    task: Task
    geometry: Geometry
    iou_type: Literal["bbox", "segm", "keypoints"]  # the task's name in the engines
    areas: tuple[str, ...]  # axis A
    limits: tuple[int, ...]  # axis M, detections an image and class (LVIS: an image)
    stats: tuple[Stat, ...]  # in the official order
    classes: bool = True  # False: everything is of one class
    federated: bool = False  # in each image only some classes count (LVIS)


_PRECISION = (
    Stat("AP", "IoU .50:.95"),
    Stat("AP50", "IoU .50", 0.5),
    Stat("AP75", "IoU .75", 0.75),
    Stat("AP_small", "area < 32²", area="small"),
    Stat("AP_medium", "32² to 96²", area="medium"),
    Stat("AP_large", "area > 96²", area="large"),
)
_RECALL_BY_SIZE = (
    Stat("AR_small", "recall, area < 32²", area="small"),
    Stat("AR_medium", "recall, 32² to 96²", area="medium"),
    Stat("AR_large", "recall, area > 96²", area="large"),
)
_COCO = (
    *_PRECISION,
    Stat("AR_1", "recall, 1 detection an image", limit=1),
    Stat("AR_10", "recall, 10 detections", limit=10),
    Stat("AR_100", "recall, 100 detections", limit=100),
    *_RECALL_BY_SIZE,
)
_LVIS = (
    *_PRECISION,
    Stat("AP_rare", "classes in 1 to 10 images", frequency="r"),
    Stat("AP_common", "classes in 11 to 100 images", frequency="c"),
    Stat("AP_frequent", "classes in more images", frequency="f"),
    Stat("AR_300", "recall, 300 detections an image"),
    *_RECALL_BY_SIZE,
)
_KEYPOINT = (
    Stat("AP", "OKS .50:.95"),
    Stat("AP50", "OKS .50", 0.5),
    Stat("AP75", "OKS .75", 0.75),
    Stat("AP_medium", "32² to 96²", area="medium"),
    Stat("AP_large", "area > 96²", area="large"),
    Stat("AR", "recall, 20 detections an image"),
    Stat("AR50", "recall, OKS .50", 0.5),
    Stat("AR75", "recall, OKS .75", 0.75),
    Stat("AR_medium", "recall, 32² to 96²", area="medium"),
    Stat("AR_large", "recall, area > 96²", area="large"),
)
_PROPOSAL = (  # no precision: a proposal has no class to be right about
    Stat("AR_100", "recall, 100 proposals an image", limit=100),
    Stat("AR_300", "recall, 300 proposals", limit=300),
    Stat("AR_1000", "recall, 1000 proposals", limit=1000),
    *(stat._replace(meaning=f"{stat.meaning}, 1000 proposals") for stat in _RECALL_BY_SIZE),
)
_PROPOSALS = Protocol("proposal", "bbox", "bbox", AREAS, (100, 300, 1000), _PROPOSAL, classes=False)
PROTOCOLS: dict[Style, dict[Task, Protocol]] = {
    "coco": {
        "box": Protocol("box", "bbox", "bbox", AREAS, (1, 10, 100), _COCO),
        "mask": Protocol("mask", "segmentation", "segm", AREAS, (1, 10, 100), _COCO),
        "keypoint": Protocol("keypoint", "keypoints", "keypoints", ("all", "medium", "large"), (20,), _KEYPOINT),
        "proposal": _PROPOSALS,
    },
    "lvis": {
        "box": Protocol("box", "bbox", "bbox", AREAS, (300,), _LVIS, federated=True),
        "mask": Protocol("mask", "segmentation", "segm", AREAS, (300,), _LVIS, federated=True),
        "proposal": _PROPOSALS,
    },
}
CITYSCAPES = Protocol("mask", "segmentation", "segm", ("all",), (), _PRECISION[:2])  # of cityscapes_ap.py, no engine
STAT_NAMES = tuple(stat.name for stat in _COCO)  # of boxes and masks by COCO's protocol

# COCO's, of its persons: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles (left, then right).
_OF_PERSONS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)  # thousandths
_UNIFORM_SIGMA = 0.067  # the mean of those


def default_sigmas(count: int) -> tuple[float, ...]:
    """How far annotators place each of `count` keypoints apart, as a share of the object's scale.

    COCO's for 17 keypoints, as pycocotools takes them; else the mean of those for every keypoint, because nobody has
    measured it. A data set that knows better says so: "sigmas" beside "keypoints" in its category.
    """
    if count == len(_OF_PERSONS):
        return tuple((np.array(_OF_PERSONS) / 100 / 10.0).tolist())  # pycocotools' own division, to the last bit
    return (_UNIFORM_SIGMA,) * count
