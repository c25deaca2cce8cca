import dataclasses
from typing import Any

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads

import model.mask_rcnn
from model.ops.boxes import box_iou
from model.roi_targets import SampledRoIs
from pipeline.benchmarks.stages import profile_stages, ranges
from pipeline.benchmarks.step import Setting, build_entrants, measure, peak_memory, ratio
from pipeline.benchmarks.step_scene import make_scene
from pipeline.config import RunConfig
from pipeline.configure import load_config

SMALL = [
    "model.classes=5",
    "model.trunk.body=resnet18",
    "model.trunk.fpn_channels=32",
    "model.box.hidden=32",
    "model.mask.channels=16",
    "model.rpn.pre_nms_train=200",
    "model.rpn.post_nms_train=150",
    "model.rpn.pre_nms_test=200",
    "model.rpn.post_nms_test=150",
    "model.roi.batch_per_image=64",
    "model.box.detections_per_image=20",
]


def setting(task: str, config: RunConfig | None = None) -> Setting:
    config = load_config(None, SMALL) if config is None else config
    return Setting(task, config, 2, (128, 192), 3, 16, "cpu", 1)  # 16: a quarter of 64, the cap  # type: ignore[arg-type]


def test_both_train_on_as_many_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    ours: list[int] = []
    theirs: list[int] = []
    sample, select = model.mask_rcnn.sample_rois, RoIHeads.select_training_samples

    def spy(*arguments: object) -> SampledRoIs:
        rois = sample(*arguments)  # type: ignore[arg-type]
        ours.extend((rois.classes > 0).sum(1).tolist())
        return rois

    def peer_spy(*arguments: object) -> object:
        found = select(*arguments)
        theirs.extend(int((labels > 0).sum()) for labels in found[2])
        return found

    monkeypatch.setattr(model.mask_rcnn, "sample_rois", spy)
    monkeypatch.setattr(RoIHeads, "select_training_samples", peer_spy)
    for entrant in build_entrants(setting("train")):
        assert entrant.run().startswith("loss ")
    assert ours == [16] * 4 and theirs == [16] * 4


def test_both_detect_as_much_and_the_figures_are_complete() -> None:
    done: list[int] = []
    figures = measure(setting("infer"), 2, False, done.append)
    assert done == list(range(1, 13))
    assert {figure.did for figure in figures} == {"40 detections"}
    assert all(len(figure.seconds) == 2 and min(figure.seconds) > 0 for figure in figures)
    assert ratio(figures, "torchvision, float32", "torchvision, float32") == 1.0


def test_planted_boxes_lie_near_objects() -> None:
    scene = make_scene(2, (300, 500), 5, 4, 40, torch.device("cpu"))
    assert scene.batch.targets is not None
    assert scene.planted.shape == (2, 36, 4)
    iou = box_iou(scene.batch.targets.boxes, scene.planted)
    assert iou.amax(1).min() > 0.7
    for boxes, targets in zip(scene.batch.targets.boxes, scene.targets, strict=True):
        inside = targets["masks"].flatten(1).sum(1) / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        assert (inside - torch.pi / 4).abs().max() < 0.05


def test_stages_add_up() -> None:
    (entrant,) = build_entrants(setting("train"), ("ours", "float32"))
    found = {stage.stage: stage for stage in profile_stages(entrant.network, entrant.run, "cpu")}  # type: ignore[arg-type]
    trained = ("body", "FPN", "RPN loss", "RoIAlign", "box head", "mask head", "mask loss")
    assert all(found[name].forward > 0 and found[name].backward > 0 for name in trained)
    assert found["optimiser"].forward > 0
    assert all(found[name].backward == 0 for name in ("normalise", "RPN head", "proposals + NMS", "RoI sampling"))
    everything = sum(stage.forward + stage.backward for stage in found.values())
    assert found["rest"].forward + found["rest"].backward < 0.2 * everything


def test_ranges_leave_the_network_as_it_was() -> None:
    (entrant,) = build_entrants(setting("train"), ("ours", "float32"))
    sample, own = model.mask_rcnn.sample_rois, dict(vars(entrant.network))
    with ranges(entrant.network):  # type: ignore[arg-type]
        assert model.mask_rcnn.sample_rois is not sample
    assert model.mask_rcnn.sample_rois is sample and dict(vars(entrant.network)) == own


@pytest.mark.parametrize("keys", [{"norm": "gn"}, {"width": 32}])
def test_a_model_that_torchvision_lacks_is_refused(keys: dict[str, Any]) -> None:
    config = load_config(None, SMALL)
    trunk = dataclasses.replace(config.model.trunk, **keys)
    with pytest.raises(ValueError, match="torchvision peer"):
        build_entrants(
            setting("train", dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=trunk)))
        )


def test_peak_memory_is_of_the_child_alone() -> None:
    ballast = torch.ones(1 << 28)  # 1 GiB here, which a child must not be charged with
    peak = peak_memory(setting("infer"), "ours", "float32")
    assert 100 < peak < ballast.nbytes / 2**20
