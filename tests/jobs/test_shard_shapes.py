from pathlib import Path

import pytest

from jobs.shard import shard_shapes
from pipeline.data.manifest import load_manifest


def test_keypoints_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there is kept only if it is what is asked for; the pictures and masks are the same either way."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def shard(keypoints: bool) -> Path:
        shard_shapes(tmp_path, train_images=3, val_images=2, seed=1, keypoints=keypoints)
        return tmp_path / "train/manifest.json"

    plain = shard(False)
    stamp, fingerprint = plain.stat().st_mtime_ns, load_manifest(tmp_path / "train").fingerprint
    assert shard(False).stat().st_mtime_ns == stamp
    for split in ("train", "val"):
        assert load_manifest(tmp_path / split).keypoints is None
    stamp = shard(True).stat().st_mtime_ns
    assert shard(True).stat().st_mtime_ns == stamp
    for split in ("train", "val"):
        manifest = load_manifest(tmp_path / split)
        assert manifest.keypoints is not None and manifest.counts["with_keypoints"] == manifest.counts["instances"] > 0
    shard(False)
    assert load_manifest(tmp_path / "train").fingerprint == fingerprint
