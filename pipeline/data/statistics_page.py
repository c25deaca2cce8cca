"""The report of `maskrcnn inspect --stats`: one HTML file that opens offline, with tables and pictures inside."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.statistics import Statistics
from pipeline.html_page import page, picture, table


def write_page(
    path: Path,
    title: str,
    facts: str,
    statistics: Statistics,
    class_names: Sequence[str],
    quarantined: Mapping[str, int],
    charts: Mapping[Path, str],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: what the data is called.
        facts: one line below it.
        statistics: of all rows.
        class_names: K names.
        quarantined: reason -> how many were set aside.
        charts: PNG -> caption.
    """
    sections = [
        f"<div><h2>{html.escape(caption)}</h2>{picture(chart, caption)}</div>" for chart, caption in charts.items()
    ]
    body = (
        f"<div class=tables>{_counts(statistics)}{_sizes(statistics)}{_quarantine(quarantined)}</div>",
        sections[0],
        _class_list(statistics, class_names),
        f"<div class=charts>{''.join(sections[1:])}</div>",
    )
    path.write_text(page(title, facts, body), encoding="utf-8")


def _counts(statistics: Statistics) -> str:
    said = statistics.summary()
    return table(
        ("images", f"{said['images']:,}"),
        [
            ("without annotations", f"{said['empty']:,}"),
            ("with crowd regions", f"{int((statistics.crowd > 0).sum()):,}"),
            ("objects", f"{said['objects']:,}"),
            ("crowd regions", f"{said['crowd']:,}"),
            ("objects with keypoints", f"{said['with_keypoints']:,}"),
        ],
    )


def _sizes(statistics: Statistics) -> str:
    said: dict[str, Any] = statistics.summary()
    sides, objects = said["side_px"] or {}, said["objects_an_image"] or {}
    rows: list[Sequence[object]] = [(f"{name} side, pixels", f"{value:g}") for name, value in sides.items()]
    rows += [(f"objects an image, {name}", f"{value:.4g}") for name, value in objects.items()]
    rows += [(f"{name} objects (COCO)", f"{count:,}") for name, count in said["objects_by_area"].items()]
    return table(("sizes", ""), rows)


def _quarantine(quarantined: Mapping[str, int]) -> str:
    rows = [(reason, f"{count:,}") for reason, count in quarantined.items()]
    return table(("set aside (quarantine.jsonl)", f"{sum(quarantined.values()):,}"), rows)


def _class_list(statistics: Statistics, names: Sequence[str]) -> str:
    rows = [
        (f"{number}  {name}", f"{objects:,}", f"{images:,}", f"{crowd:,}")
        for number, (name, objects, images, crowd) in enumerate(
            zip(
                names,
                statistics.class_objects.tolist(),
                statistics.class_images.tolist(),
                statistics.class_crowd.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    listed = table(("class", "objects", "images", "crowd"), rows)
    return f"<details><summary>All {len(names)} classes in numbers</summary><div class=list>{listed}</div></details>"
