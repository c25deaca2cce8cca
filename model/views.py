"""Detections from several views of the same images: other sizes, mirrored (Mask R-CNN table 8).

The boxes that any view finds go through one NMS; masks and keypoints of those that are left are then read in every
view and averaged, masks as probabilities and keypoints as heatmaps. (detectron2's GeneralizedRCNNWithTTA runs NMS and
the limit of 100 in each view first and over their union again: a box that loses in its own view to one that then loses
to a third is gone there, and stays here.)

Legend: B images, N boxes, J keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.heads.box import Found
from model.mask_rcnn import MaskRCNN, as_detections
from model.types import Batch, Detections


@dataclass(frozen=True)
class View:
    """The images of a batch at one size, all of them mirrored or none."""

    batch: Batch
    mirrored: bool = False  # left and right, before padding

    def leave(self, boxes: Tensor, image: int, frame: Tensor) -> Tensor:
        """Boxes [N, 4] in pixels of the view's image -> pixels of a frame of size [2] (height, width)."""
        size = self.batch.sizes[image].to(boxes.dtype)
        return _scale(_mirror(boxes, size[1]) if self.mirrored else boxes, size, frame)

    def enter(self, boxes: Tensor, image: int, frame: Tensor) -> Tensor:
        """The way back."""
        size = self.batch.sizes[image].to(boxes.dtype)
        boxes = _scale(boxes, frame, size)
        return _mirror(boxes, size[1]) if self.mirrored else boxes


def _mirror(boxes: Tensor, width: Tensor) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)


def _scale(boxes: Tensor, size: Tensor, other: Tensor) -> Tensor:
    return boxes * (other / size).flip(0).repeat(2)


@torch.no_grad()
def predict_views(
    model: MaskRCNN, views: Sequence[View], keypoint_flip: Sequence[int] | None = None
) -> list[Detections]:
    """Detections of every image, in pixels of the original image, best first. One plain view: `model.predict`.

    The features of all views are held at once: B images cost as much memory as B x views of them.

    Args:
        model: with boxes, in eval mode.
        views: of the same images in the same order, one or more. Boxes meet in the pixels of the first one.
        keypoint_flip: J; keypoint j of a mirrored image is keypoint keypoint_flip[j] of the image. Models with
            keypoints need it for mirrored views.
    """
    model.check_eval()
    if model.box is None:
        raise ValueError("views are merged by the box head's NMS, but the model has none; proposals have one view")
    mirrored = any(view.mirrored for view in views)
    if model.keypoint is not None and mirrored and keypoint_flip is None:
        raise ValueError("keypoints of mirrored views need keypoint_flip, got None; leave mirrored views out")
    first = views[0].batch
    frames = first.sizes.float()  # [B, 2]
    looks, candidates = [], []
    for view in views:
        seen = model.look(view.batch)
        looks.append(seen)
        candidates.append(
            [
                Found(view.leave(boxes, image, frames[image]), scores, classes)
                for image, (boxes, scores, classes) in enumerate(model.candidates(seen, view.batch.sizes))
            ]
        )
    found = [model.suppress(Found(*map(torch.cat, zip(*own, strict=True)))) for own in zip(*candidates, strict=True)]
    masks, heatmaps = [], []
    for view, seen in zip(views, looks, strict=True):
        moved = [one._replace(boxes=view.enter(one.boxes, i, frames[i])) for i, one in enumerate(found)]
        own_masks, own_heatmaps = model.describe(seen, moved)
        if own_masks is not None:
            masks.append(own_masks.flip(-1) if view.mirrored else own_masks)
        if own_heatmaps is not None:
            if view.mirrored:
                own_heatmaps = own_heatmaps.flip(-1)[:, list(keypoint_flip or ())]
            heatmaps.append(own_heatmaps)
    return as_detections(found, _mean(masks), _mean(heatmaps), first)


def _mean(values: Sequence[Tensor]) -> Tensor | None:
    """Of tensors of one shape; None of none."""
    return torch.stack(list(values)).mean(0) if values else None
