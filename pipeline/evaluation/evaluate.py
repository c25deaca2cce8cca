"""AP of a checkpoint on shards, by COCO's or Cityscapes' protocol in original pixels, with the files that explain it.

Into one directory: results_box.json and results_mask.json (COCO's results format), ap.json, per_class.csv,
pr_curves.png (COCO's protocol), pictures/*.png. Beside it, where evaluate.submission is set, a directory for
Cityscapes' server; it would be too many files for MLflow.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig, Scorer
from pipeline.data.images import decode
from pipeline.data.quarantine import DataError
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import annotations, load_index, load_manifest, to_records
from pipeline.data.storage import Location
from pipeline.errors import UserError
from pipeline.evaluation.cityscapes_ap import score_shards
from pipeline.evaluation.cityscapes_submission import check_submission, write_submission
from pipeline.evaluation.cityscapes_truth import check_cityscapes
from pipeline.evaluation.coco_ap import CocoAp, evaluate_coco
from pipeline.evaluation.curves import pr_curves
from pipeline.evaluation.instances import from_record, from_results
from pipeline.evaluation.pictures import draw_comparison, gallery
from pipeline.evaluation.predict import choose_rows, predict_shards
from pipeline.evaluation.tables import Ap, class_columns, write_ap_json, write_per_class_csv
from pipeline.training.checkpoint import Meta, read_meta
from pipeline.training.cluster import Layout

PICTURE_SCORE = 0.5  # detections below it are not drawn


@dataclass(frozen=True)
class Evaluation:
    """What came out, and where it lies."""

    aps: dict[str, Ap]  # "box", "mask"; by Cityscapes' protocol "mask" alone
    images: int
    undecodable: dict[int, str]  # sample id -> why; they count as images without detections
    directory: Path
    pictures: tuple[Path, ...]
    submission: Path | None = None  # a directory


def check_classes(meta: Meta, shards: Location) -> None:
    """Raises DataError where shards do not have the classes a checkpoint was trained on."""
    names = load_manifest(shards).class_names
    if names != meta.class_names:
        other = [n for n in names if n not in meta.class_names] + [n for n in meta.class_names if n not in names]
        raise DataError(
            f"{shards} has {len(names)} classes, the checkpoint was trained on {len(meta.class_names)}; they differ in "
            f"{', '.join(other[:5]) or 'order'}; evaluate on shards made from the same categories"
        )


def choose_protocol(config: RunConfig, shards: Location) -> Scorer:
    """By which protocol a model is scored on shards. Raises UserError where it cannot be."""
    wanted, masks = config.evaluate.protocol, config.model.mask is not None
    if config.evaluate.submission:
        check_submission(shards)
    if not masks and (wanted == "cityscapes" or config.evaluate.submission):
        key = "protocol=cityscapes" if wanted == "cityscapes" else "submission=true"
        raise UserError(f"evaluate.{key} needs masks, and the model finds none (model.mask is null); leave it out")
    if wanted == "cityscapes":
        check_cityscapes(shards)
    if wanted is not None:
        return wanted
    return "cityscapes" if masks and load_manifest(shards).scoring == "cityscapes" else "coco"


def evaluate(
    checkpoint: Path,
    shards: Location,
    config: RunConfig,
    layout: Layout,
    directory: Path,
    on_progress: Callable[[int], None],
) -> Evaluation:
    """Predict, score, draw. Ray must run.

    Args:
        checkpoint: directory.
        shards: directory, with the checkpoint's classes.
        config: its `evaluate` and `data` settings; the model is the checkpoint's.
        layout: workers that predict.
        directory: where files go.
        on_progress: told how many images are done.

    Raises:
        DataError: the shards have other classes.
        UserError: the protocol, or a submission, does not go with the model or the shards.
    """
    check_classes(read_meta(checkpoint)[1], shards)
    protocol = choose_protocol(config, shards)
    category_ids = load_manifest(shards).category_ids
    chosen = choose_rows(load_index(shards), config.evaluate.max_images)
    expected = set(chosen["sample_id"].to_pylist())
    found: dict[int, list[dict[str, Any]]] = {}
    undecodable: dict[int, str] = {}
    for predicted in predict_shards(checkpoint, shards, config, layout):
        if predicted.sample_id in found:
            raise RuntimeError(f"sample {predicted.sample_id} was predicted twice: a bug in reading the shards")
        found[predicted.sample_id] = predicted.results
        if predicted.error is not None:
            undecodable[predicted.sample_id] = predicted.error
        on_progress(len(found))
    if found.keys() != expected:
        raise RuntimeError(f"{len(expected - found.keys())} images were not predicted: a bug in reading the shards")
    results = [result for sample_id in sorted(found) for result in found[sample_id]]
    directory.mkdir(parents=True, exist_ok=True)
    aps: dict[str, Ap] = {}
    if protocol == "cityscapes":
        aps["mask"] = score_shards(shards, found)
        (directory / "pr_curves.png").unlink(missing_ok=True)  # of an earlier evaluation
    else:
        coco = _score_coco(_restrict(annotations(shards), expected), results, config)
        pr_curves(coco, directory / "pr_curves.png")
        aps |= coco
    for task, left_out in {"box": "segmentation", "mask": "bbox"}.items():
        if task in aps:  # one file a task: with boxes in a mask file, pycocotools takes the boxes' areas for its sizes
            lines = [{k: v for k, v in result.items() if k != left_out} for result in results]
            (directory / f"results_{task}.json").write_text(json.dumps(lines))
    write_ap_json(aps, directory / "ap.json")
    write_per_class_csv(class_columns(aps), directory / "per_class.csv")
    submission = directory.with_name(f"{directory.name}-submission") if config.evaluate.submission else None
    if submission is not None:
        write_submission(shards, chosen, found, submission)
    pictures = _draw(chosen, shards, found, category_ids, config.evaluate.pictures, directory / "pictures")
    return Evaluation(aps, len(found), undecodable, directory, pictures, submission)


def _score_coco(truth: dict[str, Any], results: list[dict[str, Any]], config: RunConfig) -> dict[str, CocoAp]:
    aps = {"box": evaluate_coco(truth, results, "bbox", config.evaluate.engine)}
    if config.model.mask is not None:
        aps["mask"] = evaluate_coco(truth, results, "segm", config.evaluate.engine)
    return aps


def _restrict(truth: dict[str, Any], sample_ids: set[int]) -> dict[str, Any]:
    return truth | {
        "images": [image for image in truth["images"] if image["id"] in sample_ids],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in sample_ids],
    }


def _draw(
    chosen: pa.Table,
    shards: Location,
    found: Mapping[int, Sequence[Mapping[str, Any]]],
    category_ids: Sequence[int],
    count: int,
    directory: Path,
) -> tuple[Path, ...]:
    """Prediction beside ground truth for `count` images spread over what was predicted, and all in one overview."""
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.png"):
        old.unlink()
    names = load_manifest(shards).class_names
    spread = np.unique(np.linspace(0, chosen.num_rows - 1, min(count, chosen.num_rows)).round().astype(int))
    paths = []
    for record in to_records(read_rows(shards, chosen.take(spread))) if count else []:
        path = directory / f"{record['sample_id']:012d}.png"
        predicted = from_results(found[record["sample_id"]], category_ids, PICTURE_SCORE)
        draw_comparison(decode(record["image"]), from_record(record), predicted, names, path)
        paths.append(path)
    if paths:
        overview = directory / "overview.png"
        gallery(paths, overview)
        paths.insert(0, overview)
    return tuple(paths)
