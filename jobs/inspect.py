"""`maskrcnn inspect SHARDS --sample ID | --stats`: one sample with its annotations, or charts of the data set.

    maskrcnn inspect data/coco/train --sample 9 --augment configs/coco/mask_rcnn_r50_fpn_1x.yaml

draws the sample beside what it trains as with that configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from jobs.console import out, progress
from pipeline.data.charts import write_charts
from pipeline.data.images import decode
from pipeline.data.quarantine import DataError
from pipeline.data.records import Record
from pipeline.data.shards import Manifest, load_index, load_manifest, shard_name, to_records
from pipeline.data.statistics import COLUMNS, gather, merge
from pipeline.data.statistics_page import write_page
from pipeline.data.storage import Storage
from pipeline.errors import UserError

VISITS = 5  # that --augment draws, beside the picture as it is


def inspect(
    location: str,
    *,
    sample: str | None,
    stats: bool,
    augment: Path | None,
    overrides: Sequence[str],
    out_path: Path | None,
) -> None:
    """Draw a sample, or write the report. Raises UserError unless exactly one of both is asked for."""
    if (sample is None) != stats:
        raise UserError("give either --sample ID (or a file name), or --stats")
    if augment is not None and stats:
        raise UserError("--augment draws one sample; give --sample ID instead of --stats")
    if overrides and augment is None:
        raise UserError(f"{overrides[0]} changes a configuration; name it with --augment CONFIG")
    storage = Storage.at(location)
    manifest = load_manifest(storage)
    if sample is not None:
        _inspect_sample(storage, manifest, sample, augment, overrides, out_path)
    else:
        _inspect_all(storage, manifest, out_path or Path(f"{storage.name}-statistics"))


def _inspect_sample(
    storage: Storage,
    manifest: Manifest,
    sample: str,
    augment: Path | None,
    overrides: Sequence[str],
    path: Path | None,
) -> None:
    row = _find(storage, manifest, sample)
    with storage.open(shard_name(row["shard"])) as file, pq.ParquetFile(file) as parquet:
        (record,) = to_records(parquet.read_row_group(row["row_group"]).slice(row["row"], 1))
    path = path or Path(f"sample-{record['sample_id']}{'' if augment is None else '-augmented'}.png")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {path} is no picture; give a name that ends in .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    if augment is None:
        _draw(record, manifest, path)
    else:
        _draw_augmented(record, storage, manifest, augment, overrides, path)
    out.print(_facts(record, row))
    if record["boxes"]:
        out.print()
        out.print(_objects(record, manifest.class_names))
    _say(f"\ndrawn in {path}")


def _draw(record: Record, manifest: Manifest, path: Path) -> None:
    from pipeline.evaluation.instances import from_record  # these need what --stats does not
    from pipeline.evaluation.pictures import draw_sample

    skeleton = () if manifest.keypoints is None else manifest.keypoints.skeleton
    draw_sample(decode(record["image"]), from_record(record), manifest.class_names, path, skeleton)


def _draw_augmented(
    record: Record, storage: Storage, manifest: Manifest, augment: Path, overrides: Sequence[str], path: Path
) -> None:
    """The sample beside its first visits in a run of a configuration on these shards alone."""
    from pipeline.configure import load_config
    from pipeline.data.loader import make_recipes
    from pipeline.data.plan import plan_of
    from pipeline.evaluation.augmented import draw_inputs
    from pipeline.evaluation.visits import planned_visits

    config = load_config(augment, overrides)
    config = replace(config, data=replace(config.data, train=storage.uri, mix_weights=None))
    recipes = make_recipes(config)
    visits = planned_visits(plan_of(config), recipes, storage, record["sample_id"], VISITS)
    draw_inputs(record, visits, manifest.class_names, path, manifest.keypoints, recipes.targets, recipes.divisor)


def _find(storage: Storage, manifest: Manifest, sample: str) -> dict[str, Any]:
    """The index row of a sample, by its id or its file name (in full, or its last part). Raises DataError."""
    index = load_index(storage)
    if re.fullmatch(r"-?\d{1,18}", sample):
        found = index.filter(pc.equal(index["sample_id"], int(sample))).to_pylist()
        if found:
            return found[0]  # type: ignore[no-any-return]
    inside: list[str] = []
    for shard in manifest.shards:
        with storage.open(shard.name) as file, pq.ParquetFile(file) as parquet:
            names = parquet.read(columns=["sample_id", "file_name"]).to_pylist()
        for row in names:
            if sample == row["file_name"] or row["file_name"].endswith("/" + sample):
                return index.filter(pc.equal(index["sample_id"], row["sample_id"])).to_pylist()[0]  # type: ignore
        inside += [f"{row['sample_id']} ({row['file_name']})" for row in names[: 5 - len(inside)]]
    known = ", ".join(inside) or "none, there are no images"
    raise DataError(
        f"{storage} has no sample {sample}; give an id or a file name of its {index.num_rows} samples, such as {known}"
    )


def _facts(record: Record, row: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("sample", str(record["sample_id"]))
    table.add_row("file", record["file_name"])
    table.add_row("size", f"{record['width']} x {record['height']} pixels, {len(record['image']):,} bytes")
    table.add_row("place", f"{shard_name(row['shard'])} row group {row['row_group']} row {row['row']}")
    crowd = sum(record["crowd"])
    table.add_row("annotations", f"{len(record['crowd']) - crowd} objects, {crowd} crowd regions")
    if record.get("proposals"):
        table.add_row("proposals", f"{len(record['proposals'])} of another system")
    if record["semantic"]:
        table.add_row("label picture", f"{len(record['semantic']):,} bytes")
    for name, classes in (("absent", record["negative_classes"]), ("not all annotated", record["partial_classes"])):
        if classes:
            table.add_row(name, f"classes {', '.join(map(str, classes))}")
    return table


def _objects(record: Record, names: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    some = {"crowd": any(record["crowd"]), "keypoints": any(record["keypoints"])}
    titles = ("annotation", "class", "box (x1 y1 x2 y2)", "area", *(title for title, there in some.items() if there))
    for title in titles:
        table.add_column(title, justify="left" if title in ("class", "crowd") else "right")
    columns = ("annotation_ids", "classes", "boxes", "areas", "crowd", "keypoints")
    for number, class_, box, area, crowd, points in zip(*(record[c] for c in columns), strict=True):  # type: ignore
        place = " ".join(f"{value:.1f}" for value in box)
        seen = f"{sum(v > 0 for v in points[2::3])} of {len(points) // 3}" if points else ""
        last = {"crowd": "crowd" if crowd else "", "keypoints": seen}
        cells = (cell for title, cell in last.items() if some[title])
        table.add_row(str(number), names[class_ - 1], place, f"{area:.1f}", *cells)
    return table


def _inspect_all(storage: Storage, manifest: Manifest, directory: Path) -> None:
    classes = len(manifest.class_names)
    parts = []
    with progress(f"reading {storage.name}", manifest.images) as meter:
        for shard in manifest.shards:
            with storage.open(shard.name) as file, pq.ParquetFile(file) as parquet:
                rows = parquet.read(columns=list(COLUMNS)).to_pylist()
            parts.append(gather(rows, classes))
            meter.advance(len(rows))
    statistics = merge(parts, classes)
    directory.mkdir(parents=True, exist_ok=True)
    charts = write_charts(statistics, manifest.class_names, directory)
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    source = ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in manifest.source.items())
    files = "1 shard" if len(manifest.shards) == 1 else f"{len(manifest.shards)} shards"
    page = directory / "report.html"
    write_page(
        page,
        str(storage),
        f"{files}, {megabytes:.1f} MB, {classes} classes; made from {source}",
        statistics,
        manifest.class_names,
        manifest.quarantined,
        {directory / name: caption for name, caption in charts.items()},
    )
    _say(f"{page}: {manifest.images} images, {int(statistics.objects.sum())} objects; its {len(charts)} charts as PNG")


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
