"""Pictures of inputs: what is drawn is what the batch holds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import AugmentConfig
from pipeline.data import rle
from pipeline.data.collate import collate
from pipeline.data.images import ImageError
from pipeline.data.records import Record
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import load_index, to_records
from pipeline.data.source import Keypoints
from pipeline.evaluation.augmented import draw_inputs, draw_work, each_kind, from_batch

KEYPOINTS = Keypoints(("nose", "left", "right"), (0, 2, 1), ((0, 1), (0, 2)))


@pytest.fixture(scope="module")
def records(shapes: Path) -> list[Record]:
    rows = load_index(shapes / "train").slice(0, 2)
    records = to_records(read_rows(shapes / "train", rows))
    for record in records:
        x, y = np.array(record["boxes"][0])[[0, 1]] // 1
        record["keypoints"] = [[x, y, 2.0, 10, 10, 1, 0, 0, 0] if i == 0 else [] for i in range(len(record["boxes"]))]
    return records


def test_instances_of_a_plain_input_are_the_records(records: list[Record]) -> None:
    own = records[0]
    options = AugmentConfig(flip_probability=0.0)
    work = draw_work(own, None, min(own["height"], own["width"]), options, 0, 0)
    found = from_batch(collate([work], 32, "crop", KEYPOINTS.flip, lambda *_: None), 0)
    kept = [i for i, crowd in enumerate(own["crowd"]) if not crowd]
    np.testing.assert_allclose(found.boxes, np.array(own["boxes"])[kept], atol=1e-4)
    assert found.masks is not None and found.keypoints is not None
    assert found.keypoints[0][:2].tolist() == np.reshape(own["keypoints"][0], (-1, 3))[:2].tolist()
    for i, (y, x, crop) in zip(kept, found.masks, strict=True):
        mask = rle.to_mask(own["rles"][i], own["height"], own["width"])
        drawn = np.zeros_like(mask)
        drawn[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95


def test_each_kind_is_drawn_beside_the_picture(records: list[Record], tmp_path: Path) -> None:
    inputs = each_kind(records[0], records[1], 96)
    names = [str(c) for c in range(1, 100)]
    draw_inputs(records[0], inputs, names, tmp_path / "all.png", KEYPOINTS)
    draw_inputs(records[0], inputs[:2], names, tmp_path / "two.png", None)
    with Image.open(tmp_path / "all.png") as every, Image.open(tmp_path / "two.png") as two:
        assert every.height > 2 * two.height and two.height > 480  # panels are enlarged; three a row
    titles = [title for title, _ in inputs]
    assert titles == sorted(set(titles), key=titles.index) and len(titles) >= 7
    recipes = {title: work.recipe for title, work in inputs}
    assert recipes["flip"].geometry.flip and not recipes["resize"].geometry.flip
    assert recipes["colour"].colour is not None and [t for t, work in inputs if work.partner] == ["copy-paste", "all"]


def test_a_picture_that_does_not_decode_is_told(records: list[Record], tmp_path: Path) -> None:
    broken: Record = {**records[1], "image": b"nothing"}
    work = draw_work(records[0], broken, 96, AugmentConfig(), 0, 0)
    with pytest.raises(ImageError, match=f"image {broken['sample_id']} cannot be decoded"):
        draw_inputs(records[0], [("copy-paste", work)], ["a"] * 99, tmp_path / "x.png", None)
