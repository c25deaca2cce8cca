"""Detectors of torchvision as checkpoints and back: what they compute, what is said, and files that are no good."""

import argparse
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import write_tiny
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from model.build import build_model
from model.types import Batch
from model.weights.torchvision import COCO_CATEGORY_IDS
from model.weights.torchvision_builders import BUILDERS, FILES_WITHOUT_EPS
from pipeline.configure import ConfigError
from pipeline.data.records import empty_record
from pipeline.evaluation.predict import Predictor
from pipeline.training import zoo
from pipeline.training.checkpoint import (
    CONFIG,
    META,
    MODEL,
    STATE,
    CheckpointError,
    initialise,
    load_model,
    load_optimiser,
    read_meta,
)
from pipeline.training.optim import make_sgd
from pipeline.training.zoo import export_torchvision, read_torchvision, write_import

NAMES = ("cat", "dog", "cow", "owl")
OVERRIDES = (
    "data.test_size_px=96",
    "data.test_max_size_px=128",
    "model.box.score_threshold=0.1",
    "model.rpn.post_nms_test=60",
)


def hollow(builder: str, classes: int | None = None) -> dict[str, Tensor]:
    """Names and shapes of a builder's weights; in a file of torch.save they take no room."""
    with torch.device("meta"):
        network = getattr(detection, builder)(
            weights=None, weights_backbone=None, num_classes=None if classes is None else classes + 1
        )
    return {name: torch.zeros((), dtype=v.dtype).expand(v.shape) for name, v in network.state_dict().items()}


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """torchvision's Mask R-CNN on its smallest ResNet, with weights that detect something."""
    torch.manual_seed(0)
    network = detection.MaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None),
        num_classes=len(NAMES) + 1,
        min_size=96,
        max_size=128,
        rpn_post_nms_top_n_test=60,
        box_score_thresh=0.1,
    ).eval()
    for layer in (network.rpn.head.cls_logits, network.roi_heads.box_predictor.cls_score):
        nn.init.normal_(layer.weight, std=0.1)
    nn.init.normal_(network.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.1)
    return network


@pytest.fixture(scope="module")
def imported(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    found = read_torchvision(saved(small.state_dict(), folder / "small.pth"), NAMES, OVERRIDES)
    write_import(found, folder / "checkpoint")
    return folder / "checkpoint"


def picture(seed: int) -> Tensor:
    return torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert len(mine["boxes"]) > 5
    assert torch.equal(mine["labels"], theirs["labels"])
    torch.testing.assert_close(mine["scores"], theirs["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-3)


# --- whole


def test_an_import_is_a_checkpoint_that_detects_the_same(imported: Path, small: nn.Module) -> None:
    assert sorted(path.name for path in imported.iterdir()) == sorted([MODEL, CONFIG, META])
    config, meta = read_meta(imported)
    assert (meta.step, meta.class_names, meta.category_ids) == (0, NAMES, (1, 2, 3, 4))
    assert config.model.trunk.norm == "frozen_bn" and config.train.precision == "float32"
    pixels, sizes = picture(0), torch.tensor([[96, 128]])
    (reference,) = small([pixels.permute(2, 0, 1) / 255])
    model = load_model(imported)[0].eval()
    (found,) = model.predict(Batch(pixels[None], sizes, sizes, torch.zeros(1, dtype=torch.int64), None))
    assert_same({"boxes": found.boxes, "labels": found.classes, "scores": found.scores}, reference)


def test_an_import_predicts_files(imported: Path) -> None:
    from PIL import Image

    path = imported.parent / "picture.png"
    Image.fromarray(picture(0).numpy()).save(path)
    predictor = Predictor(str(imported), 1, "cpu")
    (found,) = predictor.results([empty_record(1, path.name, 96, 128, path.read_bytes())])
    assert found.error is None and {r["category_id"] for r in found.results} <= {1, 2, 3, 4} and len(found.results) > 5


def test_training_starts_from_an_import(imported: Path) -> None:
    config = read_meta(imported)[0].model
    torch.manual_seed(1)
    model = build_model(replace(config, classes=7))
    report = initialise(model, imported, 7)
    assert {line.split(":")[0].rpartition(".")[0] for line in report.mismatched} == {
        "box.scores",
        "box.deltas",
        "mask.layers.predictor",
    }
    assert not report.missing and not report.left
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be used"):  # it has no momentum to go on with
        load_optimiser(make_sgd(model, read_meta(imported)[0].optim), imported)


def test_export_gives_the_file_back(imported: Path, small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "back.pth"
    written = export_torchvision(imported, path)
    state = torch.load(path, weights_only=True)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    assert [p.name for p in path.parent.iterdir()] == [path.name] and set(written.tensors) == set(state)
    for name, value in before.items():
        read = slice({"bbox_pred": 4, "mask_fcn_logits": 1}.get(name.split(".")[-2], 0) * ("roi_heads" in name), None)
        assert torch.equal(state[name][read], value[read]), name
    pixels = picture(1).permute(2, 0, 1) / 255
    (reference,) = small([pixels])
    small.load_state_dict(state, strict=True)
    (found,) = small([pixels])
    small.load_state_dict(before)
    assert all(torch.equal(found[name], value) for name, value in reference.items())
    assert "MaskRCNN(resnet_fpn_backbone(backbone_name='resnet18', weights=None), num_classes=5" in written.call
    assert (
        "min_size=96, max_size=128, rpn_post_nms_top_n_test=60, box_score_thresh=0.1" in written.call
        and written.notes == ()
    )
    again = read_torchvision(path, NAMES, OVERRIDES)
    model = load_model(imported)[0].state_dict()
    assert again.state.keys() == model.keys() and all(torch.equal(again.state[n], v) for n, v in model.items())


# --- what is recognised and said


@pytest.mark.parametrize("builder", BUILDERS)
def test_files_of_coco_need_no_names(tmp_path: Path, builder: str) -> None:
    found = read_torchvision(saved(hollow(builder), tmp_path / "coco.pth"))
    assert found.builder == builder and not found.report.missing and not found.report.left
    names, ids = found.meta.class_names, found.meta.category_ids
    if builder.startswith("keypoint"):
        assert (names, ids) == (("person",), (1,))
        flip = found.meta.keypoint_flip
        assert flip is not None and flip == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    else:
        assert len(names) == 80 and ids == COCO_CATEGORY_IDS
        assert (names[0], names[11], names[79]) == ("person", "stop sign", "toothbrush")
        assert found.config.model.classes == 80
        assert any("91, the background and COCO's ids 1..90; those of its 80" in note for note in found.notes)


def test_keypoint_names_are_torchvisions() -> None:
    weights = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
    assert tuple(weights.meta["keypoint_names"]) == zoo._JOINTS and weights.meta["categories"][1:] == list(zoo._PERSON)


def test_all_rows_can_be_kept(tmp_path: Path) -> None:
    path = saved(hollow("fasterrcnn_resnet50_fpn"), tmp_path / "coco.pth")
    found = read_torchvision(path, [f"c{i}" for i in range(90)])
    assert found.config.model.classes == 90 and found.meta.category_ids == tuple(range(1, 91))
    assert not found.report.mismatched
    assert read_torchvision(path, [f"c{i}" for i in range(80)]).meta.category_ids == COCO_CATEGORY_IDS


def test_eps_is_known_for_torchvisions_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = hollow("maskrcnn_resnet50_fpn")
    frozen = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    path = saved(frozen, tmp_path / "coco.pth")
    found = read_torchvision(path)
    assert found.config.model.trunk.norm_eps == 1e-5
    assert any("BN eps 1e-05 is assumed" in note and "model.trunk.norm_eps=0" in note for note in found.notes)
    assert read_torchvision(path, None, ["model.trunk.norm_eps=0"]).config.model.trunk.norm_eps == 0
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(zoo, "FILES_WITHOUT_EPS", (*FILES_WITHOUT_EPS, digest))
    found = read_torchvision(path)
    assert found.config.model.trunk.norm_eps == 0
    assert any("BN eps is 0, as torchvision sets it" in note for note in found.notes)


def test_files_of_the_reference_scripts(tmp_path: Path) -> None:
    """They hold the optimiser and the script's arguments too."""
    state = hollow("fasterrcnn_resnet50_fpn_v2", 4)
    file = {"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.02, epochs=26), "epoch": 3}
    found = read_torchvision(saved(file, tmp_path / "model_3.pth"), NAMES)
    assert found.builder == "fasterrcnn_resnet50_fpn_v2" and len(found.report.matched) == len(state)


def test_left_names_are_reported_and_no_obstacle(tmp_path: Path) -> None:
    state = hollow("maskrcnn_resnet50_fpn", 4) | {"extra.weight": torch.zeros(2)}
    found = read_torchvision(saved(state, tmp_path / "more.pth"), NAMES, ["model.mask=null"])
    assert "extra.weight" in found.report.left and "mask.layers.predictor.weight" in found.report.left
    assert not found.report.missing and not found.report.mismatched


def test_export_says_where_detections_differ(imported: Path, tmp_path: Path) -> None:
    """A checkpoint with other conventions loads into torchvision all the same: nothing may be silent about it."""
    other = tmp_path / "other"
    overrides = [
        "model.roi.aligned=true",
        "model.trunk.norm_eps=0.0",
        "model.box.nms_iou=0.6",
        "model.input.std=[51,51,51]",
    ]
    found = read_torchvision(imported.parent / "small.pth", NAMES, overrides)
    write_import(found, other)
    written = export_torchvision(other, tmp_path / "back.safetensors")
    assert load_file(tmp_path / "back.safetensors").keys() == set(written.tensors)
    assert any("model.roi.aligned is True here and False there" in note for note in written.notes)
    assert any("module.eps = 0.0" in note for note in written.notes) and len(written.notes) == 2
    assert "image_std=(0.2, 0.2, 0.2), box_nms_thresh=0.6" in written.call and "min_size" not in written.call


# --- no good


class RunsCode:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch {self.path}",)


def refused(path: Path, message: str, out: Path, names: tuple[str, ...] | None = NAMES) -> None:
    """Importing says why it cannot, and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(CheckpointError, match=message):
        write_import(read_torchvision(path, names), out)
    assert not out.exists() and sorted(out.parent.iterdir()) == before


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(tmp_path: Path, keep: int, suffix: str) -> None:
    path = tmp_path / f"torn{suffix}"
    if suffix == ".pth":
        saved(hollow("fasterrcnn_resnet50_fpn", 4), path)
    else:
        save_file({"roi_heads.box_predictor.cls_score.weight": torch.zeros(5, 1024)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, rf"torn\{suffix} holds no readable tensors \(damaged, or a pickle with code\)", tmp_path / "out")


@pytest.mark.parametrize("kind", ["torch", "legacy", "plain"])
def test_a_pickle_that_runs_code(tmp_path: Path, kind: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    evil = {"model": hollow("fasterrcnn_resnet50_fpn", 4), "args": RunsCode(marker)}
    if kind == "plain":
        path.write_bytes(pickle.dumps(RunsCode(marker)))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=kind == "torch")
    refused(path, r"evil\.pth holds no readable tensors \(damaged, or a pickle with code\)", tmp_path / "out")
    assert not marker.exists()


def without(layer: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if not name.startswith(layer)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("rpn.head"),
            r"6 tensors are missing, 0 have another shape, the first is rpn\.conv\.0\.weight; nothing",
        ),
        (without("backbone.fpn.inner_blocks.2"), r"2 tensors are missing, .* trunk\.lateral\.2\.weight"),
        (without("roi_heads.box_head.fc7.bias"), r"1 tensors are missing, .* the first is box\.fc\.1\.bias"),
        (
            lambda state: state | {"roi_heads.box_head.fc6.weight": torch.zeros(512, 12544)},
            r"0 tensors are missing, 1 have another shape, the first is box\.fc\.0\.weight: \[512, 12544\] into",
        ),
        (
            lambda state: state | {"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(24, 1024)},
            r"1 have another shape, the first is box\.deltas\.weight: \[20, 1024\] into \[16, 1024\]",
        ),
        (without("backbone.body.layer4"), r"its body is none that is known here: stages of \[3, 4, 6, 0\] blocks"),
        (without("roi_heads.box_predictor.cls_score"), "no torchvision R-CNN detector: its .* tensors have names such"),
        (lambda state: {}, "no torchvision R-CNN detector: it is empty"),
        (lambda state: list(state.values()), "is no state dict: it must be a mapping from names to tensors"),
    ],
)
def test_keys_that_are_missing_or_wrong(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    path = saved(change(hollow("fasterrcnn_resnet50_fpn", 4)), tmp_path / "weights.pth")
    refused(path, message, tmp_path / "out")


@pytest.mark.parametrize(
    ("builder", "classes", "names", "message"),
    [
        (
            "fasterrcnn_resnet50_fpn",
            4,
            NAMES[:3],
            r"--classes has 3 names, .*file\.pth has 4 classes \(the background is",
        ),
        ("fasterrcnn_resnet50_fpn", None, NAMES, "--classes has 4 names, .* has 90 or 80 classes"),
        ("fasterrcnn_resnet50_fpn", 4, ("cat", "dog", "cow", "cat"), "--classes has 'cat' twice; names must differ"),
        (
            "fasterrcnn_resnet50_fpn",
            4,
            None,
            r"has 4 classes and not their names; name them with --classes, .* a,b,c,\.\.\.",
        ),
        ("keypointrcnn_resnet50_fpn", 3, None, "has 3 classes and not their names; .* --classes a,b,c$"),
        ("keypointrcnn_resnet50_fpn", 1, ("a", "b"), "--classes has 2 names, .* has 1 classes"),
    ],
)
def test_wrong_class_counts(
    tmp_path: Path, builder: str, classes: int | None, names: tuple[str, ...] | None, message: str
) -> None:
    refused(saved(hollow(builder, classes), tmp_path / "file.pth"), message, tmp_path / "out", names)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    write_tiny(tmp_path / "ours")
    refused(tmp_path / "ours" / MODEL, "the model.safetensors of a checkpoint of this project", tmp_path / "out")
    refused(tmp_path / "ours", "ours is a directory; give the file of a state dict", tmp_path / "out")
    refused(tmp_path / "nowhere.pth", r"there is no weights file .*nowhere\.pth", tmp_path / "out")


def test_nothing_is_written_over(imported: Path, tmp_path: Path) -> None:
    found = read_torchvision(imported.parent / "small.pth", NAMES)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    with pytest.raises(CheckpointError, match="precious exists; give another --out, or delete it first"):
        write_import(found, precious)
    assert (precious / "file").read_text() == "x"


def test_overrides_are_checked(tmp_path: Path) -> None:
    path = saved(hollow("fasterrcnn_resnet50_fpn", 4), tmp_path / "file.pth")
    with pytest.raises(ConfigError, match=r"model\.trunk\.norm_ep"):
        read_torchvision(path, NAMES, ["model.trunk.norm_ep=0"])


def test_exports_that_cannot_be(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    for out, message in (
        ("w.pth", "torchvision's maskrcnn_resnet50_fpn has other parameters: .* it cannot be exported"),
        ("w.bin", r"--out must end in \.pth or \.safetensors, got .*w\.bin"),
    ):
        with pytest.raises(CheckpointError, match=message):
            export_torchvision(tmp_path / "tiny", tmp_path / out)
    with pytest.raises(CheckpointError, match="nowhere is no checkpoint"):
        export_torchvision(tmp_path / "nowhere", tmp_path / "w.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_only_what_was_never_trained_may_lack_its_momentum(tmp_path: Path) -> None:
    write_tiny(tmp_path / "c")
    (tmp_path / "c" / STATE).unlink()
    with pytest.raises(CheckpointError, match=r"is no checkpoint: it lacks state\.pt; give one"):
        read_meta(tmp_path / "c")
