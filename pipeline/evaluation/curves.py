"""Precision over recall as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.evaluation.coco_ap import CocoAp
from pipeline.evaluation.protocols import RECALL_THRESHOLDS
from pipeline.evaluation.tables import percent

_CURVES: tuple[tuple[str, float | None, str], ...] = (  # label, IoU or OKS threshold (None: mean of all), colour
    (".50", 0.5, "#1f9e89"),
    (".75", 0.75, "#e07b39"),
    (".50:.95", None, "#3b528b"),
)


def pr_curves(aps: Mapping[str, CocoAp], path: Path) -> None:
    """One panel a task of {"box": ..., "mask": ...}: mean precision of the classes at each recall, with its AP.

    `aps` are tasks that have precision, at least one.
    """
    # Imported here: importing matplotlib makes its config directory. No pyplot: it keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(aps), 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(aps), sharey=True, squeeze=False)[0]
    for axes, (task, ap) in zip(panels, aps.items(), strict=True):
        overlap = "OKS" if ap.protocol.task == "keypoint" else "IoU"
        for label, iou, colour in _CURVES:
            precision = ap.precision_curve(iou)
            value = percent(float(np.mean(precision)))
            axes.plot(RECALL_THRESHOLDS, precision, color=colour, linewidth=1.8, label=f"{overlap} {label}: AP {value}")
        axes.set(title=task, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower left", frameon=False)
    panels[0].set_ylabel("precision")
    figure.savefig(path)
