"""The loop closes: what an RPN alone writes is what Fast R-CNN reads, and together they are the whole model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.predict import predict
from model.build import build_model
from model.config import AnchorConfig, BoxConfig, ModelConfig, RoIConfig, RPNConfig, TrunkConfig
from model.mask_rcnn import MaskRCNN
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.coco import read_coco
from pipeline.data.loader import make_reading
from pipeline.data.proposals import with_proposals
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_index, load_manifest, to_records
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.predict import Predictor
from pipeline.training.checkpoint import Meta, save_checkpoint
from pipeline.training.cluster import Layout
from pipeline.training.optim import make_sgd

WHOLE = ModelConfig(
    classes=8,
    trunk=TrunkConfig(body="resnet18", norm="bn", freeze_stages=5, fpn_channels=32),
    rpn=RPNConfig(anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 96.0)), pre_nms_test=50, post_nms_test=30),
    roi=RoIConfig(sampling_ratio=2),
    box=BoxConfig(hidden=32, layers=1, score_threshold=0.0, detections_per_image=20),
    mask=None,
)


def save(directory: Path, model: MaskRCNN, config: ModelConfig, shards: Path) -> Path:
    manifest = load_manifest(shards)
    data = DataConfig(test_size_px=96, test_max_size_px=160)
    run = RunConfig(model=config, data=data, train=TrainConfig(precision="float32"))
    meta = Meta(1, manifest.class_names, manifest.category_ids, manifest.fingerprint, "tiny", None, {})
    save_checkpoint(directory, model, make_sgd(model, run.optim), run, meta)
    return directory


def test_an_rpn_and_a_fast_rcnn_are_the_whole_model(shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = build_model(WHOLE)
    torch.nn.init.normal_(whole.rpn.objectness.weight, std=0.3)
    torch.nn.init.normal_(whole.box.scores.weight, std=0.3)  # type: ignore[union-attr]
    checkpoints = {}
    for name, config in {
        "whole": WHOLE,
        "rpn": replace(WHOLE, box=None),
        "fast": replace(WHOLE, rpn=None),
    }.items():
        part = build_model(config)
        part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
        checkpoints[name] = save(tmp_path / name, part, config, shapes / "val")
    records = to_records(read_rows(shapes / "val", load_index(shapes / "val")))
    proposed = [r for p in Predictor(str(checkpoints["rpn"]), 1, "cpu").results(records) for r in p.results]
    assert len(proposed) == 30 * len(records)
    file = tmp_path / "results_proposal.json"
    file.write_text(json.dumps(proposed))
    dataset = read_coco(shapes / "coco/annotations/instances_val.json", shapes / "coco/val", Quarantine(strict=True))
    shard_dataset(with_proposals(dataset, [file]), tmp_path / "shards")
    fast = Predictor(str(checkpoints["fast"]), 1, "cpu")
    columns = make_reading(fast.config).columns
    given = to_records(read_rows(tmp_path / "shards", load_index(tmp_path / "shards"), columns))
    expected = {p.sample_id: p.results for p in Predictor(str(checkpoints["whole"]), 1, "cpu").results(records)}
    for found in fast.results(given):
        other = expected[found.sample_id]
        assert len(found.results) == len(other) == 20
        for a, b in zip(found.results, other, strict=True):  # proposals were scaled to the picture and back
            assert a["category_id"] == b["category_id"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-4) and a["bbox"] == pytest.approx(b["bbox"], abs=0.02)

    with pytest.raises(DataError, match="reads proposals of another system, which pictures alone do not have"):
        predict(checkpoints["fast"], [shapes / "coco/val"], tmp_path / "out", score=0.5)
    with pytest.raises(DataError, match=r"val has no proposals, and model.rpn is null"):
        evaluate(
            checkpoints["fast"], shapes / "val", fast.config, Layout(1, 0.0, 1.0), tmp_path / "out", lambda _: None
        )
