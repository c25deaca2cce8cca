import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import rle, scenes, shapes
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_index, to_records


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "made"
    shapes.generate_shapes(out, train=70, val=6, seed=5, workers=1)
    return out


def test_same_bytes_for_any_number_of_processes(made: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    shapes.generate_shapes(
        tmp_path / "b", train=70, val=6, seed=5, workers=2, progress=lambda done, total: calls.append((done, total))
    )
    assert files(made) == files(tmp_path / "b")
    assert calls[-1] == (76, 76)


def test_image_depends_on_seed_split_and_index_alone(tmp_path: Path, made: Path) -> None:
    shapes.generate_shapes(tmp_path, train=3, val=0, seed=5, workers=1)
    names = [f"train/{i:012d}.jpg" for i in (1, 2, 3)]
    assert [files(made)[name] for name in names] == [files(tmp_path)[name] for name in names]
    scene = shapes.render(5, "train", 0)
    for other in (shapes.render(6, "train", 0), shapes.render(5, "val", 0), shapes.render(5, "train", 1)):
        assert other.pixels.shape != scene.pixels.shape or not np.array_equal(other.pixels, scene.pixels)


def test_coco_layout_is_exact(made: Path) -> None:
    content = json.loads((made / "annotations/instances_train.json").read_bytes())
    assert [image["file_name"] for image in content["images"]] == [f"{i:012d}.jpg" for i in range(1, 71)]
    assert [category["name"] for category in content["categories"]] == list(scenes.CLASS_NAMES)
    assert [annotation["id"] for annotation in content["annotations"]] == list(
        range(1, len(content["annotations"]) + 1)
    )
    of = {image["id"]: image for image in content["images"]}
    taken = {number: np.zeros((image["height"], image["width"]), bool) for number, image in of.items()}
    for annotation in content["annotations"]:
        image = of[annotation["image_id"]]
        counts = rle.from_segmentation(annotation["segmentation"], image["height"], image["width"])
        mask = rle.to_mask(counts, image["height"], image["width"]).astype(bool)
        y, x = np.nonzero(mask)
        assert annotation["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert annotation["area"] == mask.sum() >= scenes.MIN_VISIBLE_PX
        assert not (mask & taken[annotation["image_id"]]).any()  # visible masks are disjoint
        taken[annotation["image_id"]] |= mask
    for image in content["images"]:
        picture = Image.open(made / "train" / image["file_name"])
        assert picture.format == "JPEG" and picture.size == (image["width"], image["height"])
        assert min(picture.size) == 160 and max(picture.size) <= 214


def test_keypoints_lie_beside_the_instances(made: Path) -> None:
    instances, keypoints = (json.loads(path.read_bytes()) for path in shapes.annotation_files(made, "train"))
    assert not any("keypoints" in item for key in ("annotations", "categories") for item in instances[key])
    assert [a["id"] for a in keypoints["annotations"]] == [a["id"] for a in instances["annotations"]]
    for annotation, points in zip(instances["annotations"], keypoints["annotations"], strict=True):
        x, y, w, h = annotation["bbox"]
        (top_x, top_y, *_), (right_x, right_y, *_), (bottom_x, bottom_y, *_), (left_x, left_y, *_) = np.reshape(
            points["keypoints"], (4, 3)
        )
        assert (top_y, right_x, bottom_y, left_x) == (y, x + w - 1, y + h - 1, x)
        assert x <= min(top_x, bottom_x) and max(top_x, bottom_x) <= x + w - 1
        assert y <= min(left_y, right_y) and max(left_y, right_y) <= y + h - 1
        assert points["num_keypoints"] == 4 and points["keypoints"][2::3] == [2, 2, 2, 2]


def test_extreme_points() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1, 2:5] = mask[2:4, 3] = mask[3, 1:7] = mask[4, 5] = True
    #                                  top         right         bottom      left
    assert shapes.extreme_points(mask) == [3, 1, 2, 6, 3, 2, 5, 4, 2, 1, 3, 2]
    single = np.zeros((3, 3), bool)
    single[2, 0] = True
    assert shapes.extreme_points(single) == [0, 2, 2] * 4
    assert shapes.extreme_points(np.ones((2, 4), bool)) == [1.5, 0, 2, 3, 0.5, 2, 1.5, 1, 2, 0, 0.5, 2]


def test_a_mirror_swaps_left_and_right() -> None:
    flip = [shapes.KEYPOINTS.index({"left": "right", "right": "left"}.get(name, name)) for name in shapes.KEYPOINTS]
    for i in range(20):
        scene = shapes.render(0, "train", i)
        for mask in scene.masks:
            points = np.reshape(shapes.extreme_points(mask), (-1, 3))[flip]
            points[:, 0] = mask.shape[1] - 1 - points[:, 0]
            np.testing.assert_array_equal(np.reshape(shapes.extreme_points(mask[:, ::-1]), (-1, 3)), points)


def test_keypoints_shard(made: Path, tmp_path: Path) -> None:
    instances, keypoints = shapes.annotation_files(made, "val")
    manifest = shard_dataset(read_coco(instances, made / "val", Quarantine(strict=True), keypoints), tmp_path)
    assert manifest.keypoints is not None
    assert manifest.keypoints.names == shapes.KEYPOINTS and manifest.keypoints.flip == (0, 3, 2, 1)
    assert manifest.counts["with_keypoints"] == manifest.counts["instances"] > 0


def test_scenes_are_varied_and_fair() -> None:
    made = [shapes.render(0, "train", i) for i in range(150)]
    names = [name for scene in made for name in scene.names]
    assert set(names) == set(scenes.CLASS_NAMES) and len(names) > 3 * len(made)
    assert {np.sign(s.pixels.shape[0] - s.pixels.shape[1]) for s in made} == {-1, 0, 1}
    assert any(not scene.names for scene in made) and max(len(scene.names) for scene in made) >= 6
    contrast = []
    for scene in made:
        everything = np.any(scene.masks, axis=0) if scene.masks else np.zeros(scene.pixels.shape[:2], bool)
        for mask in scene.masks:
            y, x = np.nonzero(mask)
            around = np.zeros_like(mask)
            around[max(y.min() - 6, 0) : y.max() + 7, max(x.min() - 6, 0) : x.max() + 7] = True
            around &= ~everything
            if around.sum() > 50:
                pixels = scene.pixels.astype(float)
                contrast.append(np.abs(pixels[mask].mean(axis=0) - pixels[around].mean(axis=0)).sum())
    assert np.quantile(contrast, 0.1) > 40  # levels over three channels


def test_hidden_objects_leave_the_scene() -> None:
    def body(radius: float, x: float = 80) -> scenes._Body:
        return scenes._body("circle", x, 80, radius, 0.0, 1.0, 160, 160)

    bodies, masks = scenes._visible([body(20), body(19), body(30, 82), body(8, 120)], 160, 160)
    assert [b.whole for b in bodies] == [body(30).whole, body(8).whole]
    assert all(mask.any() for mask in masks)


def test_coverage_of_a_circle_is_its_area() -> None:
    body = scenes._body("circle", 80.3, 70.8, 30.0, 1.0, 1.0, 160, 160)
    assert abs(body.coverage.sum() - np.pi * 30**2) < 5
    assert abs(body.whole - np.pi * 30**2) < 15
    ring = scenes._body("ring", 80, 80, 30.0, 0.0, 1.0, 160, 160)
    assert ring.coverage[80 - ring.y, 80 - ring.x] == 0  # the hole


def test_everything_shards(made: Path, tmp_path: Path) -> None:
    dataset = read_coco(made / "annotations/instances_val.json", made / "val", Quarantine(strict=True))
    manifest = shard_dataset(dataset, tmp_path)
    assert manifest.images == 6 and manifest.class_names == scenes.CLASS_NAMES
    assert manifest.generator == {"name": "shapes", "train": 70, "val": 6, "seed": 5, "size_px": 160, "version": 1}
    record = to_records(read_rows(tmp_path, load_index(tmp_path)))[0]
    assert Image.open(io.BytesIO(record["image"])).size == (record["width"], record["height"])


def test_second_call_keeps_and_other_settings_replace(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shapes.generate_shapes(out, train=3, val=1, workers=1)
    stamp = (out / "train/000000000003.jpg").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    shapes.generate_shapes(out, train=3, val=1, progress=lambda done, total: calls.append((done, total)))
    assert (out / "train/000000000003.jpg").stat().st_mtime_ns == stamp and calls == [(4, 4)]
    for missing in shapes.annotation_files(out, "val"):  # as if it had been interrupted, or made before there were both
        shapes.generate_shapes(out, train=3, val=1, workers=1)
        missing.unlink()
        shapes.generate_shapes(out, train=3, val=1, workers=1)
        assert missing.exists()
    shapes.generate_shapes(out, train=2, val=1, workers=1)
    assert sorted(path.name for path in (out / "train").iterdir()) == ["000000000001.jpg", "000000000002.jpg"]


def test_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/photo.jpg").write_bytes(b"precious")
    with pytest.raises(DataError, match="is not empty and was not made by this generator; give an empty"):
        shapes.generate_shapes(tmp_path, train=1, val=1)
    assert (tmp_path / "train/photo.jpg").read_bytes() == b"precious"
    with pytest.raises(DataError, match=r"need train >= 0, val >= 0 and size_px >= 32, got -1, 1 and 160"):
        shapes.generate_shapes(tmp_path / "new", train=-1, val=1)
