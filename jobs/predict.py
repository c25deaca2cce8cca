"""`maskrcnn predict CHECKPOINT IMAGE_OR_DIR... --out DIR`: boxes and masks drawn, and COCO results; no Ray."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.console import err, out, progress
from pipeline.configure import apply_overrides
from pipeline.data.images import SUFFIXES, ImageError, decode, image_size
from pipeline.data.quarantine import DataError
from pipeline.data.records import Record, empty_record
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.evaluation.pictures import draw_predictions
from pipeline.evaluation.predict import Predictor
from pipeline.evaluation.shown_detections import from_detections
from pipeline.training.checkpoint import read_meta


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the pictures in the directories named. Raises DataError."""
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise DataError(f"{path} holds no pictures ({', '.join(SUFFIXES)}); name a directory that does")
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise DataError(f"there is no file or directory {path}")
    return images


def predict(
    checkpoint: Path, paths: Sequence[Path], out_dir: Path, *, score: float, overrides: Sequence[str] = ()
) -> None:
    """Draw what is found with at least `score`; results.json has all of it, and images.json says which is which.

    The checkpoint's own configuration holds, changed by `overrides`.
    """
    images = find_images(paths)
    config = apply_overrides(read_meta(checkpoint)[0], overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = Predictor(str(checkpoint), torch.get_num_threads(), device, config)
    if predictor.config.model.rpn is None:
        raise DataError(
            f"{checkpoint} is a model without an RPN: it reads proposals of another system, which pictures alone do "
            "not have; run `maskrcnn evaluate` on shards made with --proposals"
        )
    names, mask = predictor.meta.class_names, predictor.config.model.mask
    if predictor.config.model.box is None:
        names = ("object",) * len(names)  # a proposal has no class
    out_dir.mkdir(parents=True, exist_ok=True)
    results, listed, failed, instances = [], [], [], 0
    with progress("predicting", len(images)) as meter:
        for number, path in enumerate(images, start=1):
            try:
                data = path.read_bytes()
                pixels = decode(data)
            except (ImageError, OSError) as error:
                failed.append((path, str(error)))
                meter.advance()
                continue
            (found,) = predictor.detect([_record(number, path, data)])
            picture = out_dir / f"{number:05d}_{path.stem}.png"
            shown = from_detections(found, score, *((mask.paste, mask.threshold) if mask is not None else ()))
            draw_predictions(pixels, shown, names, picture)
            instances += len(shown.boxes)
            results += detections_to_results(
                found, number, predictor.meta.category_ids, *((mask.paste, mask.threshold) if mask is not None else ())
            )
            listed.append({"id": number, "file_name": str(path), "picture": picture.name})
            meter.advance()
    (out_dir / "results.json").write_text(json.dumps(results))
    (out_dir / "images.json").write_text(json.dumps(listed, indent=2, ensure_ascii=False))
    for path, reason in failed:
        err.print(f"{path} could not be read: {reason}", highlight=False, soft_wrap=True)
    out.print(
        f"{len(listed)} pictures with {instances} objects of score {score:g} or more in {out_dir}"
        + (f"; {len(failed)} files could not be read" if failed else ""),
        highlight=False,
        soft_wrap=True,
    )
    if not listed:
        raise DataError("none of the files could be read as a picture")


def _record(number: int, path: Path, data: bytes) -> Record:
    height, width = image_size(data)
    return empty_record(number, path.name, height, width, data)
