import numpy as np
import pytest

from pipeline.data import rle
from pipeline.data.instance_ids import regions


def awkward() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    blobs = np.zeros((60, 80), np.uint16)
    for number in range(300):
        y, x = rng.integers(60), rng.integers(80)
        blobs[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = 26000 + number
    corners = np.zeros((5, 7), np.uint16)
    corners[0, 0], corners[-1, -1], corners[-1, 0], corners[0, -1] = 1, 2, 65535, 4
    stripes = np.zeros((6, 6), np.uint16)
    stripes[:, 2:4] = 9  # whole columns: one run goes over the edge
    crossing = np.zeros((6, 6), np.uint16)
    crossing[4:, 2], crossing[:2, 3] = 7, 7  # from the bottom of a column to the top of the next one
    return {
        "noise": rng.integers(0, 4, (31, 17)).astype(np.uint16) * 20000,
        "300 objects": blobs,
        "corners": corners,
        "stripes": stripes,
        "over the edge": crossing,
        "one id": np.full((4, 9), 24, np.uint16),
        "a pixel": np.array([[33001]], np.uint16),
        "a row": np.array([[1, 1, 2, 1]], np.uint16),
        "a column": np.array([[1], [1], [2], [1]], np.uint16),
    }


@pytest.mark.parametrize("name", awkward())
def test_regions_are_the_masks_one_by_one(name: str) -> None:
    ids = awkward()[name]
    found = list(regions(ids))
    assert [region.id for region in found] == sorted(set(ids.reshape(-1).tolist()))
    for region in found:
        mask = ids == region.id
        y, x = np.nonzero(mask)
        assert region.box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert region.area == mask.sum()
        counts = rle.from_counts(region.runs.tolist(), *ids.shape)
        assert counts == rle.from_mask(mask)  # pycocotools' own
        assert np.array_equal(region.runs, rle.parse_counts(counts))
