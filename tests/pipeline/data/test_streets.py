import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from pipeline.data import rle, shards, street_scenes, streets
from pipeline.data.cityscapes import read_cityscapes
from pipeline.data.cityscapes_labels import CATEGORY_IDS, CLASS_NAMES, label_ids
from pipeline.data.quarantine import DataError, Quarantine

SIZE = 96


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("streets") / "made"
    streets.generate_streets(out, train=14, val=3, seed=5, height_px=SIZE, workers=1)
    return out


def test_same_bytes_for_any_number_of_processes(made: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    streets.generate_streets(
        tmp_path / "b", train=14, val=3, seed=5, height_px=SIZE, workers=2, progress=lambda *call: calls.append(call)
    )
    assert files(made) == files(tmp_path / "b")
    assert calls[0] == (0, 17) and calls[-1] == (17, 17)


def test_picture_depends_on_seed_split_and_index_alone(made: Path, tmp_path: Path) -> None:
    streets.generate_streets(tmp_path, train=4, val=0, seed=5, height_px=SIZE, workers=1)
    few = files(tmp_path)
    assert len(few) == 4 * 5 + 1
    assert all(files(made)[name] == content for name, content in few.items() if name != "generator.json")
    street = streets.render(5, "train", 0, SIZE)
    for other in (
        streets.render(6, "train", 0, SIZE),
        streets.render(5, "val", 0, SIZE),
        streets.render(5, "train", 1, SIZE),
    ):
        assert not np.array_equal(other.pixels, street.pixels)


def test_an_interrupted_call_goes_on(made: Path, tmp_path: Path) -> None:
    settings = {"train": 3, "val": 1, "seed": 5, "height_px": SIZE}
    streets.generate_streets(tmp_path, **settings, workers=1)
    whole = files(tmp_path)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in whole}
    gone = [name for name in whole if "000001_000019" in name]
    assert len(gone) == 5
    for name in gone[1:]:  # the polygons, written last, are among them
        (tmp_path / name).unlink()
    calls: list[tuple[int, int]] = []
    streets.generate_streets(tmp_path, **settings, progress=lambda *call: calls.append(call))
    assert files(tmp_path) == whole and calls == [(3, 4), (4, 4)]
    kept = [name for name in whole if name not in gone]
    assert all((tmp_path / name).stat().st_mtime_ns == stamps[name] for name in kept)


def test_other_settings_replace_and_foreign_files_stay(tmp_path: Path) -> None:
    streets.generate_streets(tmp_path / "a", train=2, val=1, height_px=64, workers=1)
    streets.generate_streets(tmp_path / "a", train=1, val=0, height_px=64, workers=1)
    assert len(files(tmp_path / "a")) == 6
    (tmp_path / "b").mkdir()
    (tmp_path / "b/photo.png").write_bytes(b"precious")
    with pytest.raises(DataError, match="is not empty and was not made by this generator; give an empty"):
        streets.generate_streets(tmp_path / "b", train=1, val=1)
    assert files(tmp_path / "b") == {"photo.png": b"precious"}
    with pytest.raises(DataError, match=r"need train >= 0, val >= 0 and height_px >= 64, got 1, -1 and 64"):
        streets.generate_streets(tmp_path / "new", train=1, val=-1, height_px=64)


def test_the_polygons_give_the_pictures_of_ids(made: Path) -> None:
    polygons = sorted(made.glob("gtFine/*/*/*_polygons.json"))
    assert len(polygons) == 17
    labels_seen: set[str] = set()
    for path in polygons:
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        labels_seen |= {thing.label for thing in annotation.objects}

        def image(kind: str, path: Path = path) -> Image.Image:
            return Image.open(str(path).replace("polygons.json", kind))

        assert image("instanceIds.png").mode.startswith("I;16") and image("labelIds.png").mode == "L"
        assert image("instanceIds.png").size == (2 * SIZE, SIZE)
        expected = np.asarray(createInstanceImage(annotation, "ids"))
        assert np.array_equal(np.asarray(image("instanceIds.png")), expected)
        assert np.array_equal(np.asarray(image("labelIds.png")), np.asarray(createLabelImage(annotation, "ids")))
        assert np.array_equal(np.asarray(image("color.png")), np.asarray(createLabelImage(annotation, "color")))
    assert labels_seen >= {"sky", "building", "road", "sidewalk", "vegetation", "ego vehicle", "car", "person"}


def test_records_are_the_pictures_of_ids(made: Path) -> None:
    for split, cities in streets.CITIES.items():
        dataset = read_cityscapes(made, split, Quarantine(strict=True))
        assert dataset.generator == json.loads((made / "generator.json").read_bytes())
        assert {entry.file_name.split("/")[2] for entry in dataset.entries} == set(cities)
        for entry in dataset.entries:
            sample = dataset.reader.read(entry, dataset.quarantine)
            assert sample is not None
            record = sample.record
            assert Image.open(io.BytesIO(record["image"])).format == "PNG"
            ids = np.asarray(Image.open(made / entry.file_name.replace("leftImg8bit", "gtFine").replace(
                "gtFine.png", "gtFine_instanceIds.png")))  # fmt: skip
            drawn = np.zeros_like(ids)
            for number, counts in zip(record["annotation_ids"], record["rles"], strict=True):
                mask = rle.to_mask(counts, record["height"], record["width"]).astype(bool)
                assert not drawn[mask].any()
                drawn[mask] = number % 100000
            scored = np.isin(label_ids(ids), CATEGORY_IDS)
            assert np.array_equal(drawn, np.where(scored, ids, 0))
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(record["semantic"]))), label_ids(ids))


def test_streets_are_varied() -> None:
    made = [streets.render(0, "train", i, 96) for i in range(60)]
    found = [np.unique(street.instance_ids) for street in made]
    per_label = {
        name: sum(int((ids // 1000 == number).sum()) for ids in found)
        for name, number in zip(CLASS_NAMES, CATEGORY_IDS, strict=True)
    }
    assert min(per_label.values()) >= 3, per_label
    assert any(not (ids >= 1000).any() for ids in found) and max((ids >= 1000).sum() for ids in found) >= 12
    assert {24, 26} <= {int(i) for ids in found for i in ids if 24 <= i < 1000}  # groups
    visible = np.concatenate([np.unique(street.instance_ids, return_counts=True) for street in made], axis=1)
    assert visible[1, visible[0] >= 1000].min() >= street_scenes.MIN_VISIBLE_PX // 2
    for street in made:
        assert street.pixels.shape == (96, 192, 3) and street.pixels.dtype == np.uint8


def test_a_wheel_shows_what_is_behind_it() -> None:
    """Some bicycle or other has a hole, and its pixels are the ground's in the picture too."""
    holes = 0
    for i in range(20):
        street = streets.render(1, "train", i, 192)
        names = [thing["label"] for thing in street.objects]
        after = [name for before, name in itertools.pairwise(names) if before == "bicycle"]
        holes += sum(name in ("road", "sidewalk", "building") for name in after)
    assert holes >= 5


def test_full_size() -> None:
    street = streets.render(0, "val", 1, 1024)
    assert street.pixels.shape == (1024, 2048, 3) and street.instance_ids.shape == (1024, 2048)


def test_everything_shards(made: Path, tmp_path: Path) -> None:
    dataset = read_cityscapes(made, "val", Quarantine(strict=True))
    manifest = shards.write_shards(dataset, tmp_path)
    assert manifest.images == 3 and manifest.class_names == CLASS_NAMES and manifest.category_ids == CATEGORY_IDS
    assert manifest.generator == {
        "train": 14, "val": 3, "seed": 5, "height_px": SIZE, "name": "streets", "version": 1
    }  # fmt: skip
    row = shards.read_rows(tmp_path / shards.shard_name(0), 0, [0])[0]
    assert Image.open(io.BytesIO(row["semantic"])).size == (row["width"], row["height"])
