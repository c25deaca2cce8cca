"""An image of ids, one of each object, -> the mask of each: all of them in one pass over the image.

The image is read down its columns, as COCO's RLE is; every stretch of one id is a run of that object's RLE.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Region(NamedTuple):
    """All pixels of one id."""

    id: int
    runs: NDArray[np.int64]  # lengths of COCO's uncompressed RLE: column-major, zeros first
    box: list[float]  # xyxy, pixels, tight
    area: int  # pixels


def regions(ids: NDArray[np.uint16]) -> Iterator[Region]:
    """Every id of an image [H, W], ascending; the background is one of them."""
    height = ids.shape[0]
    column_major = np.ascontiguousarray(ids.T).reshape(-1)
    pixels = len(column_major)
    starts = np.concatenate(([0], np.flatnonzero(column_major[1:] != column_major[:-1]) + 1))  # [R]
    ends = np.append(starts[1:], pixels)
    values = column_major[starts]
    order = np.argsort(values, kind="stable")  # runs of one id together, still from the left to the right
    found, firsts = np.unique(values[order], return_index=True)
    for number, mine in zip(found, np.split(order, firsts[1:]), strict=True):
        first, last = starts[mine], ends[mine]
        bounds = np.stack((first, last), axis=1).reshape(-1)
        runs = np.diff(bounds, prepend=0)
        if bounds[-1] < pixels:
            runs = np.append(runs, pixels - bounds[-1])
        left, right = first[0] // height, (last[-1] - 1) // height + 1
        top, bottom = (first % height).min(), ((last - 1) % height).max() + 1
        if (first // height != (last - 1) // height).any():  # goes on at the top of the next column
            top, bottom = 0, height
        box = [float(left), float(top), float(right), float(bottom)]
        yield Region(int(number), runs, box, int((last - first).sum()))
