"""`maskrcnn shard` as users run it: on Ray, killed in the middle and started again, errors in one line."""

import json
import time
from pathlib import Path

import pytest
from maskrcnn_process import Maskrcnn, has_proc, run
from object_store import ObjectStore

from pipeline.data.coco import read_coco
from pipeline.data.quarantine import Quarantine
from pipeline.data.shapes import generate_shapes
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_manifest, verify

pytestmark = [pytest.mark.slow, has_proc]


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_killed_in_the_middle_the_same_command_goes_on(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "coco", train=480, val=0, seed=1, workers=1)
    json_file, images = tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/train"
    (images / "000000000007.jpg").unlink()
    dataset = read_coco(json_file, images, Quarantine())
    shard_dataset(dataset, tmp_path / "expected", rows_per_shard=6)
    out = tmp_path / "out"
    words = ["shard", "coco", "--annotations", json_file, "--images", images, "--out", out, "--rows-per-shard", "6"]

    def slips() -> int:
        return len(list(out.glob(".progress/shard-*.json")))

    with Maskrcnn(*words, "--workers", "2", cwd=tmp_path) as first:
        first.wait_until(lambda: slips() >= 3)
        first.kill()
        assert not first.pids()
    done = slips()
    assert 3 <= done < 80 and not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    time.sleep(0.01)
    code, stdout, stderr = run(*words, "--workers", "2", cwd=tmp_path)
    assert code == 0, stderr
    assert files(out) == files(tmp_path / "expected")
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in kept.items()) >= done
    assert "1 x image: picture is missing" in stdout
    assert "sharding instances_train 480/480 (100 %)" in stderr
    assert verify(out).images == 479

    code, _, stderr = run(*words, cwd=tmp_path)
    assert code == 2
    assert stderr == f"error: {out} already holds complete shards; choose another directory, or pass --overwrite\n"


def test_ray_tasks_read_and_write_an_object_store(object_store: ObjectStore, shapes: Path, tmp_path: Path) -> None:
    pictures = object_store.upload(shapes / "coco/train", "command/images")
    out = object_store.uri("command/shards")
    json_file = shapes / "coco/annotations/instances_train.json"
    words = ["shard", "coco", "--annotations", json_file, "--images", pictures, "--out", out]
    object_store.fail_every = 10
    try:
        code, stdout, stderr = run(*words, "--rows-per-shard", "5", "--workers", "2", cwd=tmp_path)
    finally:
        object_store.fail_every = None
    assert code == 0, stderr
    assert "24" in stdout and "sharding instances_train 24/24 (100 %)" in stderr
    manifest = verify(out)
    dataset = read_coco(json_file, shapes / "coco/train", Quarantine())
    expected = shard_dataset(dataset, tmp_path / "expected", rows_per_shard=5)
    assert (manifest.fingerprint, manifest.index_sha256) == (expected.fingerprint, expected.index_sha256)
    assert not list(tmp_path.glob("s3*"))  # a URI is no path


def test_one_shard_needs_no_ray(shapes: Path, tmp_path: Path) -> None:
    words = ["--annotations", shapes / "coco/annotations/instances_val.json", "--images", shapes / "coco/val"]
    with Maskrcnn("shard", "coco", *words, "--out", "out", cwd=tmp_path) as command:
        assert command.wait() == 0, command.stderr
        assert not list(Path(command.ray).iterdir())
    assert load_manifest(tmp_path / "out").images == 8


def test_an_old_directory_names_the_command_that_converts_it(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "val/manifest.json").read_text()) | {"format_version": 1}
    (tmp_path / "old").mkdir()
    (tmp_path / "old/manifest.json").write_text(json.dumps(content))
    code, _, stderr = run("shard", "migrate", "old", "--out", "new", cwd=tmp_path)
    assert code == 2 and stderr.startswith("error: ") and "is no whole directory of shards of format 1" in stderr
