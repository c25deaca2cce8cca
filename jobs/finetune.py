"""`maskrcnn finetune --images DIR --annotations coco.json --from CHECKPOINT`: from annotations to AP in one command.

It splits (pipeline/data/split.py), shards, chooses a recipe (pipeline/training/recipe.py), and trains as `maskrcnn
train` does. Nothing of it depends on when it runs: the same command goes on where a killed one stopped.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.console import err, out
from jobs.shard import show_shards, write_shards
from jobs.train import train_config
from jobs.transfer import network_of
from jobs.transfer_table import show_transfer
from model.build import build_model
from pipeline.config import ClusterConfig, InitConfig, RunConfig, TransferConfig
from pipeline.configure import apply_overrides
from pipeline.data.coco import ImageEntry, read_coco
from pipeline.data.manifest import MANIFEST, load_manifest
from pipeline.data.mixture import class_difference
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.sharding import ROWS_PER_SHARD
from pipeline.data.source import Dataset
from pipeline.data.split import hold_out
from pipeline.data.storage import Storage
from pipeline.ray_cluster import start_ray
from pipeline.training.checkpoint import read_meta
from pipeline.training.recipe import Recipe, choose_recipe
from pipeline.training.transfer import Transfer, transfer_weights

INPUTS = "finetune.json"  # what a directory was made of
NAME = "finetune"  # of the run


@dataclass(frozen=True)
class Inputs:
    """What the user gives."""

    images: Path
    annotations: Path
    checkpoint: Path
    out_dir: Path
    val_images: Path | None  # None: `images`
    val_annotations: Path | None  # None: some of `annotations` are held out
    val_share: float  # of the images, if so
    workers: int | None  # that shard


@dataclass(frozen=True)
class Plan:
    """What is going to happen."""

    splits: dict[str, Dataset]
    config: RunConfig
    transfer: Transfer
    lines: tuple[str, ...]  # for people: what was chosen, and why


def finetune(inputs: Inputs, overrides: Sequence[str]) -> None:
    """Do it."""
    plan = make_plan(inputs, overrides)
    show(plan)
    _claim(inputs)
    with err.status("starting Ray"):
        start_ray(plan.config.cluster)  # before sharding, which starts one on this machine where there is none
    manifests = {}
    for split, dataset in plan.splits.items():
        target = Storage.at(inputs.out_dir / split)
        present = target.exists(MANIFEST)
        manifests[target] = (
            load_manifest(target)
            if present
            else write_shards(dataset, target, split, False, inputs.workers, ROWS_PER_SHARD)
        )
    show_shards(manifests)
    train_config(plan.config, NAME)


def show_only(inputs: Inputs, overrides: Sequence[str]) -> RunConfig:
    """Say what would be done; the configuration that would be trained."""
    plan = make_plan(inputs, overrides)
    show(plan)
    show_transfer(plan.transfer)
    return plan.config


def show(plan: Plan) -> None:
    """What is going to happen, and why."""
    for line in plan.lines:
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def make_plan(inputs: Inputs, overrides: Sequence[str]) -> Plan:
    """Read and check everything; nothing is written.

    Raises:
        DataError, CheckpointError, ConfigError: what would fail later.
    """
    earlier, meta = read_meta(inputs.checkpoint)
    model = network_of(inputs.checkpoint)
    lines = []
    whole = read_coco(inputs.annotations, inputs.images, Quarantine())
    if not any(_classes(entry) for entry in whole.entries):
        raise DataError(f"no image of {inputs.annotations} has an annotation to train on; is it the right file?")
    boxes_only = not _has_masks(whole)
    if boxes_only:
        whole = read_coco(inputs.annotations, inputs.images, Quarantine(), boxes_only=True)
        if model.mask is not None:
            model = replace(model, mask=None)
            lines.append("masks       no annotation has one: boxes are trained alone")
    if model.keypoint is not None and whole.keypoints is None:
        model = replace(model, keypoint=None)
        lines.append("keypoints   the annotations have none: they are not trained")
    splits = _split(inputs, whole, boxes_only)
    recipe = _recipe(splits["train"])
    lines += [_describe(split, dataset) for split, dataset in splits.items()]
    lines += _lonely(splits)
    lines += _shared(inputs, splits)
    lines += [f"{'recipe' if i == 0 else '':<12}{reason}" for i, reason in enumerate(recipe.reasons)]
    lines.append(
        f"network     that of {inputs.checkpoint}, with its picture sizes ({len(meta.class_names)} classes there)"
    )
    place = inputs.out_dir
    config = RunConfig(
        model=model,
        init=InitConfig(weights=str(inputs.checkpoint), transfer=TransferConfig()),
        data=replace(
            earlier.data,
            train=str(place / "train"),
            val=str(place / "val"),
            mix_weights=None,
            repeat_threshold=recipe.repeat_threshold,
        ),
        optim=recipe.optim,
        train=replace(recipe.train, name=NAME),
        cluster=ClusterConfig(runs_dir=str(place / "runs")),
    )
    config = apply_overrides(config, overrides)
    return Plan(splits, config, _try_transfer(config, whole), tuple(lines))


def _try_transfer(config: RunConfig, data: Dataset) -> Transfer:
    """What the weights give to the model; it is done here to fail here. Raises CheckpointError."""
    keypoint = config.model.keypoint
    if keypoint is not None and data.keypoints is not None:
        keypoint = replace(keypoint, count=len(data.keypoints.names))
    model = replace(config.model, classes=len(data.class_names), keypoint=keypoint)
    return transfer_weights(build_model(model), replace(config, model=model), data.class_names)


def _split(inputs: Inputs, whole: Dataset, boxes_only: bool) -> dict[str, Dataset]:
    if inputs.val_annotations is not None:
        images = inputs.val_images or inputs.images
        val = read_coco(inputs.val_annotations, images, Quarantine(), boxes_only=boxes_only)
        if val.class_names != whole.class_names:
            difference = class_difference(whole.class_names, val.class_names, ("train", "val"))
            raise DataError(
                f"{inputs.annotations} and {inputs.val_annotations} have different classes: {difference}; "
                "give both the same categories"
            )
        return {"train": whole, "val": val}
    classes: dict[str, set[int]] = {}  # a file that two images name is one picture, and lies on one side
    for entry in whole.entries:
        classes.setdefault(_file(entry), set()).update(_classes(entry))
    held = hold_out(classes, inputs.val_share)
    return {
        "train": replace(whole, entries=[entry for entry in whole.entries if _file(entry) not in held]),
        "val": replace(
            whole, entries=[entry for entry in whole.entries if _file(entry) in held], quarantine=Quarantine()
        ),
    }


def _has_masks(dataset: Dataset) -> bool:
    return any(a.get("segmentation") not in (None, []) for e in dataset.entries for a in _annotations(e))


def _file(entry: object) -> str:
    assert isinstance(entry, ImageEntry)
    return entry.file_name


def _annotations(entry: object) -> Sequence[dict[str, object]]:
    assert isinstance(entry, ImageEntry)
    return entry.annotations


def _classes(entry: object) -> set[int]:
    """Category ids of what can be trained on."""
    return {int(str(a["category_id"])) for a in _annotations(entry) if not a.get("iscrowd")}


def _images_of_class(dataset: Dataset) -> dict[str, int]:
    counts = Counter(number for entry in dataset.entries for number in _classes(entry))
    return {name: counts[number] for name, number in zip(dataset.class_names, dataset.category_ids, strict=True)}


def _recipe(train: Dataset) -> Recipe:
    filled = [entry for entry in train.entries if _classes(entry)]
    instances = sum(not a.get("iscrowd") for entry in filled for a in _annotations(entry))
    return choose_recipe(list(_images_of_class(train).values()), len(filled), instances)


def _describe(split: str, dataset: Dataset) -> str:
    instances = sum(len(_annotations(entry)) for entry in dataset.entries)
    counts = sorted(_images_of_class(dataset).items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count}" for name, count in counts[:8])
    return (
        f"{split:<12}{len(dataset.entries)} images, {instances} annotations; images a class: "
        f"{shown}{', ...' if len(counts) > 8 else ''}"
    )


def _lonely(splits: dict[str, Dataset]) -> list[str]:
    lines = []
    for split, what in (("train", "trained"), ("val", "evaluated")):
        names = [name for name, count in _images_of_class(splits[split]).items() if count == 0]
        if names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            lines.append(f"warning     {len(names)} classes are not {what}, {split} has no image of them: {shown}")
    return lines


def _shared(inputs: Inputs, splits: dict[str, Dataset]) -> list[str]:
    """Pictures that are trained and evaluated, which only the user's own split can have."""
    if inputs.val_images is not None and inputs.val_images.resolve() != inputs.images.resolve():
        return []
    train, val = ({_file(entry) for entry in splits[split].entries} for split in ("train", "val"))
    both = sorted(train & val)
    if not both:
        return []
    shown = ", ".join(both[:4]) + (", ..." if len(both) > 4 else "")
    return [f"warning     {len(both)} of {len(val)} images to evaluate are trained too, AP will be too high: {shown}"]


def _claim(inputs: Inputs) -> None:
    """Raises DataError where --out was made of something else."""
    val = inputs.val_annotations
    made_of = {
        "annotations": _sha256(inputs.annotations),
        "images": str(inputs.images.absolute()),
        "val_annotations": None if val is None else _sha256(val),
        "val_images": str((inputs.val_images or inputs.images).absolute()),
        "val_share": inputs.val_share if val is None else None,
        "checkpoint": str(inputs.checkpoint.absolute()),
    }
    file = inputs.out_dir / INPUTS
    if file.is_file():
        before = json.loads(file.read_bytes())
        differing = [key for key in made_of if before.get(key) != made_of[key]]
        if differing:
            raise DataError(f"{inputs.out_dir} was made of other {', '.join(differing)}; choose another --out")
        return
    if inputs.out_dir.is_dir() and any(inputs.out_dir.iterdir()):
        raise DataError(f"{inputs.out_dir} holds something else; choose another --out")
    inputs.out_dir.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{INPUTS}.tmp")
    beside.write_text(json.dumps(made_of, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
