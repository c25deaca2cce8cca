"""`maskrcnn shard coco|shapes`: a data set becomes shards; what was left out is counted and named."""

import os
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from jobs.console import out, progress
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import Quarantine
from pipeline.data.shapes import generate_shapes
from pipeline.data.shards import MANIFEST, QUARANTINE, Manifest, load_manifest, write_shards

ROWS_PER_SHARD = 512
TRAIN_IMAGES, VAL_IMAGES = 3000, 300  # of the generated data set


def shard_coco(
    annotations: Path, images: Path, out_dir: Path, *, strict: bool, overwrite: bool, rows_per_shard: int | None
) -> None:
    """Shard COCO instances and show what is in the shards."""
    manifest = _shard(annotations, images, out_dir, strict, overwrite, rows_per_shard or ROWS_PER_SHARD)
    _show({out_dir: manifest})


def shard_shapes(out_dir: Path, *, train_images: int | None, val_images: int | None, seed: int) -> None:
    """Generate scenes in COCO's layout in `out_dir`/coco and shard them; what is there already is kept."""
    sizes = {"train": train_images or TRAIN_IMAGES, "val": val_images or VAL_IMAGES}
    coco = out_dir / "coco"
    with progress("drawing scenes", sum(sizes.values())) as meter:
        settings = generate_shapes(
            coco,
            train=sizes["train"],
            val=sizes["val"],
            seed=seed,
            workers=os.cpu_count(),
            progress=lambda done, _total: meter.reach(done),
        )
    manifests = {}
    for split in sizes:
        target = out_dir / split
        if (target / MANIFEST).exists():
            present = load_manifest(target)
            if present.generator == {"name": "shapes", **asdict(settings)}:
                manifests[target] = present
                continue
        annotations = coco / "annotations" / f"instances_{split}.json"
        manifests[target] = _shard(annotations, coco / split, target, True, True, ROWS_PER_SHARD)
    _show(manifests)


def _shard(
    annotations: Path, images: Path, out_dir: Path, strict: bool, overwrite: bool, rows_per_shard: int
) -> Manifest:
    dataset = read_coco(annotations, images, Quarantine(strict))
    with progress(f"sharding {annotations.stem}", len(dataset.entries)) as meter:
        return write_shards(
            dataset,
            out_dir,
            rows_per_shard=rows_per_shard,
            overwrite=overwrite,
            progress=lambda done, _total: meter.reach(done),
        )


def _show(manifests: dict[Path, Manifest]) -> None:
    """A column a directory: counts, then what was set aside and why."""
    table = Table(box=None, pad_edge=False)
    table.add_column("shards in")
    for directory in manifests:
        table.add_column(str(directory), justify="right", overflow="fold")
    rows = {
        "images": "images",
        "instances": "instances",
        "crowd": "crowd regions",
        "empty": "images without annotations",
        "grayscale": "grayscale images",
        "quarantined_images": "images in quarantine",
        "quarantined_annotations": "annotations in quarantine",
    }
    for key, label in rows.items():
        table.add_row(label, *(str(manifest.counts[key]) for manifest in manifests.values()))
    table.add_row("classes", *(str(len(manifest.class_names)) for manifest in manifests.values()))
    megabytes = (sum(shard.bytes for shard in manifest.shards) / 1e6 for manifest in manifests.values())
    table.add_row("size", *(f"{size:.1f} MB" for size in megabytes))
    out.print(table)
    for directory, manifest in manifests.items():
        for reason, count in manifest.quarantined.items():
            out.print(f"  {count} x {reason}", highlight=False, markup=False)
        if manifest.quarantined:
            out.print(f"  each of them: {directory / QUARANTINE}", highlight=False, markup=False, soft_wrap=True)
