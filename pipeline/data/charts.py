"""Charts of a data set's statistics, one PNG each: what a look at the numbers is for.

write_charts(statistics, class_names, Path("out")) -> {"classes.png": "what it shows", ...}
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.statistics import HEAT_CELLS, LARGE_PX2, SMALL_PX2, Statistics
from pipeline.figures import BLUE, GREEN, GREY, ORANGE, figure, nothing, plain, short_name

NAMED_CLASSES = 100  # with more, only the most and the least frequent ones are named
_ENDS = 25  # how many of those
_A_COLUMN = 40  # classes in one column of bars


def write_charts(statistics: Statistics, class_names: Sequence[str], directory: Path) -> dict[str, str]:
    """Write the PNGs; their names and captions, in the order to look at them."""
    charts: dict[str, tuple[str, Callable[[], Any]]] = {
        "classes.png": ("Objects of each class (log scale)", lambda: _classes(statistics, class_names)),
        "objects-an-image.png": ("Objects and crowd regions an image", lambda: _per_image(statistics)),
        "box-sizes.png": ("Size of objects: square root of the area, by COCO's ranges", lambda: _sizes(statistics)),
        "aspect-ratios.png": ("Width over height of pictures and of boxes", lambda: _aspects(statistics)),
        "picture-sizes.png": ("Sizes of pictures; a larger dot is more pictures", lambda: _pictures(statistics)),
        "box-centres.png": ("Where the centres of boxes lie in their picture", lambda: _centres(statistics)),
    }
    for name, (_, draw) in charts.items():
        draw().savefig(directory / name)
    return {name: caption for name, (caption, _) in charts.items()}


def _classes(statistics: Statistics, names: Sequence[str]) -> Any:
    if not names:
        drawn = figure(7.5, 1.0)
        nothing(drawn.subplots(), "classes")
        return drawn
    counts = statistics.class_objects
    order = np.argsort(-counts, kind="stable")
    if len(names) <= NAMED_CLASSES:
        columns = max(1, -(-len(names) // _A_COLUMN))
        rows = -(-len(names) // columns)
        drawn = figure(5.2 * columns if columns > 1 else 7.5, 1.0 + 0.21 * rows)
        parts = [order[first : first + rows] for first in range(0, len(order), rows)]
        panels = drawn.subplots(1, columns, sharex=True, squeeze=False)[0]
        titles = [""] * columns
    else:
        drawn = figure(13, 1.2 + 0.21 * _ENDS)
        curve, *panels = drawn.subplots(1, 3, width_ratios=(1.1, 1, 1))
        rank = np.arange(1, len(order) + 1)
        curve.fill_between(rank, np.maximum(counts[order], 0.5), 0.5, color=BLUE, alpha=0.35, linewidth=0)
        curve.plot(rank, np.maximum(counts[order], 0.5), color=BLUE, linewidth=1.5)
        plain(
            curve,
            title=f"all {len(names)}, {int((counts == 0).sum())} without an object",
            xlabel="rank of the class",
            ylabel="objects",
            yscale="log",
        )
        curve.set(xlim=(1, len(order)), ylim=(0.5, max(2, counts.max(initial=1) * 1.5)))
        parts, titles, rows = [order[:_ENDS], order[-_ENDS:]], ["most frequent", "least frequent"], _ENDS
    most = max(10, int(counts.max(initial=0)))
    for axes, part, title in zip(panels, parts, titles, strict=True):
        place = np.arange(len(part))
        axes.barh(place, np.maximum(counts[part] - 0.5, 0), left=0.5, color=BLUE, height=0.72)
        for y, count in zip(place, counts[part], strict=True):
            axes.text(max(count, 0.5) * 1.12, y, f"{count}", va="center", fontsize=7.5, color="#444444")
        plain(axes, xscale="log", xlim=(0.5, most * 4), ylim=(rows - 0.4, -0.6), xlabel="objects", title=title)
        axes.set_yticks(place, [short_name(names[c]) for c in part], fontsize=8)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    return drawn


def _per_image(statistics: Statistics) -> Any:
    drawn = figure(7.5, 3.8)
    axes = drawn.subplots()
    if not len(statistics.objects):
        nothing(axes, "images")
        return drawn
    most = int(statistics.objects.max())
    step = max(1, -(-most // 60))
    bins = np.arange(0, most + 2 * step, step) - 0.5
    axes.hist(statistics.objects, bins=bins, color=BLUE, rwidth=0.9)
    mean = float(statistics.objects.mean())
    axes.axvline(mean, color=ORANGE, linewidth=1.5)
    crowded = int((statistics.crowd > 0).sum())
    axes.set_title(
        f"mean {mean:.1f}; {statistics.empty} without annotations, {crowded} with crowd regions", fontsize=10
    )
    plain(axes, xlabel="objects in an image", ylabel="images", xlim=(-0.7, max(most, 3) + 0.7 * step))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return drawn


def _sizes(statistics: Statistics) -> Any:
    drawn = figure(7.5, 3.8)
    axes = drawn.subplots()
    areas = statistics.areas[statistics.areas > 0]
    if not len(areas):
        nothing(axes, "objects")
        return drawn
    sides = np.sqrt(areas)
    low, high = min(8.0, float(sides.min())), max(200.0, float(sides.max()))
    axes.hist(sides, bins=np.geomspace(low, high * 1.01, 50), color=BLUE)
    edges = (low, SMALL_PX2**0.5, LARGE_PX2**0.5, high * 1.01)
    for (name, count), left, right in zip(statistics.by_size().items(), edges[:-1], edges[1:], strict=True):
        axes.axvspan(left, right, color={"medium": GREY}.get(name, "white"), alpha=0.12, linewidth=0, zorder=0)
        label = f"{name}\n{count} ({100 * count / len(statistics.areas):.0f} %)"
        axes.text((left * right) ** 0.5, 1.02, label, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    plain(axes, xlabel="√area, pixels", ylabel="objects", xscale="log", xlim=(edges[0], edges[-1]))
    ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 96, 200, 400, 800, 1600) if low <= tick <= high]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    return drawn


def _aspects(statistics: Statistics) -> Any:
    drawn = figure(10, 3.6)
    for axes, sides, title, what in zip(
        drawn.subplots(1, 2),
        (statistics.sizes, statistics.box_sides),
        ("pictures", "boxes"),
        ("images", "objects"),
        strict=True,
    ):
        if not len(sides):
            nothing(axes, what)
            continue
        ratio = np.log2(sides[:, 1].astype(np.float64) / sides[:, 0])
        reach = min(4.0, max(2.0, float(np.ceil(np.quantile(np.abs(ratio), 0.995)))))  # the rest is in the end bins
        axes.hist(np.clip(ratio, -reach, reach), bins=np.linspace(-reach, reach, 49), color=BLUE)
        axes.axvline(0, color=ORANGE, linewidth=1.2)
        ticks = np.arange(-int(reach), int(reach) + 1)
        words = [f"{2**t}:1" if t >= 0 else f"1:{2**-t}" for t in ticks.tolist()]
        if np.abs(ratio).max() > reach:
            words[0], words[-1] = f"≤ {words[0]}", f"≥ {words[-1]}"
        axes.set_xticks(ticks, words)
        plain(axes, title=title, xlabel="width : height", ylabel=what)
    return drawn


def _pictures(statistics: Statistics) -> Any:
    drawn = figure(4.9, 4.5)
    axes = drawn.subplots()
    if not len(statistics.sizes):
        nothing(axes, "images")
        return drawn
    sizes, counts = np.unique(statistics.sizes, axis=0, return_counts=True)
    area = 10 + 1200 * counts / counts.sum()
    axes.scatter(sizes[:, 1], sizes[:, 0], s=area, color=GREEN, alpha=0.45, linewidth=0.6, edgecolor="#1c5034")
    limit = 1.12 * float(sizes.max())
    axes.plot([0, limit], [0, limit], color=GREY, linewidth=0.8, linestyle=":")
    plain(axes, xlabel="width, pixels", ylabel="height, pixels", xlim=(0, limit), ylim=(0, limit), aspect="equal")
    most = int(counts.argmax())
    axes.set_title(f"most frequent of {len(sizes)}: {sizes[most][1]} x {sizes[most][0]} ({counts[most]})", fontsize=10)
    return drawn


def _centres(statistics: Statistics) -> Any:
    drawn = figure(4.9, 4.5)
    axes = drawn.subplots()
    if not statistics.centres.any():
        nothing(axes, "objects")
        return drawn
    cells = HEAT_CELLS
    while cells > 8 and statistics.centres.sum() < 4 * cells**2:  # few boxes in small cells are noise
        cells //= 2
    pooled = statistics.centres.reshape(cells, HEAT_CELLS // cells, cells, HEAT_CELLS // cells).sum(axis=(1, 3))
    shown = axes.imshow(pooled, cmap="magma", vmin=0, extent=(0, 1, 1, 0), interpolation="nearest")
    axes.set(xlabel="x, share of the width", ylabel="y, share of the height")
    drawn.colorbar(shown, ax=axes, label="boxes in a cell", shrink=0.85)
    return drawn
