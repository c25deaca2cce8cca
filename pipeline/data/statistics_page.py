"""The report of `maskrcnn inspect --stats`: one HTML file that opens offline, with tables and pictures inside."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.statistics import Statistics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 1170px;
       padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.facts { color: #666; margin: .2rem 0 1.5rem }
.tables { display: flex; flex-wrap: wrap; gap: 2.5rem; align-items: flex-start }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
th { font-weight: 600; border-bottom: 1px solid #ccc } td.n, th.n { text-align: right }
tr + tr td { border-top: 1px solid #eee }
.charts { display: flex; flex-wrap: wrap; column-gap: 2.5rem }
img { max-width: 100%; height: auto; display: block }
details { margin-top: 1rem } summary { cursor: pointer; color: #2f6f9f } .list { columns: 2 26rem; margin-top: .5rem }
.list table { width: 100% } .list tr { break-inside: avoid }
"""


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
        f'<div><h2>{html.escape(caption)}</h2><img alt="{html.escape(caption)}" src="{_data_uri(chart)}"></div>'
        for chart, caption in charts.items()
    ]
    body = (
        f"<h1>{html.escape(title)}</h1><p class=facts>{html.escape(facts)}</p>"
        f"<div class=tables>{_counts(statistics)}{_sizes(statistics)}{_quarantine(quarantined)}</div>"
        + sections[0]
        + _class_list(statistics, class_names)
        + f"<div class=charts>{''.join(sections[1:])}</div>"
    )
    page = (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>\n'
    )
    path.write_text(page, encoding="utf-8")


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text in the first column, numbers in the others."""

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column else ''}>{html.escape(str(value))}</{tag}>"
            for column, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _counts(statistics: Statistics) -> str:
    said = statistics.summary()
    return _table(
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
    return _table(("sizes", ""), rows)


def _quarantine(quarantined: Mapping[str, int]) -> str:
    rows = [(reason, f"{count:,}") for reason, count in quarantined.items()]
    return _table(("set aside (quarantine.jsonl)", f"{sum(quarantined.values()):,}"), rows)


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
    table = _table(("class", "objects", "images", "crowd"), rows)
    return f"<details><summary>All {len(names)} classes in numbers</summary><div class=list>{table}</div></details>"
