"""What a network found, as pictures need it."""

from model.config import Paste
from model.ops.masks import paste_crops
from model.types import Detections
from pipeline.evaluation.instances import Instances, found_points


def from_detections(
    detections: Detections, min_score: float = 0.5, rule: Paste = "exact", threshold: float = 0.5
) -> Instances:
    """What was found with a score of at least `min_score`; `rule` and `threshold` as in model/ops/masks.py."""
    keep = (detections.scores >= min_score).cpu()
    boxes = detections.boxes.detach().cpu()[keep]
    masks = None
    if detections.masks is not None:
        crops = paste_crops(detections.masks.cpu()[keep], boxes, detections.size, rule, threshold)
        masks = [(y0, x0, crop.numpy()) for y0, x0, crop in crops]
    keypoints = None
    if detections.keypoints is not None:
        found = detections.keypoints.detach().cpu()[keep].double().numpy()
        keypoints = [found_points(points - [0.5, 0.5, 0.0]) for points in found]
    return Instances(
        boxes=boxes.double().numpy(),
        classes=detections.classes.cpu()[keep].numpy(),
        scores=detections.scores.detach().cpu()[keep].double().numpy(),
        masks=masks,
        keypoints=keypoints,
    )
