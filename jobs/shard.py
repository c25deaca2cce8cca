"""`maskrcnn shard FORMAT`: a data set becomes shards; what was left out is counted and named.

A format is a function that makes a `Dataset` (or two, of the splits that it generates) and has it written.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack

from rich.table import Table

from jobs.console import out, progress
from pipeline.data.cityscapes import read_cityscapes
from pipeline.data.class_subset import only_classes
from pipeline.data.coco import read_coco
from pipeline.data.folder import read_folder
from pipeline.data.lvis import read_lvis
from pipeline.data.manifest import MANIFEST, QUARANTINE, Manifest, load_manifest
from pipeline.data.proposals import with_proposals
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.shapes import annotation_files, generate_shapes
from pipeline.data.sharding import ROWS_PER_GROUP, ROWS_PER_SHARD, shard_dataset
from pipeline.data.shards_v1 import read_shards_v1
from pipeline.data.source import Dataset
from pipeline.data.storage import Storage
from pipeline.data.streets import generate_streets

SHAPES = {"train": 3000, "val": 300}  # images of the generated data sets
STREETS = {"train": 500, "val": 100}
CITYSCAPES_ROWS = 64  # in a shard: its pictures have 2 MB


class Writing(TypedDict):
    """How shards are written."""

    overwrite: bool
    workers: int | None  # None: one a CPU
    rows_per_shard: int | None  # None: the format's own number


def shard_coco(
    annotations: Path,
    images: str,
    out_dir: str,
    *,
    keypoints: Path | None,
    boxes_only: bool,
    proposals: Sequence[Path],
    classes: Sequence[str] | None,
    strict: bool,
    **writing: Unpack[Writing],
) -> None:
    """Shard COCO instances, perhaps with keypoints, or with proposals of another system."""
    dataset = read_coco(annotations, images, Quarantine(strict), keypoints, boxes_only)
    if proposals:
        dataset = with_proposals(dataset, proposals)
    if classes is not None:
        dataset = only_classes(dataset, classes)
    _shard_one(dataset, out_dir, annotations.stem, writing)


def shard_lvis(annotations: Path, images: str, out_dir: str, *, strict: bool, **writing: Unpack[Writing]) -> None:
    """Shard LVIS v1."""
    _shard_one(read_lvis(annotations, images, Quarantine(strict)), out_dir, annotations.stem, writing)


def shard_cityscapes(
    root: str,
    split: str,
    out_dir: str,
    *,
    cities: Sequence[str] | None,
    classes: Sequence[str] | None,
    strict: bool,
    **writing: Unpack[Writing],
) -> None:
    """Shard a split of Cityscapes, or some of its cities."""
    dataset = read_cityscapes(root, split, Quarantine(strict), cities=cities)
    if classes is not None:
        dataset = only_classes(dataset, classes)
    _shard_one(dataset, out_dir, split, writing, CITYSCAPES_ROWS)


def shard_images(images: str, out_dir: str, *, strict: bool, **writing: Unpack[Writing]) -> None:
    """Shard the pictures of a directory, without annotations."""
    _shard_one(read_folder(images, Quarantine(strict)), out_dir, Storage.at(images).name, writing)


def migrate(old: str, out_dir: str, *, overwrite: bool, workers: int | None) -> None:
    """Write shards of format 1 again in today's format, in their order."""
    dataset, options = read_shards_v1(old, Quarantine())
    target = Storage.at(out_dir)
    manifest = write_shards(
        dataset,
        target,
        Storage.at(old).name,
        overwrite,
        workers,
        options["rows_per_shard"],
        options["rows_per_group"],
        seed=None,
    )
    show_shards({target: manifest})


def shard_shapes(
    out_dir: Path, *, train_images: int | None, val_images: int | None, seed: int, keypoints: bool
) -> None:
    """Generate scenes in COCO's layout in `out_dir`/coco and shard them; what is there already is kept."""
    sizes = {"train": train_images or SHAPES["train"], "val": val_images or SHAPES["val"]}
    coco = out_dir / "coco"
    with progress("drawing scenes", sum(sizes.values())) as meter:
        settings = generate_shapes(
            coco, **sizes, seed=seed, workers=os.cpu_count(), progress=lambda done, _total: meter.reach(done)
        )

    def read(split: str) -> Dataset:
        instances, points = annotation_files(coco, split)
        return read_coco(instances, coco / split, Quarantine(strict=True), points if keypoints else None)

    _shard_generated(out_dir, {"name": "shapes", **asdict(settings)}, sizes, read, ROWS_PER_SHARD, keypoints)


def shard_streets(
    out_dir: Path, *, train_images: int | None, val_images: int | None, seed: int, height_px: int
) -> None:
    """Generate streets in Cityscapes' layout in `out_dir`/cityscapes and shard them; what is there already is kept."""
    sizes = {"train": train_images or STREETS["train"], "val": val_images or STREETS["val"]}
    root = out_dir / "cityscapes"
    with progress("drawing streets", sum(sizes.values())) as meter:
        settings = generate_streets(
            root,
            **sizes,
            seed=seed,
            height_px=height_px,
            workers=os.cpu_count(),
            progress=lambda done, _total: meter.reach(done),
        )

    def read(split: str) -> Dataset:
        return read_cityscapes(root, split, Quarantine(strict=True))

    _shard_generated(out_dir, asdict(settings), sizes, read, CITYSCAPES_ROWS)


def _shard_one(
    dataset: Dataset, out_dir: str, name: str, writing: Writing, rows_per_shard: int = ROWS_PER_SHARD
) -> None:
    """Shard a data set and show what is in the shards."""
    target = Storage.at(out_dir)
    rows = writing["rows_per_shard"] or rows_per_shard
    show_shards({target: write_shards(dataset, target, name, writing["overwrite"], writing["workers"], rows)})


def _shard_generated(
    out_dir: Path,
    generator: dict[str, Any],
    splits: Iterable[str],
    read: Callable[[str], Dataset],
    rows_per_shard: int,
    keypoints: bool = False,
) -> None:
    """Shard the splits of a generated data set, but for those that are there, made by the same settings."""
    manifests = {}
    for split in splits:
        target = Storage.at(out_dir / split)
        if target.exists(MANIFEST):
            present = load_manifest(target)
            if (present.generator or {}).get("name") != generator["name"]:
                raise DataError(f"{target} holds shards of another data set; choose another --out")
            if present.generator == generator and (present.keypoints is not None) == keypoints:
                manifests[target] = present
                continue
        # One worker: it is done before a Ray would have started.
        manifests[target] = write_shards(read(split), target, split, True, 1, rows_per_shard)
    show_shards(manifests)


def write_shards(
    dataset: Dataset,
    target: Storage,
    name: str,
    overwrite: bool,
    workers: int | None,
    rows_per_shard: int,
    rows_per_group: int = ROWS_PER_GROUP,
    seed: int | None = 0,
) -> Manifest:
    """Shard with a progress bar."""
    with progress(f"sharding {name}", len(dataset.entries)) as meter:
        return shard_dataset(
            dataset,
            target,
            seed=seed,
            rows_per_shard=rows_per_shard,
            rows_per_group=rows_per_group,
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, _total: meter.reach(done),
        )


def show_shards(manifests: Mapping[Storage, Manifest]) -> None:
    """A column a directory: counts, then what was set aside and why."""
    table = Table(box=None, pad_edge=False)
    table.add_column("shards in")
    for storage in manifests:
        table.add_column(str(storage), justify="right", overflow="fold")
    every = {
        "images": "images",
        "instances": "instances",
        "crowd": "crowd regions",
        "empty": "images without annotations",
        "grayscale": "grayscale images",
        "quarantined_images": "images in quarantine",
        "quarantined_annotations": "annotations in quarantine",
    }
    some = {
        "with_keypoints": "instances with keypoints",
        "label_ids": "images with label ids",
        "negative_classes": "classes said to be absent, over all images",
        "partial_classes": "classes not all annotated, over all images",
        "proposals": "proposals",
    }
    for key, label in (every | some).items():
        counts = [manifest.counts.get(key, 0) for manifest in manifests.values()]
        if key in every or any(counts):
            table.add_row(label, *map(str, counts))
    table.add_row("classes", *(str(len(manifest.class_names)) for manifest in manifests.values()))
    if any(manifest.frequencies for manifest in manifests.values()):
        rarities = ([str(m.frequencies.count(letter)) for letter in "rcf"] for m in manifests.values())
        table.add_row("  rare, common, frequent", *map(", ".join, rarities))
    if any(manifest.keypoints for manifest in manifests.values()):
        joints = (0 if m.keypoints is None else len(m.keypoints.names) for m in manifests.values())
        table.add_row("keypoints an instance", *map(str, joints))
    megabytes = (sum(shard.bytes for shard in manifest.shards) / 1e6 for manifest in manifests.values())
    table.add_row("size", *(f"{size:.1f} MB" for size in megabytes))
    out.print(table)
    for storage, manifest in manifests.items():
        if "masks" in manifest.source:
            _say(f"  {manifest.source['masks']} of boxes: do not train or score masks on them")
        for reason, count in manifest.quarantined.items():
            _say(f"  {count} x {reason}")
        if manifest.quarantined:
            _say(f"  each of them: {storage.child(QUARANTINE)}")


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
