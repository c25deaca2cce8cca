"""torchvision's Mask R-CNN with the trunk, widths and budgets of one of our configurations, to compare with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator

from model.config import ModelConfig
from model.types import Batch
from pipeline.config import RunConfig


def build_peer(config: RunConfig) -> nn.Module:
    """The peer, with random weights of torchvision's own initialisation and its own conventions (v1).

    Raises:
        ValueError: it cannot be built of torchvision's pieces.
    """
    model: ModelConfig = config.model
    frozen = model.trunk.norm == "frozen_bn"
    trains_norms = model.trunk.norm == "bn" and model.trunk.freeze_stages == 0
    supported = (frozen or trains_norms) and model.trunk.width == 64
    if not supported or model.mask is None or model.box is None or model.rpn is None or model.classes is None:
        raise ValueError(
            "the torchvision peer is built for trunk.norm=frozen_bn, or trunk.norm=bn with trunk.freeze_stages=0, a "
            f"trunk.width of 64, an RPN and a mask head; got {model.trunk}"
        )
    norm = {"norm_layer": torchvision.ops.FrozenBatchNorm2d} if frozen else {}
    body = torchvision.models.get_model(model.trunk.body, weights=None, **norm)
    stem = ("conv1", "bn1") if model.trunk.freeze_stages else ()
    for name in (*stem, *(f"layer{stage}" for stage in range(1, model.trunk.freeze_stages))):
        body.get_submodule(name).requires_grad_(False)
    stages = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    last = "conv2" if model.trunk.body in ("resnet18", "resnet34") else "conv3"
    widths = [body.get_submodule(stage)[-1].get_submodule(last).out_channels for stage in stages]
    channels, classes = model.trunk.fpn_channels, model.classes + 1
    anchors = model.rpn.anchors
    peer: nn.Module = MaskRCNN(
        BackboneWithFPN(body, stages, widths, channels),
        min_size=config.data.test_size_px,
        max_size=config.data.test_max_size_px,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in anchors.sizes_px), (anchors.ratios,) * 5),
        rpn_pre_nms_top_n_train=model.rpn.pre_nms_train,
        rpn_pre_nms_top_n_test=model.rpn.pre_nms_test,
        rpn_post_nms_top_n_train=model.rpn.post_nms_train,
        rpn_post_nms_top_n_test=model.rpn.post_nms_test,
        rpn_batch_size_per_image=model.rpn.batch_per_image,
        box_batch_size_per_image=model.roi.batch_per_image,
        box_positive_fraction=model.roi.positive_fraction,
        box_head=TwoMLPHead(channels * model.box.roi_size**2, model.box.hidden),
        box_predictor=FastRCNNPredictor(model.box.hidden, classes),
        mask_head=MaskRCNNHeads(channels, (model.mask.channels,) * model.mask.convs, 1),
        mask_predictor=MaskRCNNPredictor(model.mask.channels, model.mask.channels, classes),
    )
    return peer


def peer_losses(peer: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Losses of a batch whose targets hold full-resolution masks (Collator targets "image")."""
    assert batch.targets is not None and batch.targets.masks is not None
    images, targets = [], []
    for image, (height, width) in enumerate(batch.sizes.tolist()):
        images.append(batch.images[image, :height, :width].permute(2, 0, 1).float() / 255)
        real = batch.targets.valid[image]
        targets.append(
            {
                "boxes": batch.targets.boxes[image, real],
                "labels": batch.targets.classes[image, real],
                "masks": batch.targets.masks[image, real][:, :height, :width],
            }
        )
    losses: dict[str, Tensor] = peer(images, targets)
    return losses


def peer_results(
    peer: nn.Module, pixels: Sequence[np.ndarray], sample_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO results of decoded images uint8 [H, W, 3], by torchvision's own resize, paste and threshold."""
    images = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pixels]
    results = []
    for sample_id, found in zip(sample_ids, peer(images), strict=True):
        masks = np.asfortranarray((found["masks"][:, 0] > 0.5).byte().permute(1, 2, 0).numpy())
        rles = coco_mask.encode(masks) if masks.shape[2] else []
        boxes = found["boxes"].double()
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label, rle in zip(
            boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), rles, strict=True
        ):
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            category = category_ids[label - 1]
            results.append(
                {
                    "image_id": sample_id,
                    "category_id": category,
                    "bbox": box,
                    "score": score,
                    "segmentation": segmentation,
                }
            )
    return results
