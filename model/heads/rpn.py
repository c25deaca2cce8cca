"""Region proposal network (Ren et al. 2015): a small head shared by the levels, its loss, its proposals.

Legend: B images, L levels, A anchors an image over all levels (A_l on one level), P proposals, G ground-truth slots.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import RPNConfig
from model.heads.proposer import Proposed
from model.ops.anchors import cell_anchors, pyramid_anchors
from model.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, smooth_l1
from model.ops.masked_mean import masked_mean
from model.ops.matching import match
from model.ops.nms import nms_keep
from model.ops.sampling import gather_slots, sample_slots
from model.trunks.trunk import Pyramid
from model.types import Batch, Losses, Proposals, Targets


class RPN(nn.Module):
    """Scores anchors, proposes boxes."""

    cells: Tensor
    weights: Tensor

    def __init__(self, channels: int, levels: int, config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        anchors = config.anchors
        cells = cell_anchors(anchors.sizes_px, anchors.ratios, levels, anchors.order, anchors.rounded)
        self.register_buffer("cells", cells, False)
        self.register_buffer("weights", torch.ones(4), False)
        self.conv = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.convs))
        self.objectness = nn.Conv2d(channels, cells.shape[1], 1)
        self.deltas = nn.Conv2d(channels, 4 * cells.shape[1], 1)
        for conv in (*self.conv, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, pyramid: Pyramid) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits float32 [B, A_l] and deltas float32 [B, A_l, 4] of each level."""
        objectness, deltas = [], []
        for hidden in pyramid.values():
            for conv in self.conv:
                hidden = F.relu(conv(hidden), inplace=True)
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4).float())
        return objectness, deltas

    def look(self, pyramid: Pyramid, padded_size: tuple[int, int], batch: Batch) -> Proposed:
        """What it proposes on a batch whose padded images have this (height, width)."""
        with torch.no_grad():  # the loss computes the few anchors that it reads once more
            objectness, deltas = self(pyramid)
        anchors = self.anchors(pyramid, padded_size)
        proposals = self.propose(objectness, deltas, anchors, batch.sizes)
        return Proposed(proposals, sum(map(len, anchors)), partial(self.losses, pyramid, anchors))

    def at(self, pyramid: Pyramid, index: Tensor) -> tuple[Tensor, Tensor]:
        """The same logits [B, S] and deltas [B, S, 4] of anchors `index` int64 [B, S] (of all levels) alone.

        A loss that reads 256 anchors an image has a gradient there only: computing them again from the cells around
        them (3 x 3 with one convolution) spares the backward pass over the whole pyramid, an eighth of a step's
        arithmetic, and its memory.
        """
        side = 2 * len(self.conv) + 1  # of the cells that a hidden one depends on
        around = torch.arange(side, device=index.device) - len(self.conv)
        count = self.objectness.out_channels  # anchors a cell
        cell = index.div(count, rounding_mode="floor")[..., None, None]  # [B, S, 1, 1], of all levels
        image = torch.arange(len(index), device=index.device)[:, None, None, None]
        patches: Tensor | None = None
        there = torch.zeros_like(cell, dtype=torch.bool)  # [B, S, side, side], cells in the map
        for feature in pyramid.values():
            _, channels, height, width = feature.shape
            row = cell.div(width, rounding_mode="floor") + around[:, None]  # [B, S, side, 1]
            column = cell % width + around  # [B, S, 1, side]
            inside = (cell >= 0) & (cell < height * width)
            inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)  # [B, S, side, side]
            place = torch.where(inside, (image * height + row) * width + column, 0).flatten()
            cells = feature.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, place)
            cells = torch.where(inside.reshape(-1, 1), cells, 0.0).reshape(index.numel(), side, side, channels)
            patches = cells if patches is None else patches + cells  # of one level each
            there = there | inside
            cell = cell - height * width
        assert patches is not None
        hidden, there = patches.permute(0, 3, 1, 2), there.flatten(0, 1)[:, None]
        *convs, last = (conv for conv in self.conv if isinstance(conv, nn.Conv2d))
        for conv in convs:
            hidden, there = F.relu(F.conv2d(hidden, conv.weight, conv.bias)), there[..., 1:-1, 1:-1]
            hidden = torch.where(there, hidden, 0.0)  # the next convolution sees zeros outside the map
        # The last one is of 3 x 3 cells alone.
        hidden = F.linear(hidden.permute(0, 2, 3, 1).flatten(1), last.weight.permute(0, 2, 3, 1).flatten(1), last.bias)
        hidden = F.relu(hidden)
        anchor = (index % count).reshape(-1, 1)
        logits = F.linear(hidden, self.objectness.weight.flatten(1), self.objectness.bias).gather(1, anchor)
        deltas = F.linear(hidden, self.deltas.weight.flatten(1), self.deltas.bias).reshape(-1, count, 4)
        deltas = deltas.gather(1, anchor[..., None].expand(-1, 1, 4))
        return logits.reshape(index.shape).float(), deltas.reshape(*index.shape, 4).float()

    def anchors(self, pyramid: Pyramid, padded_size: tuple[int, int]) -> list[Tensor]:
        """Anchors float32 [A_l, 4] of each level, pixels of the padded input."""
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in pyramid.values()]
        if self.config.anchors.stride_from_grid:
            strides = [(padded_size[0] // rows, padded_size[1] // columns) for rows, columns in grids]
        else:
            strides = [(2**level, 2**level) for level in pyramid]
        return pyramid_anchors(self.cells, grids, strides)

    @torch.no_grad()
    def propose(
        self, objectness: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: Tensor
    ) -> Proposals:
        """The best boxes after NMS inside images of `sizes` int64 [B, 2] (height, width)."""
        config = self.config
        pre_nms, post_nms = (
            (config.pre_nms_train, config.post_nms_train)
            if self.training
            else (config.pre_nms_test, config.post_nms_test)
        )
        boxes, scores = [], []
        for logits, moves, boxes_of_level in zip(objectness, deltas, anchors, strict=True):
            best, index = logits.topk(min(pre_nms, logits.shape[1]), dim=1)
            boxes.append(decode_boxes(gather_slots(moves, index), boxes_of_level[index], self.weights))
            scores.append(best)
        widest = max(score.shape[1] for score in scores)
        images = len(sizes)
        # [B, L, N]: NMS never mixes levels, so each is a group, padded to the widest one.
        padded_boxes = torch.stack([F.pad(b, (0, 0, 0, widest - b.shape[1])) for b in boxes], 1)
        padded_scores = torch.stack([F.pad(s, (0, widest - s.shape[1]), value=-torch.inf) for s in scores], 1)
        # Features that are not finite make boxes that are no numbers; as empty ones they are left out. The loss is not
        # finite then and the step is skipped, but a RoI read at such a place would end the process.
        padded_boxes = clip_boxes(padded_boxes, sizes).nan_to_num(nan=0.0)
        side = padded_boxes[..., 2:] - padded_boxes[..., :2]
        smallest = side.amin(-1)
        large = smallest >= config.min_size_px if config.min_size_px > 0 else smallest > 0
        valid = large & padded_scores.isfinite()
        keep = nms_keep(padded_boxes.flatten(0, 1), padded_scores.flatten(0, 1), valid.flatten(0, 1), config.nms_iou)
        kept_scores = padded_scores.masked_fill(~keep.reshape(valid.shape), -torch.inf).reshape(images, -1)
        best, index = kept_scores.topk(min(post_nms, kept_scores.shape[1]), dim=1)
        return Proposals(gather_slots(padded_boxes.reshape(images, -1, 4), index), best, best > -torch.inf)

    def losses(self, pyramid: Pyramid, anchors: list[Tensor], targets: Targets, noise: Tensor) -> Losses:
        """Faster R-CNN eq. 1 on sampled anchors. `noise` float32 [B, A] in [0, 1) is the randomness of the sample."""
        config = self.config
        boxes = torch.cat(anchors)
        with torch.no_grad():
            truth_index, label = match(
                box_iou(targets.boxes, boxes), targets.valid, config.foreground_iou, config.background_iou, True
            )
            index, valid = sample_slots(label, noise, config.batch_per_image, config.positive_fraction)
            positive = valid & (gather_slots(label, index) == 1)  # [B, S]
            truth = gather_slots(targets.boxes, gather_slots(truth_index, index))
            reference = boxes[index]  # [B, S, 4]
            truth = torch.where(positive[..., None], truth, reference)
            target = encode_boxes(truth, reference, self.weights)
            if config.normaliser == "budget":
                number = torch.full((), config.batch_per_image * len(index), device=index.device)
            else:
                number = valid.sum()
        logits, moves = self.at(pyramid, index)
        entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        distance = smooth_l1(moves, target, config.box_beta)
        return {
            "rpn/objectness": masked_mean(entropy, valid, number),
            "rpn/box": masked_mean(distance, positive[..., None], number),
        }
