"""What `maskrcnn train` says before it starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.train import _introduce
from pipeline.config import ClusterConfig, DataConfig, RunConfig, TrainConfig
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import Quarantine
from pipeline.data.sharding import shard_dataset
from pipeline.training.cluster import Layout
from pipeline.training.run import prepare


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> RunConfig:
    content = json.loads((shapes / "coco/annotations/instances_val.json").read_bytes())
    for annotation in content["annotations"][:3]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    dataset = read_coco(tmp_path / "boxes.json", shapes / "coco/val", Quarantine(strict=True), boxes_only=True)
    shard_dataset(dataset, tmp_path / "boxes")
    return RunConfig(
        data=DataConfig(train=(str(shapes / "train"), str(tmp_path / "boxes")), val=str(shapes / "val")),
        train=TrainConfig(batch_images=4),
        cluster=ClusterConfig(runs_dir=str(tmp_path / "runs")),
    )


def said(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    _introduce(prepare(config, "x"), Layout(2, 0.0, 1.0))
    return capsys.readouterr()


def test_masks_that_are_rectangles_are_told_of(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    shown, warned = said(config, capsys)
    assert "32 images" in shown and "2 x 1 CPU, 2 images each" in shown
    assert "boxes: 3 of " in warned and "will learn rectangles" in warned and "model.mask=null" in warned
    boxes_alone = replace(config, model=replace(config.model, mask=None))
    assert "rectangles" not in said(boxes_alone, capsys)[1]


def test_whole_masks_need_no_warning(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.data.train is not None
    whole = replace(config, data=replace(config.data, train=config.data.train[0]))
    assert "rectangles" not in said(whole, capsys)[1]
