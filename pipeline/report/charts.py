"""Charts of a report, one PNG each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.figures import BLUE, GREEN, GREY, ORANGE, figure, plain, short_name
from pipeline.report.analysis import Analysis
from pipeline.report.diagnosis import IGNORED, RIGHT, Diagnosis, Ints
from pipeline.report.scores import Calibration, WorkingPoint
from pipeline.report.sizes import BySize

_COLOURS = (BLUE, ORANGE, GREEN)  # of tasks
MATRIX_CLASSES = 100  # a larger matrix cannot be read
_COUNTED_CLASSES = 20  # up to so many classes the cells of the matrix hold numbers


def draw_errors(analyses: Mapping[str, Analysis], path: Path) -> None:
    """AP lost to each kind of error, a bar a task."""
    costs = {task: a.precise.costs for task, a in analyses.items() if a.precise is not None}
    kinds = list(next(iter(costs.values())).gains)
    height = 0.8 / len(costs)
    drawn = figure(7.5, 1.2 + 0.5 * len(kinds) * max(1.0, len(costs) / 2))
    axes = drawn.subplots()
    largest = max(100 * float(np.nan_to_num(gain)) for cost in costs.values() for gain in cost.gains.values())
    for number, (task, cost) in enumerate(costs.items()):
        gains = np.nan_to_num([100 * cost.gains[kind] for kind in kinds])
        place = np.arange(len(kinds)) + (number - (len(costs) - 1) / 2) * height
        axes.barh(place, gains, height=0.9 * height, color=_COLOURS[number], label=task)
        for y, gain in zip(place.tolist(), gains.tolist(), strict=True):
            axes.text(max(gain, 0.0) + 0.01 * largest, y, f"{gain:.1f}", va="center", fontsize=9, color="#444444")
    plain(axes, xlabel="AP at .5 lost to it, points", ylim=(len(kinds) - 0.5, -0.5))
    axes.set_xlim(right=max(1.12 * largest, 1.0))
    axes.set_yticks(range(len(kinds)), kinds)
    axes.grid(visible=False, axis="y")
    if len(costs) > 1:
        axes.legend(frameon=False, loc="lower right")
    drawn.savefig(path)


def draw_sizes(sizes: Mapping[str, BySize], path: Path) -> None:
    """AP (proposals: recall) over the size of objects, and how many there are of each size."""
    drawn = figure(9, 4.4)
    axes, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    most = max(sizes.values(), key=lambda s: len(s.edges))
    words = [f"≥ {low:g}" if high >= 1e5 else f"{low:g}-{high:g}" for low, high in most.edges]
    width = 0.8 / len(sizes)
    for number, (task, by_size) in enumerate(sizes.items()):
        values = by_size.recall if by_size.ap is None else by_size.ap
        place = [most.edges.index(edges) for edges in by_size.edges if edges in most.edges]
        shown = [100 * v for edges, v in zip(by_size.edges, values.tolist(), strict=True) if edges in most.edges]
        where = np.array(place) + (number - (len(sizes) - 1) / 2) * width
        axes.bar(where, np.nan_to_num(shown), width=0.92 * width, color=_COLOURS[number], label=task)
        for x, value in zip(where.tolist(), shown, strict=True):
            if not np.isnan(value):
                axes.text(x, value + 1, f"{value:.0f}", ha="center", fontsize=8, color="#444444")
    recall = all(by_size.ap is None for by_size in sizes.values())
    plain(axes, ylabel="AR, %" if recall else "AP, %")
    axes.set_ylim(0, 109)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(visible=False, axis="x")
    if len(sizes) > 1:
        axes.legend(frameon=False, loc="upper left", ncols=len(sizes))
    below.bar(range(len(words)), most.counts, width=0.8, color=GREY)
    for x, count in enumerate(most.counts.tolist()):
        below.text(x, count, f"{count}", ha="center", va="bottom", fontsize=8, color="#444444")
    plain(below, xlabel="√area, pixels", ylabel="objects")
    below.set_ylim(0, 1.3 * float(most.counts.max()))
    below.set_xticks(range(len(words)), words, fontsize=9)
    below.grid(visible=False, axis="x")
    drawn.savefig(path)


def draw_scores(diagnosis: Diagnosis, point: WorkingPoint, path: Path) -> None:
    """Precision, recall and F1 of what is kept, over the score from which on it is."""
    counts = diagnosis.verdicts != IGNORED
    scores, right = diagnosis.scores[counts], diagnosis.verdicts[counts] == RIGHT
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    kept = np.arange(1, len(hits) + 1)
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))
    last = last[np.unique(np.linspace(0, len(last) - 1, 1000).round().astype(int))]  # a line needs no more
    drawn = figure(5.6, 4.2)
    axes = drawn.subplots()
    found, objects = hits[last], len(diagnosis.annotations)
    for label, values, colour in (
        ("precision", found / kept[last], BLUE),
        ("recall", found / objects, ORANGE),
        ("F1", 2 * found / (kept[last] + objects), GREEN),
    ):
        axes.plot(scores[last], 100 * values, color=colour, linewidth=1.8, label=label)
    axes.axvline(point.score, color=GREY, linewidth=1, linestyle="--")
    plain(axes, xlabel="detections kept from this score on", ylabel="%", ylim=(0, 102))
    axes.legend(frameon=False, loc="best")
    drawn.savefig(path)


def draw_calibration(bins: Calibration, path: Path) -> None:
    """Share of right detections over their score, and how many there are."""
    drawn = figure(5.6, 4.2)
    axes, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    number = len(bins.counts)
    edges = np.arange(number) / number
    axes.bar(edges, 100 * np.nan_to_num(bins.accuracy), width=0.94 / number, align="edge", color=BLUE, label="right")
    full = bins.counts > 0
    axes.plot([0, 1], [0, 100], color=GREY, linewidth=1, linestyle="--", label="as sure as it is right")
    axes.plot(
        bins.confidence[full], 100 * bins.accuracy[full], "o", color=ORANGE, markersize=4, label="at the mean score"
    )
    plain(axes, ylabel="right, %", xlim=(0, 1), ylim=(0, 102))
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    below.bar(edges, np.maximum(bins.counts, 0.5), width=0.94 / number, align="edge", color=GREY)
    plain(below, xlabel="score", ylabel="detections", yscale="log", ylim=(0.5, 2.0 * max(2, int(bins.counts.max()))))
    drawn.savefig(path)


def draw_confusion(matrix: Ints, names: Sequence[str], path: Path) -> None:
    """The matrix, coloured by the share of each row; with few classes the numbers too."""
    words = [short_name(name) for name in names] + ["background"]
    size = len(words)
    cell = max(0.135, min(0.62, 6.0 / size))  # inches
    drawn = figure(max(5.0, cell * size + 2.4), max(3.6, cell * size + 1.3))
    axes = drawn.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    shares[-1] = np.nan  # what was seen where nothing is has no total of its own
    shown = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.set_facecolor("#f3f3f3")
    letters = min(8.5, 72 * cell * 0.75)
    axes.set_xticks(range(size), words, rotation=90, fontsize=letters)
    axes.set_yticks(range(size), words, fontsize=letters)
    axes.set(xlabel="predicted as", ylabel="is")
    axes.axhline(size - 1.5, color=GREY, linewidth=0.8)
    axes.axvline(size - 1.5, color=GREY, linewidth=0.8)
    if size <= _COUNTED_CLASSES + 1:
        for row, column in np.argwhere(matrix > 0).tolist():
            dark = np.nan_to_num(shares[row, column]) > 0.55
            axes.text(
                column,
                row,
                f"{matrix[row, column]}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if dark else "#333333",
            )
    bar: Any = drawn.colorbar(shown, ax=axes, shrink=0.4, aspect=25)
    bar.set_label("% of the row")
    drawn.savefig(path)
