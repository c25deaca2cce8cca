"""AP and recall of objects by their size, in ranges finer than COCO's small, medium and large."""

from collections.abc import Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np

from pipeline.evaluation.coco_truth import Json, Truth
from pipeline.report.diagnosis import Floats, Ints

SIDES_PX = (0, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # square roots of areas; the last range has no end
_NO_END = 1e5  # COCO's largest area is its square


@dataclass(frozen=True)
class BySize:
    """S ranges that have objects; NaN where AP is undefined."""

    edges: tuple[tuple[float, float], ...]  # S, pixels: square root of the area, from and up to
    counts: Ints  # [S] objects that count
    ap: Floats | None  # [S] AP by COCO's rules for a range of areas; None for proposals
    recall: Floats  # [S] of all thresholds, as COCO's AR


def by_size(truth: Truth, found: Sequence[Json], sides_px: Sequence[float] = SIDES_PX) -> BySize:
    """AP of each range of sizes that has objects, as the evaluator scores its own ranges."""
    areas = np.array(
        [a["area"] for a in truth.coco["annotations"] if not a["iscrowd"] and a.get("num_keypoints", 1) > 0]
    )
    ranges = list(zip(sides_px, (*sides_px[1:], _NO_END), strict=True))
    counts = [int(((areas >= low**2) & (areas <= high**2)).sum()) for low, high in ranges]  # COCO takes both ends
    kept = [(edges, count) for edges, count in zip(ranges, counts, strict=True) if count]
    number = np.array([count for _, count in kept], dtype=np.int64)
    if not kept:
        return BySize((), number, None, np.zeros(0))
    protocol, source = truth.protocol, hotcoco.COCO(truth.coco)
    evaluator = hotcoco.COCOeval(source, source.load_res(list(found)), protocol.iou_type, lvis_style=protocol.federated)
    evaluator.params.max_dets = [protocol.limits[-1]]
    evaluator.params.area_rng = [[low**2, high**2] for (low, high), _ in kept]
    evaluator.params.area_rng_lbl = ["all", *(str(place) for place in range(1, len(kept)))]
    if truth.sigmas is not None:
        evaluator.params.kpt_oks_sigmas = list(truth.sigmas)
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None  # after accumulate()
    precision, recall = (np.asarray(evaluator.eval[key], dtype=np.float64) for key in ("precision", "recall"))
    places = range(len(kept))
    return BySize(
        edges=tuple(edges for edges, _ in kept),
        counts=number,
        ap=np.array([_mean(precision[:, :, :, s, -1]) for s in places]) if protocol.classes else None,
        recall=np.array([_mean(recall[:, :, s, -1]) for s in places]),
    )


def _mean(values: Floats) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")
