"""Our model and torchvision's with the same numbers, the same random weights and the same pixels."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.weights.loading import load_matching
from model.weights.torchvision import from_torchvision
from pipeline.benchmarks.torchvision_peer import build_peer
from pipeline.config import RunConfig


def build_pair(config: RunConfig, device: torch.device, seed: int = 0) -> tuple[MaskRCNN, nn.Module]:
    """Ours (channels last in memory) and torchvision's, both in training mode on `device`.

    Batch norms are frozen, with statistics that keep features of a random body near 1. The last layers are drawn wide
    enough for scores without ties.
    """
    torch.manual_seed(seed)
    peer: Any = build_peer(config)
    peer.transform.resize = _as_it_is
    assert config.model.box is not None
    peer.roi_heads.detections_per_img = config.model.box.detections_per_image
    peer.roi_heads.nms_thresh = config.model.box.nms_iou
    for pool in (peer.roi_heads.box_roi_pool, peer.roi_heads.mask_roi_pool):
        pool.sampling_ratio = config.model.roi.sampling_ratio
    for module in peer.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.4, 0.8)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    heads = (peer.rpn.head.cls_logits, peer.roi_heads.box_predictor.cls_score)
    for layer in (*heads, peer.roi_heads.mask_predictor.mask_fcn_logits):
        nn.init.normal_(layer.weight, std=0.1)
    assert config.model.classes is not None
    ours = build_model(config.model)
    report = load_matching(ours, from_torchvision(peer.state_dict(), config.model.classes))
    if report.missing or report.left or report.mismatched:
        raise ValueError(f"the benchmark needs a model that torchvision has too, got {report} with {config.model}")
    return ours.to(device).to(memory_format=torch.channels_last).train(), peer.to(device).train()


def _as_it_is(image: Tensor, target: Any) -> tuple[Tensor, Any]:
    """Stands in for torchvision's resize: both models see the same pixels."""
    return image, target


def set_threshold(ours: MaskRCNN, peer: nn.Module, threshold: float) -> None:
    """Detections of either have a score above `threshold`."""
    assert ours.box is not None
    ours.box.config = replace(ours.box.config, score_threshold=threshold)
    peer.roi_heads.score_thresh = threshold  # type: ignore[union-attr]
