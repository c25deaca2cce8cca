"""What it costs to paste the masks of one picture and to write them as run lengths, on one thread."""

import statistics
import time

import torch

from model.types import Detections
from pipeline.evaluation.coco_rle import detections_to_results

_SIDE_PX, _SIDE_SPREAD = 95.0, 1.05  # COCO's objects in a picture of 800 x 1333: twice those of 480 x 640


def measure_pasting(masks: int, height: int, width: int, rounds: int, seed: int = 0) -> float:
    """Median CPU milliseconds of `rounds`."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.randn(masks, 1, generator=generator) * _SIDE_SPREAD) * _SIDE_PX
    shape = torch.exp(torch.randn(masks, 1, generator=generator) * 0.35)
    limit = torch.tensor([width, height], dtype=torch.float32)
    size = torch.minimum(torch.cat((side * shape, side / shape), dim=1), limit)
    corner = torch.rand(masks, 2, generator=generator) * (limit - size)
    cells = torch.linspace(-1, 1, 28)
    waves = torch.randn(masks, 2, generator=generator) * 3
    radius = cells[:, None] ** 2 + cells**2 + 0.15 * torch.sin(5 * cells[:, None] + waves[:, :1, None])
    found = Detections(
        boxes=torch.cat((corner, corner + size), dim=1),
        scores=torch.rand(masks, generator=generator),
        classes=torch.ones(masks, dtype=torch.int64),
        size=(height, width),
        masks=torch.sigmoid(6 * (0.9 - radius)),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(rounds + 1):
            began = time.process_time()
            detections_to_results(found, 1, (1,))
            times.append(1000 * (time.process_time() - began))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[1:])
