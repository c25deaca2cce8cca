"""Proposals of another system: file -> shards -> batch, moved as the boxes of objects are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_coco import TinyCoco
from tiny_records import blob, record

from jobs.shard import shard_coco
from pipeline.config import AugmentConfig
from pipeline.data.augment import Geometry, draw_recipe, plain_recipe
from pipeline.data.collate import Work, collate
from pipeline.data.ground_truth import move, move_proposals
from pipeline.data.manifest import load_manifest
from pipeline.data.proposals import require_proposals, with_proposals
from pipeline.data.quarantine import DataError
from pipeline.data.records import FULL_SCHEMA, PROPOSAL_COLUMNS, SCHEMA, Record
from pipeline.data.row_check import check_row
from pipeline.data.shard_rows import COLUMNS, read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import annotations, load_index, to_records
from pipeline.data.verify import verify_shards

ALL = (*COLUMNS, *PROPOSAL_COLUMNS)


def proposal(image: Any, bbox: Any, score: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": bbox, "score": score}


GOOD = [
    proposal(1, [10, 5, 20, 20], 0.5),
    proposal(3, [0, 0, 60, 40], 7),
    proposal(1, [-5, 30, 20.5, 30], 0.75),  # leaves the picture of 40 x 60
    proposal(1, [1, 1, 2, 2], 0.5),  # as good as the first, which came before it
    proposal(1, [70, 5, 20, 20], 0.9),  # not in the picture at all
]


def refuse(sample_id: int, reason: str) -> None:
    raise AssertionError((sample_id, reason))


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCoco:
    return TinyCoco(tmp_path / "coco")


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_from_a_file_into_shards_and_back(tiny: TinyCoco, tmp_path: Path) -> None:
    files = [write(tmp_path / "a.json", GOOD[:2]), write(tmp_path / "b.json", GOOD[2:])]
    manifest = shard_dataset(with_proposals(tiny.read(), files), tmp_path / "out", rows_per_shard=2, rows_per_group=1)
    assert manifest == load_manifest(tmp_path / "out") and manifest.has_proposals
    assert manifest.counts["proposals"] == 4 and manifest.source["proposals"] == "a.json, b.json"
    assert manifest.quarantined == {"annotation: proposals have no area in their picture": 1}
    assert "1 of 4 proposals" in (tmp_path / "out/quarantine.jsonl").read_text()
    table = read_rows(tmp_path / "out", load_index(tmp_path / "out"), ALL)
    assert table.schema.names == [name for name in FULL_SCHEMA.names if name in ALL]
    found = {row["sample_id"]: row for row in to_records(table)}
    assert found[1]["proposals"] == [[0, 30, 15.5, 40], [10, 5, 30, 25], [1, 1, 3, 3]]
    assert found[1]["proposal_scores"] == [0.75, 0.5, 0.5]
    assert (found[2]["proposals"], found[3]["proposals"]) == ([], [[0, 0, 60, 40]])
    assert pq.read_schema(tmp_path / "out/shard-00000.parquet").equals(FULL_SCHEMA)
    assert verify_shards(tmp_path / "out", workers=1).sound
    plain = shard_dataset(tiny.read(), tmp_path / "plain", rows_per_shard=2, rows_per_group=1)
    assert pq.read_schema(tmp_path / "plain/shard-00000.parquet").equals(SCHEMA) and not plain.has_proposals
    assert verify_shards(tmp_path / "plain", workers=1).sound
    for kept in (ALL[: len(COLUMNS)], COLUMNS):  # all else is the same, and old readers' columns are all there
        index = load_index(tmp_path / "plain")
        assert read_rows(tmp_path / "plain", index, kept).equals(
            read_rows(tmp_path / "out", load_index(tmp_path / "out"), kept)
        )
    assert annotations(tmp_path / "out")["annotations"] == annotations(tmp_path / "plain")["annotations"]


def test_a_shard_of_pictures_without_proposals_has_the_columns(tiny: TinyCoco, tmp_path: Path) -> None:
    outside = write(tmp_path / "a.json", GOOD[4:])
    manifest = shard_dataset(with_proposals(tiny.read(), [outside]), tmp_path / "out")
    assert manifest.has_proposals and manifest.counts["proposals"] == 0
    assert verify_shards(tmp_path / "out", workers=1).sound
    require_proposals([tmp_path / "out"])


def test_shards_without_proposals_are_refused_where_they_are_needed(tiny: TinyCoco, tmp_path: Path) -> None:
    shard_dataset(tiny.read(), tmp_path / "out")
    with pytest.raises(
        DataError, match=r"out has no proposals, and model.rpn is null \(Fast R-CNN\): shard again with --p"
    ):
        require_proposals([tmp_path / "out"])
    with pytest.raises(
        DataError, match=r"shard-00000.parquet has no proposals; write the shards again with --proposals"
    ):
        read_rows(tmp_path / "out", load_index(tmp_path / "out"), ALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no proposal"),
        ({"images": []}, "is no list of results but holds images"),
        ("[", "is not valid JSON"),
        (
            [proposal(9, [1, 1, 2, 2], 1), *GOOD],
            "1 of 6 proposals are of images that the annotations do not list, such",
        ),
        ([proposal("1", [1, 1, 2, 2], 1)], "image_id must be an integer"),
        ([proposal(1, [1, 1, 2], 1)], "bbox four numbers"),
        ([proposal(1, [1, 1, 2, "x"], 1)], "every proposal needs image_id, bbox"),
        ([proposal(1, [1, 1, 2, 2], None)], "every proposal needs image_id, bbox|are no finite box"),
        ([{"image_id": 1}], "every proposal needs image_id, bbox"),
        ([7], "every proposal needs image_id, bbox"),
        (
            [*GOOD, proposal(1, [1, 1, -2, 2], 1)],
            "1 of 6 proposals are no finite box with a finite score, such as number 5",
        ),
        ('[{"image_id": 1, "bbox": [1, 1, 2, 2], "score": NaN}]', "are no finite box with a finite score"),
    ],
)
def test_files_that_cannot_be_used(tiny: TinyCoco, tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_proposals(tiny.read(), [write(tmp_path / "p.json", content)])


def test_the_command_takes_them(tiny: TinyCoco, tmp_path: Path, capsys: Any) -> None:
    tiny.read()
    file = write(tmp_path / "p.json", GOOD)
    out = str(tmp_path / "out")
    reading = {"keypoints": None, "boxes_only": False, "classes": None, "strict": False}
    writing = {"overwrite": False, "workers": 1, "rows_per_shard": None}
    shard_coco(tiny.json, str(tiny.images), out, proposals=[file], **reading, **writing)  # type: ignore[arg-type]
    assert "proposals" in capsys.readouterr().out and load_manifest(out).counts["proposals"] == 4


def with_boxes(made: Record, boxes: list[list[float]]) -> Record:
    made["proposals"], made["proposal_scores"] = boxes, [1 - 0.01 * i for i in range(len(boxes))]
    return made


@pytest.mark.parametrize("seed", range(12))
def test_they_move_as_ground_truth_does(seed: int) -> None:
    """An object's box that is proposed lands on the object, whatever augmentation does."""
    rng = np.random.default_rng(seed)
    masks = [
        blob(90, 120, *(int(v) for v in rng.integers(0, 40, 2)), *(int(v) for v in rng.integers(5, 40, 2)))
        for _ in range(6)
    ]
    made = record(3, 90, 120, masks)
    made = with_boxes(made, made["boxes"])
    options = AugmentConfig(flip_probability=0.5, crop_share=(0.9, 1.0) if seed % 2 else None)
    recipe = draw_recipe(90, 120, 200, 400, options, seed, 0, 3)
    truth = move(made, recipe.geometry, "crop", None)
    boxes, _ = move_proposals(made, recipe.geometry, 100)
    assert boxes.dtype == np.float32
    whole = [i for i, box in enumerate(made["boxes"]) if inside(box, recipe.geometry)]
    assert len(whole) >= 3
    for i in whole:
        place = truth.source.index(i)
        assert any(np.array_equal(truth.boxes[place], box) for box in boxes)


def inside(box: list[float], geometry: Geometry) -> bool:
    right, bottom = geometry.left + geometry.window_width, geometry.top + geometry.window_height
    return geometry.left <= box[0] and geometry.top <= box[1] and box[2] <= right and box[3] <= bottom


def test_they_are_cut_to_the_window_and_only_the_best_are_kept() -> None:
    made = with_boxes(record(1, 40, 60), [[0, 0, 5, 5], [5, 5, 30, 30], [10, 10, 20, 20], [12, 12, 14, 16]])
    window = Geometry(
        40, 60, left=10, top=10, window_height=20, window_width=40, new_height=40, new_width=80, flip=True
    )
    boxes, scores = move_proposals(made, window, 2)  # the first is outside
    assert boxes.tolist() == [[40, 0, 80, 40], [60, 0, 80, 20]]  # x: 80 - 2 * (x - 10), cut to the input
    assert scores.tolist() == pytest.approx([0.99, 0.98])


def test_in_a_batch_they_fill_slots() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (300, 2))
    many = np.concatenate([corner, corner + rng.uniform(1, 20, (300, 2))], 1).tolist()
    records = [
        with_boxes(record(1, 40, 60), many),
        with_boxes(record(2, 40, 60), many[:1]),
        with_boxes(record(3, 40, 60), []),
    ]
    spoilt = with_boxes(record(4, 40, 60, image=b"no picture"), many)
    work = [Work(r, plain_recipe(40, 60, 80, 200)) for r in (*records, spoilt)]
    told: list[int] = []
    for targets in (None, "crop"):
        batch = collate(work, 32, targets, None, lambda sample_id, _: told.append(sample_id), 250)  # type: ignore[arg-type]
        assert batch.proposals is not None
        boxes, scores, real = batch.proposals
        assert (boxes.shape, scores.shape, real.shape) == ((4, 250, 4), (4, 250), (4, 250))
        assert boxes.dtype == scores.dtype == torch.float32 and real.dtype == torch.bool
        assert real.sum(1).tolist() == [250, 1, 0, 0]
        assert torch.equal(boxes[0], torch.tensor(many[:250]) * 2) and torch.equal(
            boxes[1, 0], torch.tensor(many[0]) * 2
        )
        assert not boxes[~real].any() and not scores[~real].any()
    assert told == [4, 4]
    few = collate(work[1:3], 32, None, None, refuse, 1000).proposals
    assert few is not None and few.boxes.shape == (2, 128, 4)
    assert collate(work[:1], 32, None, None, refuse).proposals is None


def test_bad_rows_are_found() -> None:
    made = with_boxes(record(1, 40, 60), [[0, 0, 5, 5], [1, 1, 70, 4], [4, 4, 4, 9]])
    good = replace_scores(made, [0.5, 0.5, 0.1])
    assert [f.what for f in check_row(good, 1, None).faults] == ["a proposal is no box in its picture"]
    assert "2 of 3" in check_row(good, 1, None).faults[0].got
    short = replace_scores(with_boxes(made, [[0, 0, 5, 5]]), [0.5, 0.7])
    what = [f.what for f in check_row(short, 1, None).faults]
    assert what == ["proposals and their scores differ in number", "scores of proposals do not fall"]


def replace_scores(made: Record, scores: list[float]) -> Record:
    made["proposal_scores"] = scores
    return made


def test_copy_paste_is_refused() -> None:
    from pipeline.config import DataConfig, RunConfig

    data = DataConfig(augment=AugmentConfig(copy_paste_probability=0.5))
    config = RunConfig(data=data)
    with pytest.raises(ValueError, match=r"copy_paste_probability must be 0 with model.rpn: null, got 0.5"):
        replace(config, model=replace(config.model, rpn=None))
