"""Data sets joined: what only one of them has is counted too."""

import json
import shutil
from pathlib import Path

from pipeline.data.mixture import join_manifests
from pipeline.data.shards import load_manifest


def test_counts_of_what_only_one_data_set_has(shapes: Path, tmp_path: Path) -> None:
    one, other = shapes / "train", Path(shutil.copytree(shapes / "val", tmp_path / "val"))
    content = json.loads((other / "manifest.json").read_text())
    content["counts"] |= {"label_ids": 8, "with_keypoints": 3}
    (other / "manifest.json").write_text(json.dumps(content))
    parts = [load_manifest(one).counts, load_manifest(other).counts]
    expected = {key: sum(part.get(key, 0) for part in parts) for key in parts[1]}
    assert expected["label_ids"] == 8 and 0 in expected.values()
    for places in ((str(one), str(other)), (str(other), str(one))):
        assert join_manifests(places).counts == expected
