"""Every format of `maskrcnn shard` on tiny data, and what `verify` and `inspect` say of the result."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.main import app
from pipeline.data.shards import Manifest, annotations, load_index, load_manifest
from pipeline.data.streets import generate_streets

JOINTS = ["nose", "left_eye", "right_eye"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def run(*words: str | Path | int) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def shard(*words: str | Path | int) -> str:
    result = run("shard", *words)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def row(stdout: str, label: str) -> list[str]:
    """The numbers beside a label of the summary."""
    (line,) = [line for line in stdout.splitlines() if line.startswith(f"{label}  ")]
    return line.removeprefix(label).split()


def looked_at(directory: str | Path) -> tuple[Manifest, str]:
    """The manifest, and what `verify` prints, of shards that all of `verify` and `inspect` work on."""
    result = run("verify", directory, "--workers", 1)
    assert result.exit_code == 0, result.output
    verified = str(result.stdout)
    index = load_index(directory).to_pylist()
    number = max(index, key=lambda row: row["instances"])["sample_id"]
    result = run("inspect", directory, "--sample", number, "--out", "drawn/sample.png")
    assert result.exit_code == 0, result.output
    with Image.open("drawn/sample.png") as drawn:
        assert min(drawn.size) >= 480
    result = run("inspect", directory, "--stats", "--out", "drawn/report")
    assert result.exit_code == 0, result.output
    assert "made from" in Path("drawn/report/report.html").read_text()
    manifest = load_manifest(directory)
    assert manifest.images == len(index) > 0
    return manifest, verified


@pytest.fixture
def content(shapes: Path) -> dict[str, Any]:
    """COCO's JSON of 8 generated pictures, to change."""
    found: dict[str, Any] = json.loads((shapes / "coco/annotations/instances_val.json").read_text())
    return found


def write(name: str, content: dict[str, Any]) -> Path:
    path = Path(name)
    path.write_text(json.dumps(content))
    return path


def test_coco_with_keypoints(shapes: Path, content: dict[str, Any]) -> None:
    plain = write("instances.json", content)
    content["categories"][0] |= {"keypoints": JOINTS, "skeleton": [[1, 2]]}
    chosen = content["annotations"][:2]
    for annotation in chosen:
        annotation["keypoints"] = [9, 9, 2, 12, 9, 1, 0, 0, 0]
    joints = write("person_keypoints.json", {**content, "annotations": chosen})
    said = shard("coco", "--annotations", plain, "--keypoints", joints, "--images", shapes / "coco/val", "--out", "s")
    assert row(said, "instances with keypoints") == ["2"] and row(said, "keypoints an instance") == ["3"]
    manifest, verified = looked_at("s")
    assert manifest.keypoints is not None and manifest.keypoints.names == tuple(JOINTS)
    assert manifest.counts["with_keypoints"] == 2 and row(verified, "  with keypoints") == ["2"]
    assert sum(load_index("s")["keypoints"].to_pylist()) == 4
    assert len(manifest.class_names) == 8 and manifest.source["keypoints"] == "person_keypoints.json"


def test_coco_without_keypoints_says_nothing_of_them(shapes: Path) -> None:
    words = ["--annotations", shapes / "coco/annotations/instances_val.json", "--images", shapes / "coco/val"]
    assert "instances with keypoints" not in shard("coco", *words, "--out", "s")
    result = run("shard", "coco", *words, "--out", "s")
    assert result.exit_code == 2 and "already holds complete shards" in result.stderr
    shard("coco", *words, "--out", "s", "--overwrite", "--rows-per-shard", 3, "--workers", 1)
    assert len(looked_at("s")[0].shards) == 3


def test_coco_boxes_only(shapes: Path, content: dict[str, Any]) -> None:
    for annotation in content["annotations"][1:]:
        del annotation["segmentation"]
    total = len(content["annotations"])
    words = ["coco", "--annotations", write("boxes.json", content), "--images", shapes / "coco/val"]
    said = shard(*words, "--out", "without")
    reason = "no segmentation (`maskrcnn shard coco --boxes-only` takes the box as the mask)"
    assert f"  {total - 1} x annotation: {reason}" in said and row(said, "instances") == ["1"]
    result = run("shard", *words, "--out", "strict", "--strict")
    assert result.exit_code == 2 and reason in result.stderr
    said = shard(*words, "--out", "boxes", "--boxes-only")
    fact = f"{total - 1} of {total} annotations have no segmentation, their masks are rectangles"
    assert f"  {fact} of boxes: do not train or score masks on them" in said
    assert row(said, "instances") == [str(total)]
    manifest, verified = looked_at("boxes")
    assert manifest.source["masks"] == fact and fact in verified
    ours = {annotation["id"]: annotation for annotation in annotations("boxes")["annotations"]}
    assert all(ours[annotation["id"]]["bbox"] == annotation["bbox"] for annotation in content["annotations"])


def test_lvis(shapes: Path, content: dict[str, Any]) -> None:
    for category, frequency in zip(content["categories"], "rrcccfff", strict=True):
        category["frequency"] = frequency
    absent = {number: set(range(1, 9)) for number in range(1, 9)}
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
        absent[annotation["image_id"]].discard(annotation["category_id"])
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": sorted(absent[image["id"]])[:2], "not_exhaustive_category_ids": []}
    content["images"][0]["not_exhaustive_category_ids"] = [1]
    shutil.copytree(shapes / "coco/val", "pictures/val2017")
    said = shard("lvis", "--annotations", write("lvis.json", content), "--images", "pictures", "--out", "s")
    assert " ".join(row(said, "  rare, common, frequent")) == "2, 3, 3"
    assert row(said, "classes not all annotated, over all images") == ["1"]
    manifest, verified = looked_at("s")
    assert manifest.scoring == "lvis" and manifest.frequencies == tuple("rrcccfff")
    negative = sum(len(image["neg_category_ids"]) for image in content["images"])
    assert manifest.counts["negative_classes"] == negative > 0
    assert row(verified, "classes said to be absent") == [str(negative)]
    del content["categories"][0]["frequency"]
    result = run("shard", "lvis", "--annotations", write("no.json", content), "--images", "pictures", "--out", "no")
    assert result.exit_code == 2 and "shard it as COCO" in result.stderr


def test_cityscapes() -> None:
    generate_streets(Path("c"), train=5, val=2, height_px=96, workers=1)
    said = shard("cityscapes", "--root", "c", "--split", "train", "--out", "all", "--strict")
    assert row(said, "images") == row(said, "images with label ids") == ["5"]
    manifest, verified = looked_at("all")
    assert manifest.scoring == "cityscapes" and manifest.options["rows_per_shard"] == 64
    assert row(verified, "images with label ids") == ["5"]
    shard(
        "cityscapes", "--root", "c", "--split", "train", "--out", "some", "--city", "nordhaven", "--city", "felsenbruck"
    )
    manifest, _ = looked_at("some")
    assert manifest.images == 3 and manifest.source["cities"] == "felsenbruck, nordhaven"
    for words, message in (
        (["--split", "train", "--city", "ulm"], "no pictures of ulm in leftImg8bit/train; choose from felsenbruck"),
        (["--split", "none"], "name a split that is there"),
    ):
        result = run("shard", "cityscapes", "--root", "c", "--out", "x", *words)
        assert result.exit_code == 2 and message in result.stderr
    shutil.copytree("c/leftImg8bit/val", "c/leftImg8bit/test")
    said = shard("cityscapes", "--root", "c", "--split", "test", "--out", "test")
    assert row(said, "images") == row(said, "images without annotations") == ["2"] and "label ids" not in said
    assert looked_at("test")[0].scoring == "none"


def test_images_have_no_classes(shapes: Path) -> None:
    shutil.copytree(shapes / "coco/val", "pictures/below")
    Path("pictures/broken.jpg").write_bytes(b"nothing")
    Path("pictures/notes.txt").write_text("no picture")
    said = shard("images", "--images", "pictures", "--out", "s")
    assert row(said, "images") == row(said, "images without annotations") == ["8"]
    assert row(said, "classes") == ["0"] and "1 x image: picture does not decode" in said
    manifest, verified = looked_at("s")
    assert manifest.class_names == () and manifest.scoring == "none"
    assert verified.splitlines()[-1].endswith("nothing to mend")
    result = run("shard", "images", "--images", "pictures", "--out", "t", "--strict")
    assert result.exit_code == 2 and "broken.jpg" in result.stderr


def test_streets_end_to_end() -> None:
    words = ["streets", "--train-images", 4, "--val-images", 2, "--height", 96, "--out", "made"]
    said = shard(*words)
    assert row(said, "images") == row(said, "images with label ids") == ["4", "2"]
    before = {path: path.stat().st_mtime_ns for path in Path("made").rglob("*.*")}
    assert len(list(Path("made/cityscapes").rglob("*_leftImg8bit.png"))) == 6
    for split in ("train", "val"):
        manifest, _ = looked_at(f"made/{split}")
        assert manifest.generator is not None and manifest.generator["height_px"] == 96
        assert manifest.class_names[0] == "person" and manifest.scoring == "cityscapes"
    assert shard(*words) == said
    assert {path: path.stat().st_mtime_ns for path in Path("made").rglob("*.*")} == before
    assert row(shard(*words, "--seed", 7), "images") == ["4", "2"]  # other settings: drawn and sharded again
    manifest = load_manifest("made/train")
    assert manifest.generator is not None and manifest.generator["seed"] == 7


@pytest.mark.parametrize("name", ["streets", "shapes"])
def test_generated_data_do_not_replace_those_of_others(shapes: Path, name: str) -> None:
    words = ["--annotations", shapes / "coco/annotations/instances_val.json", "--images", shapes / "coco/val"]
    shard("coco", *words, "--out", "here/train")
    manifest = json.loads(Path("here/train/manifest.json").read_text())
    manifest["generator"] = None
    Path("here/train/manifest.json").write_text(json.dumps(manifest))
    result = run("shard", name, "--out", "here", "--train-images", 2, "--val-images", 1)
    assert result.exit_code == 2 and result.stderr.count("error: ") == 1
    assert "here/train holds shards of another data set; choose another --out" in result.stderr
    assert load_manifest("here/train").images == 8
