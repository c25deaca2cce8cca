"""The page: whole, offline, escaped, small; with every section that makes sense and no other."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_report import scene
from PIL import Image

from pipeline.evaluation.coco_ap import prepare, score
from pipeline.evaluation.protocols import Style, Task
from pipeline.report import report as module
from pipeline.report.analysis import analyse
from pipeline.report.picture_source import of_directory
from pipeline.report.report import Subject, write_report
from pipeline.report.speed import Prediction, Speed

EVIL = "<script>alert(1)</script>"
ALL = ["numbers", "errors", "curves", "sizes", "scores", "classes", "confusion"]
GALLERIES = ["best", "worst", "false-alarms", "missed"]


class Strict(html.parser.HTMLParser):
    """Collects what a page is made of, and fails on a tag that is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(path: Path) -> Strict:
    """The page, which must refer to nothing outside itself."""
    page = path.read_text(encoding="utf-8")
    found = Strict(page)
    assert all(address.startswith(("#", "data:image/")) for address in found.addresses)
    assert {address[1:] for address in found.addresses if address[0] == "#"} <= set(found.ids)
    styles = "".join(re.findall("<style>(.*?)</style>", page, re.DOTALL))
    assert styles and "url(" not in styles and "@import" not in styles and "http" not in styles
    assert found.tags.count("script") == 1 and "http" not in page[page.rindex("<script>") :]
    return found


def report(
    truth: dict[str, Any],
    results: list[Any],
    out: Path,
    task: Task = "box",
    style: Style = "coco",
    images: Path | str | None = None,
    pictures: int = 2,
    predicted: Prediction | None = None,
) -> Strict:
    prepared = prepare(truth, results, task, style)
    analysis, ap = analyse(prepared), score(prepared)
    source = "no pictures were given" if images is None else of_directory(images, truth)
    speed = Speed(len(truth["images"]), 0.5, 0.25, predicted)
    page = write_report(
        Subject(f"{EVIL} on data", "facts & more", {task: ap}, {task: analysis}, prepared, speed, source, pictures), out
    )
    assert page.stat().st_size < 5_000_000
    return parsed(page)


def paint(truth: dict[str, Any], directory: Path, size: tuple[int, int] = (100, 100)) -> None:
    """Random pictures, named in the annotations."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']} & <b>.png"
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(directory / image["file_name"])


def test_every_section_is_there_and_nothing_leads_outside(tmp_path: Path) -> None:
    truth, results = scene(1, images=20)
    truth["categories"][0]["name"] = EVIL
    paint(truth, tmp_path / "images")
    predicted = Prediction(9, 4, "2 x 1 GPU", ("A card",))
    page = report(truth, results, tmp_path / "report", images=tmp_path / "images", predicted=predicted)
    assert page.ids == [*ALL, *GALLERIES, "speed"]
    text = " ".join(page.text)
    assert EVIL in text and "1 & <b>.png" in text and "2 x 1 GPU, A card" in text and "images/s, a worker" in text
    charts = ["errors", "precision-recall", "sizes", "scores", "calibration", "confusion"]
    for path in [*(tmp_path / f"report/{name}.png" for name in charts), *(tmp_path / "report/galleries").iterdir()]:
        with Image.open(path) as picture:
            assert picture.width > 300 and np.asarray(picture.convert("L")).std() > 1
    assert len(list((tmp_path / "report/galleries").iterdir())) == 8
    assert sum(address.startswith("data:image/jpeg") for address in page.addresses) == 8
    assert sum(address.startswith("data:image/png") for address in page.addresses) == len(charts)


def test_without_pictures_a_sentence_says_why(tmp_path: Path) -> None:
    truth, results = scene(2)
    page = report(truth, results, tmp_path)
    assert page.ids == [*ALL, "pictures", "speed"] and "no pictures were given" in " ".join(page.text)


def empty(classes: int = 2) -> dict[str, Any]:
    return {**scene(0, images=3, classes=classes)[0], "annotations": []}


def test_nothing_found_nothing_there_or_neither(tmp_path: Path) -> None:
    truth, results = scene(4)
    (tmp_path / "images").mkdir()
    unfound = report(truth, [], tmp_path / "1", images=tmp_path / "images")
    assert unfound.ids == ["numbers", "errors", "curves", "sizes", "classes", "unread", "speed"]
    assert "There is not one detection." in unfound.text
    alone = [r for r in results if r["image_id"] <= 7]
    assert report(empty(3), alone, tmp_path / "2").ids == ["numbers", "classes", "pictures", "speed"]
    assert report(empty(), [], tmp_path / "3").ids == ["numbers", "classes", "pictures", "speed"]


def test_what_an_earlier_report_left_goes(tmp_path: Path) -> None:
    truth, results = scene(5)
    (tmp_path / "out/galleries").mkdir(parents=True)
    (tmp_path / "out/galleries/mine.png").write_bytes(b"of somebody else")
    paint(truth, tmp_path / "images")
    report(truth, results, tmp_path / "out", images=tmp_path / "images")
    assert (tmp_path / "out/confusion.png").exists() and len(list((tmp_path / "out/galleries").iterdir())) > 4
    report(empty(), [], tmp_path / "out")
    left = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    assert left == ["galleries", "galleries/mine.png", "report.html"]


def test_one_class_has_no_confusion(tmp_path: Path) -> None:
    truth, results = scene(6, classes=1)
    results = [r | {"category_id": 5} for r in results]
    assert report(truth, results, tmp_path).ids == [*ALL[:-1], "pictures", "speed"]


def test_many_classes_stay_small(tmp_path: Path) -> None:
    truth, results = scene(7, images=30)
    truth["categories"] = [{"id": k, "name": f"a class with a long name {k}", "frequency": "c"} for k in range(1, 1204)]
    for image in truth["images"]:
        image |= {"neg_category_ids": list(range(1, 50)), "not_exhaustive_category_ids": []}
    for row in truth["annotations"]:
        row["iscrowd"] = 0
    page = report(truth, results, tmp_path, style="lvis")
    assert page.ids == [*ALL, "pictures", "speed"] and not (tmp_path / "confusion.png").exists()
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    assert "1203 classes are too many for a matrix" in " ".join(page.text)


def test_proposals_have_recall_alone(tmp_path: Path) -> None:
    truth, results = scene(8)
    paint(truth, tmp_path / "images")
    page = report(truth, results, tmp_path / "out", "proposal", images=tmp_path / "images")
    assert page.ids == ["numbers", "sizes", "missed", "speed"]


def test_unbounded_scores_are_no_probabilities(tmp_path: Path) -> None:
    truth, results = scene(9)
    page = report(truth, [r | {"score": 10 * r["score"] - 3} for r in results], tmp_path)
    assert "The scores are not in 0..1" in " ".join(page.text) and not (tmp_path / "calibration.png").exists()


def test_pictures_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    truth, results = scene(10)
    paint(truth, tmp_path / "images")
    outside = tmp_path / "secret.png"
    Image.new("RGB", (100, 100)).save(outside)
    first, second, third, *_ = sorted({a["image_id"] for a in truth["annotations"]})
    by_id = {image["id"]: image for image in truth["images"]}
    by_id[first]["file_name"] = "../secret.png"
    (tmp_path / "images" / by_id[second]["file_name"]).write_bytes(b"no picture")
    Image.new("RGB", (99, 100)).save(tmp_path / "images" / by_id[third]["file_name"])
    page = report(truth, results, tmp_path / "out", images=tmp_path / "images", pictures=4)
    text = " ".join(page.text)
    assert "3 could not be shown" in text and f"image {first}: file_name leaves the picture directory" in text
    assert f"image {second}: " in text and f"image {third}: it has (100, 99) pixels, not (100, 100)" in text
    drawn = {int(path.stem.split("-")[-1]) for path in (tmp_path / "out/galleries").iterdir()}
    assert drawn and not drawn & {first, second, third}


def test_the_bytes_of_noisy_pictures_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, results = scene(11, images=6)
    paint(truth, tmp_path / "images")
    sizes = []
    for most in (3_500_000, 150_000):
        monkeypatch.setattr(module, "PICTURES_BYTES", most)
        page = report(truth, results, tmp_path / "out", images=tmp_path / "images", pictures=1)
        jpegs = [a for a in page.addresses if a.startswith("data:image/jpeg")]
        assert len(jpegs) == 4
        sizes.append(sum(map(len, jpegs)) * 3 // 4)
    assert sizes[0] > 300_000 > 150_000 >= sizes[1] - 200


def test_masks_and_keypoints_without_boxes_are_drawn(tmp_path: Path) -> None:
    truth, results = scene(12)
    paint(truth, tmp_path / "images")
    for row in [*truth["annotations"], *results]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
        row["keypoints"] = [x, y, 2, x + w, y + h, 2]
    truth["categories"][0] |= {"keypoints": ["a", "b"], "skeleton": [[1, 2], [2, 9]]}
    bare = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    tasks: tuple[Task, ...] = ("mask", "keypoint")
    for task in tasks:
        page = report(truth, json.loads(json.dumps(bare)), tmp_path / task, task, images=tmp_path / "images")
        assert page.ids == [*ALL, *GALLERIES, "speed"]


def test_the_rate_is_that_of_one_worker_at_work() -> None:
    prediction = Prediction(seconds=100.0, worker_seconds=10.0, workers="2 x 1 GPU", devices=("A card",))
    assert Speed(50, 1.0, 1.0, prediction).worker_images_per_second == 5.0
    assert Speed(50, 1.0, 1.0, None).worker_images_per_second is None
