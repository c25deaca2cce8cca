"""Detections as Cityscapes' evaluation server takes them: a text file a picture, and a PNG a mask.

{name}_pred.txt             a line a detection: the PNG's path, label id, score; name is {city}_{sequence}_{frame}
{name}_masks/{number}.png   8-bit grey, 255 where the object is
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.data import rle
from pipeline.data.cityscapes import PICTURES
from pipeline.data.cityscapes_labels import CATEGORY_IDS
from pipeline.data.manifest import load_manifest
from pipeline.data.quarantine import DataError
from pipeline.data.shard_rows import read_rows
from pipeline.data.storage import Location
from pipeline.errors import UserError


def check_submission(shards: Location) -> None:
    """Raises DataError where a submission cannot be written for shards. Those of the split test need no truth."""
    if load_manifest(shards).category_ids != CATEGORY_IDS:
        raise DataError(
            f"{shards} does not hold Cityscapes' classes, and evaluate.submission writes for its server alone; "
            "set evaluate.submission=false"
        )


def write_submission(
    shards: Location, rows: pa.Table, found: Mapping[int, Sequence[Mapping[str, Any]]], directory: Path
) -> None:
    """Write the files of all pictures, also of those without detections.

    Args:
        shards: of Cityscapes' pictures.
        rows: of the pictures, as the index has them.
        found: sample id -> results, see write_picture.
        directory: of the submission; text files of an earlier one that lie there go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*_pred.txt"):
        old.unlink()
    for row in read_rows(shards, rows, ("sample_id", "file_name")).to_pylist():
        write_picture(directory, row["file_name"], found[row["sample_id"]])


def write_picture(directory: Path, file_name: str, results: Sequence[Mapping[str, Any]]) -> Path:
    """Write the files of one picture; returns the text file.

    Args:
        directory: of the submission.
        file_name: of the picture, {city}_{sequence}_{frame}_leftImg8bit.png; folders before it are left out.
        results: of the picture, in COCO's results format with masks; category ids are Cityscapes' label ids.
    """
    name = PurePosixPath(file_name).name
    if not name.endswith(f"_{PICTURES}.png") or name.count("_") != 3:
        raise UserError(
            f"a submission names its files after Cityscapes' pictures, CITY_SEQUENCE_FRAME_{PICTURES}.png, got {name}; "
            "set evaluate.submission=false for other data"
        )
    name = name.removesuffix(f"_{PICTURES}.png")
    masks = directory / f"{name}_masks"
    masks.mkdir(parents=True, exist_ok=True)
    for old in masks.glob("*.png"):
        old.unlink()
    lines = []
    for number, result in enumerate(results):
        if "segmentation" not in result or not math.isfinite(result["score"]):
            raise UserError(f"a submission needs masks with finite scores, got {sorted(result)}; predict masks too")
        height, width = result["segmentation"]["size"]
        counts = result["segmentation"]["counts"]
        mask = rle.to_mask(counts if isinstance(counts, bytes) else counts.encode("ascii"), height, width)
        path = masks / f"{number:04d}.png"
        Image.fromarray(np.ascontiguousarray(mask) * np.uint8(255)).save(path, "PNG", compress_level=1)
        lines.append(f"{masks.name}/{path.name} {result['category_id']} {float(result['score'])!r}\n")
    text = directory / f"{name}_pred.txt"
    text.write_text("".join(lines), encoding="ascii")
    return text
