"""What is in a data set, in numbers: gathered from records part by part, and added up.

    statistics = merge([gather(records, classes=80) for records in parts], classes=80)

Objects are the instances that are not crowd, except where a name says crowd.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HEAT_CELLS = 64  # a side of the map of box centres
SMALL_PX2, LARGE_PX2 = 32**2, 96**2  # COCO: small is an area below the first, large one from the second on
# What `gather` reads: nothing of pictures and masks.
COLUMNS = ("height", "width", "boxes", "classes", "crowd", "areas", "keypoints")


@dataclass(frozen=True)
class Statistics:
    """I images, N objects of K classes."""

    sizes: npt.NDArray[np.int32]  # [I, 2] height, width in pixels
    objects: npt.NDArray[np.int32]  # [I] of each image
    crowd: npt.NDArray[np.int32]  # [I] crowd regions of each image
    class_objects: npt.NDArray[np.int64]  # [K]
    class_crowd: npt.NDArray[np.int64]  # [K]
    class_images: npt.NDArray[np.int64]  # [K] images with such an object
    box_sides: npt.NDArray[np.float32]  # [N, 2] height, width in pixels
    areas: npt.NDArray[np.float32]  # [N] pixels^2 of the source annotation
    centres: npt.NDArray[np.int64]  # [HEAT_CELLS (y), HEAT_CELLS (x)] boxes whose centre lies there in its picture
    with_keypoints: int  # objects with at least one labelled keypoint

    @property
    def empty(self) -> int:
        """Images without any annotation."""
        return int(((self.objects + self.crowd) == 0).sum())

    def by_size(self) -> dict[str, int]:
        """Objects by COCO's ranges of area."""
        small, not_large = int((self.areas < SMALL_PX2).sum()), int((self.areas < LARGE_PX2).sum())
        return {"small": small, "medium": not_large - small, "large": len(self.areas) - not_large}

    def summary(self) -> dict[str, Any]:
        """The numbers that are small enough to print, as JSON can hold them; sides in pixels."""
        sides = self.sizes.ravel()
        many = len(self.objects)
        return {
            "images": many,
            "objects": int(self.objects.sum()),
            "crowd": int(self.crowd.sum()),
            "empty": self.empty,
            "with_keypoints": self.with_keypoints,
            "side_px": None
            if not many
            else {"min": int(sides.min()), "median": float(np.median(sides)), "max": int(sides.max())},
            "objects_an_image": None
            if not many
            else {"mean": float(self.objects.mean()), "max": int(self.objects.max())},
            "objects_by_area": self.by_size(),
        }


def gather(records: Iterable[Mapping[str, Any]], classes: int) -> Statistics:
    """The statistics of valid records of K = `classes` classes; they need COLUMNS only."""
    rows = list(records)
    objects = [
        (record, box, class_, area, points)
        for record in rows
        for box, class_, crowd, area, points in zip(
            *(record[name] for name in ("boxes", "classes", "crowd", "areas", "keypoints")), strict=True
        )
        if not crowd
    ]
    sizes = np.array([(row["height"], row["width"]) for row in rows], dtype=np.int32).reshape(-1, 2)
    boxes = np.array([box for _, box, *_ in objects], dtype=np.float64).reshape(-1, 4)
    limits = np.array([(row["height"], row["width"]) for row, *_ in objects], dtype=np.float64).reshape(-1, 2)
    centres = (boxes[:, [1, 0]] + boxes[:, [3, 2]]) / 2 / limits  # [N, 2] y, x as shares of the picture
    cells = np.clip((centres * HEAT_CELLS).astype(np.int64), 0, HEAT_CELLS - 1)
    heat = np.bincount(cells[:, 0] * HEAT_CELLS + cells[:, 1], minlength=HEAT_CELLS**2)
    return Statistics(
        sizes=sizes,
        objects=np.array([row["crowd"].count(False) for row in rows], dtype=np.int32),
        crowd=np.array([row["crowd"].count(True) for row in rows], dtype=np.int32),
        class_objects=_count((class_ for _, _, class_, *_ in objects), classes),
        class_crowd=_count(
            (c for row in rows for c, crowd in zip(row["classes"], row["crowd"], strict=True) if crowd), classes
        ),
        class_images=_count(
            (
                c
                for row in rows
                for c in {c for c, crowd in zip(row["classes"], row["crowd"], strict=True) if not crowd}
            ),
            classes,
        ),
        box_sides=(boxes[:, [3, 2]] - boxes[:, [1, 0]]).astype(np.float32),
        areas=np.array([area for *_, area, _ in objects], dtype=np.float32),
        centres=heat.reshape(HEAT_CELLS, HEAT_CELLS),
        with_keypoints=sum(any(visibility > 0 for visibility in points[2::3]) for *_, points in objects),
    )


def merge(parts: Sequence[Statistics], classes: int) -> Statistics:
    """The statistics of all parts together, in their order; of nothing when there is no part."""
    parts = [gather([], classes), *parts]

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    def added(name: str) -> npt.NDArray[Any]:
        return np.sum([getattr(part, name) for part in parts], axis=0)  # type: ignore[no-any-return]

    return Statistics(
        sizes=joined("sizes"),
        objects=joined("objects"),
        crowd=joined("crowd"),
        class_objects=added("class_objects"),
        class_crowd=added("class_crowd"),
        class_images=added("class_images"),
        box_sides=joined("box_sides"),
        areas=joined("areas"),
        centres=added("centres"),
        with_keypoints=sum(part.with_keypoints for part in parts),
    )


def _count(found: Iterable[int], classes: int) -> npt.NDArray[np.int64]:
    """How often each of the classes 1..K occurs: [K]."""
    return np.bincount(np.fromiter(found, dtype=np.int64), minlength=classes + 1)[1:]
