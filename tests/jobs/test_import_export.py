"""`maskrcnn import` and `maskrcnn export` as a user sees them."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from typer.testing import CliRunner, Result

from jobs.import_weights import class_names, load_table
from jobs.main import app
from model.weights.loading import LoadReport
from pipeline.training.checkpoint import CheckpointError, read_meta


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Of a Faster R-CNN on ResNet-18; its file takes no room."""
    with torch.device("meta"):
        trunk = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        network = detection.FasterRCNN(trunk, num_classes=3)
    return {name: torch.zeros((), dtype=v.dtype).expand(v.shape) for name, v in network.state_dict().items()}


def test_there_and_back(state: dict[str, Tensor], tmp_path: Path) -> None:
    file, names, out = tmp_path / "w.pth", tmp_path / "names.txt", tmp_path / "checkpoint"
    torch.save(state | {"extra.bias": torch.zeros(1)}, file)
    names.write_text("cat\n\n traffic light \n")
    shown = run("import", file, "--out", out, "--classes", names)
    assert shown.exit_code == 0, shown.output
    for line in (
        r"left        extra.bias",
        r"builder     torchvision's fasterrcnn_resnet50_fpn, body resnet18",
        r"classes     2: cat, traffic light",
        f"checkpoint  {out}",
        f"next        maskrcnn predict {out} IMAGE_OR_DIR --out predictions",
    ):
        assert line in shown.stdout
    assert read_meta(out)[1].class_names == ("cat", "traffic light")
    shown = run("export", out, "--format", "torchvision", "--out", tmp_path / "back.pth")
    assert shown.exit_code == 0, shown.output
    assert "FasterRCNN(resnet_fpn_backbone(backbone_name='resnet18', weights=None), num_classes=3)" in shown.stdout
    assert f"model.load_state_dict(torch.load('{tmp_path / 'back.pth'}', weights_only=True))" in shown.stdout
    assert torch.load(tmp_path / "back.pth", weights_only=True).keys() == state.keys()


def test_what_is_missing_is_shown_and_nothing_written(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("rpn.")}, file)
    shown = run("import", file, "--out", tmp_path / "checkpoint", "--classes", "cat,dog")
    assert shown.exit_code == 2
    assert "missing     rpn.conv.0.weight" in shown.stdout and "RPN" in shown.stdout
    assert "6 tensors are missing" in shown.stderr and "Traceback" not in shown.output
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_other_formats_are_refused(tmp_path: Path) -> None:
    shown = run("export", tmp_path, "--format", "caffe", "--out", tmp_path / "w.pth")
    assert shown.exit_code == 2 and "torchvision" in shown.stderr


def test_the_table_counts_by_part() -> None:
    report = LoadReport(
        matched=(
            "trunk.body.conv1.weight",
            "trunk.lateral.0.weight",
            "trunk.lateral.0.bias",
            "mask.layers.predictor.bias",
        ),
        missing=("rpn.conv.0.weight",),
        left=("fc.weight", "fc.bias"),
        mismatched=("box.scores.weight: [3] into [4]",),
    )
    console = Console(width=100, record=True)
    console.print(load_table(report))
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["part", "matched", "left", "missing", "other", "shape"] in rows
    for row in (
        "body 1 - - -",
        "pyramid 2 - - -",
        "mask head 1 - - -",
        "elsewhere - 2 - -",
        "RPN - - 1 -",
        "box head - - - 1",
        "all 4 2 1 1",
    ):
        assert row.split() in rows


def test_names_of_classes(tmp_path: Path) -> None:
    assert class_names("cat, dog ,traffic light") == ("cat", "dog", "traffic light")
    with pytest.raises(CheckpointError, match=r"there is no file names\.txt; give --classes a file of a name a line"):
        class_names("names.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        class_names(str(tmp_path / "binary.txt"))
