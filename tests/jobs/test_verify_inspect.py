"""What `maskrcnn verify` and `maskrcnn inspect` print, write and exit with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.main import app


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_verify_good_shards(shapes: Path) -> None:
    result = run("verify", shapes / "train", "--workers", "1")
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"shards                 {shapes / 'train'}: 3 files, ")
    assert "images                 24" in lines
    assert lines[-1].startswith("24 images of ") and lines[-1].endswith("nothing to mend")
    assert "24/24 (100 %)" in result.stderr


def test_verify_damaged_shards(shapes: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(shapes / "train", tmp_path / "s"))
    path = shards / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = run("verify", shards, "--workers", "1")
    assert result.exit_code == 1
    assert "1 x the file is damaged\n      shard-00001.parquet: sha256 " in result.stdout
    assert "    fix: copy the file again, or write the shards again\n" in result.stdout
    result = run("verify", shards, "--workers", "1", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["sound"] is False and said["rows"] == 24
    assert said["faults"]["counts"]["the file is damaged"] == 1
    assert said["faults"]["first"][0]["file"] == "shard-00001.parquet"


def test_verify_says_all_classes_as_json(shapes: Path) -> None:
    result = run("verify", shapes / "val", "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert len(said["classes"]) == 8 and sum(said["classes"].values()) == said["objects"] > 0
    assert said["faults"] == said["notes"] == {"counts": {}, "first": []}


@pytest.mark.parametrize("verb", [["verify"], ["inspect", "--stats"], ["inspect", "--sample", "1"]])
def test_no_shards(verb: list[str], tmp_path: Path) -> None:
    result = run(*verb, tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr.endswith("has no manifest.json: it holds no shards; run `maskrcnn shard` into it\n")


def test_inspect_draws_a_sample(shapes: Path, tmp_path: Path) -> None:
    shards = shapes / "train"
    table = pq.read_table(shards / "shard-00001.parquet")
    position = next(i for i, classes in enumerate(table["classes"].to_pylist()) if classes)
    record = table.slice(position, 1).to_pylist()[0]
    result = run("inspect", shards, "--sample", record["sample_id"])
    assert result.exit_code == 0, result.output
    path = tmp_path / f"sample-{record['sample_id']}.png"
    assert path.exists() and f"drawn in {path.name}" in result.stdout
    assert f"place        shard-00001.parquet row group {position // 4} row {position % 4}" in result.stdout
    assert f"{record['width']} x {record['height']} pixels, {len(record['image']):,} bytes" in result.stdout
    for number, box in zip(record["annotation_ids"], record["boxes"], strict=True):
        (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [str(number)]]
        assert "  ".join(f"{value:.1f}" for value in box) in line
    for name in (record["file_name"], Path(record["file_name"]).name):
        assert run("inspect", shards, "--sample", name, "--out", "here/other.jpg").exit_code == 0
        with Image.open(tmp_path / "here/other.jpg") as one, Image.open(path) as two:
            assert one.size == two.size
        (tmp_path / "here/other.jpg").unlink()


def test_inspect_an_image_without_annotations(shapes: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(shapes / "val", tmp_path / "s"))
    table = pq.read_table(shards / "shard-00000.parquet")
    rows = table.to_pylist()
    objects = ("boxes", "classes", "crowd", "areas", "annotation_ids", "rles", "crops", "keypoints")
    rows[0].update({name: [] for name in objects})
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shards / "shard-00000.parquet", row_group_size=4)
    result = run("inspect", shards, "--sample", rows[0]["sample_id"])
    assert result.exit_code == 0 and "0 objects, 0 crowd regions" in result.stdout
    assert "keypoints" not in result.stdout


def test_inspect_says_how_ids_look(shapes: Path) -> None:
    first = pq.read_table(shapes / "val/shard-00000.parquet").slice(0, 1).to_pylist()[0]
    for unknown in ("123456", "nothing.jpg", "9" * 30):
        result = run("inspect", shapes / "val", "--sample", unknown)
        assert result.exit_code == 2
        assert f"has no sample {unknown}; give an id or a file name of its 8 samples, such as " in result.stderr
        assert f"{first['sample_id']} ({first['file_name']})" in result.stderr


def test_inspect_writes_the_report(shapes: Path, tmp_path: Path) -> None:
    result = run("inspect", shapes / "train", "--stats")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("train-statistics/report.html: 24 images, ")
    names = {path.name for path in (tmp_path / "train-statistics").iterdir()}
    assert len(names) == 7 and "classes.png" in names


@pytest.mark.parametrize("words", [[], ["--stats", "--sample", "1"], ["--sample", "1", "--out", "x.txt"]])
def test_inspect_refuses(shapes: Path, words: list[str]) -> None:
    result = run("inspect", shapes / "train", *words)
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
