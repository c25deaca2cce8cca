import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_statistics import ROWS, random_rows

from pipeline.data.charts import write_charts
from pipeline.data.statistics import gather
from pipeline.data.statistics_page import write_page

CASES = {
    "usual": (random_rows(60, 80, 0), 80),
    "1203 classes": (random_rows(60, 1203, 1), 1203),
    "one class, one image, one object": (ROWS[:1], 2),
    "no objects": (ROWS[1:2] * 3, 1),
    "crowd only": (ROWS[2:3], 2),
    "no images": ([], 1),
}


class Strict(html.parser.HTMLParser):
    """Collects tags, and fails on one that is not closed in order."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("case", CASES)
def test_every_data_set_gets_a_page_that_opens_offline(tmp_path: Path, case: str) -> None:
    rows, classes = CASES[case]
    statistics = gather(rows, classes)
    names = [f"<b>$class_{number}$ & {'long ' * (number % 9)}" for number in range(classes)]
    charts = write_charts(statistics, names, tmp_path)
    assert len(charts) == 6
    for name in charts:
        with Image.open(tmp_path / name) as chart:
            assert chart.width > 400 and chart.height > 100
            assert case == "no images" or np.asarray(chart.convert("L")).std() > 1
    page = tmp_path / "report.html"
    quarantined = {"image: <script>": 3}
    write_page(page, "a & b", "facts", statistics, names, quarantined, {tmp_path / n: c for n, c in charts.items()})
    parser = Strict()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    assert len(parser.sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert not re.search(r"https?://", page.read_text(encoding="utf-8"))
    assert "image: <script>" in parser.text and f"All {classes} classes in numbers" in parser.text
