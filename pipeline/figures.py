"""Charts of one look: matplotlib figures without its global state."""

from typing import Any

BLUE, ORANGE, GREEN, GREY = "#2f6f9f", "#d9772b", "#3f8f5f", "#8a8a8a"
_NAME_LENGTH = 28


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches of 110 pixels."""
    # Imported here: importing matplotlib makes its config directory. No pyplot: it keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def plain(axes: Any, **labels: Any) -> None:
    """Set `labels`; a light grid, two spines, whole numbers where things are counted."""
    axes.set(**labels)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if labels.get("ylabel") in ("images", "objects", "detections") and axes.get_yscale() == "linear":
        axes.yaxis.get_major_locator().set_params(integer=True)


def nothing(axes: Any, what: str) -> None:
    """Say that there is nothing to draw."""
    axes.text(0.5, 0.5, f"no {what}", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_axis_off()


def short_name(name: str) -> str:
    """A class name that fits beside its bar; no $...$ is read as a formula."""
    name = name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
    return name.replace("$", r"\$")
