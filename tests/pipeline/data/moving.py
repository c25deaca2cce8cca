"""What the tests of moved ground truth share: random pictures with masks and keypoints, and naive geometry."""

import math

import numpy as np
from hypothesis import strategies as st
from tiny_records import blob, record

from pipeline.data.augment import Geometry
from pipeline.data.records import Record

FLIP_ORDER = (0, 2, 1, 3)  # nose, left, right, tail


@st.composite
def scenes(draw: st.DrawFn, most: int = 5, sample_id: int = 1) -> Record:
    """A picture of 12..70 pixels a side with up to `most` instances: L shapes, noise, single pixels; some crowds."""
    height, width = draw(st.integers(12, 70)), draw(st.integers(12, 70))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks = []
    for _ in range(draw(st.integers(0, most))):
        h, w = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
        y, x = int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1))
        kind = draw(st.sampled_from(["L", "noise", "pixel"]))
        mask = blob(height, width, y, x, h, w)
        if kind == "noise":
            mask[y : y + h, x : x + w] = generator.random((h, w)) < 0.6
            mask[y, x] = 1
        elif kind == "pixel":
            mask[:] = 0
            mask[y, x] = 1
        masks.append(mask)
    crowd = [bool(generator.random() < 0.15) for _ in masks]
    made = record(sample_id, height, width, masks, crowd)
    for i in range(len(masks)):
        if generator.random() < 0.7:
            points = np.stack(
                [generator.integers(0, width, 4), generator.integers(0, height, 4), generator.integers(0, 3, 4)], 1
            )
            points[points[:, 2] == 0] = 0
            made["keypoints"][i] = [float(v) for v in points.reshape(-1)]
    return made


@st.composite
def geometries(draw: st.DrawFn, height: int, width: int) -> Geometry:
    """Any window, any new size of 1..90 pixels a side, perhaps flipped; a third of the windows are the picture."""
    top, left, h, w = 0, 0, height, width
    if draw(st.integers(0, 2)):
        h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
        top, left = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    size = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    return Geometry(height, width, left, top, h, w, *size, draw(st.booleans()))


def naive_mask(mask: np.ndarray, geometry: Geometry, dy: float = 0.0, dx: float = 0.0) -> np.ndarray:
    """The mask [H, W] as the input shows it: each pixel reads the mask below its centre. bool [h, w].

    `dy` and `dx` (pixels of the picture) read beside the centre; outside the window there is no mask.
    """
    out = np.zeros((geometry.new_height, geometry.new_width), bool)
    for y in range(geometry.new_height):
        for x in range(geometry.new_width):
            source_y = math.floor((y + 0.5) * geometry.window_height / geometry.new_height + dy)
            source_x = math.floor((x + 0.5) * geometry.window_width / geometry.new_width + dx)
            inside = 0 <= source_y < geometry.window_height and 0 <= source_x < geometry.window_width
            column = geometry.new_width - 1 - x if geometry.flip else x
            out[y, column] = inside and mask[geometry.top + source_y, geometry.left + source_x]
    return out


def naive_window(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The part of a mask [H, W] in the window, mirrored by a flip; not resized."""
    bottom, right = geometry.top + geometry.window_height, geometry.left + geometry.window_width
    seen = mask[geometry.top : bottom, geometry.left : right]
    return np.ascontiguousarray(seen[:, ::-1] if geometry.flip else seen)
