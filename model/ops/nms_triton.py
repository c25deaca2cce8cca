"""Greedy NMS on a GPU without waiting for it: two kernels, and a mask of static shape instead of a list of indices.

torchvision's kernel returns as many indices as boxes are kept, and the host must wait to learn how many. Here the first
kernel compares all pairs of a group and writes one bit a pair; the second walks through the boxes of a group in the
order of their scores, 32 at a time.

Legend: S groups, N boxes a group, best first; W = ceil(N / 32) words of 32 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LANES = tl.constexpr(32)  # boxes a word


@triton.jit
def _compare(boxes, words, threshold, count, n_words):
    """words[s, i, w] has bit b set where box 32 w + b comes after box i and overlaps it by more than the threshold."""
    group, block, word = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if word < block:  # earlier boxes: never asked for
        return
    lane = tl.arange(0, _LANES)
    i, j = block * _LANES + lane, word * _LANES + lane
    here, there = boxes + (group * count + i) * 4, boxes + (group * count + j) * 4
    x1, y1 = tl.load(here, i < count, 0.0)[:, None], tl.load(here + 1, i < count, 0.0)[:, None]
    x2, y2 = tl.load(here + 2, i < count, 0.0)[:, None], tl.load(here + 3, i < count, 0.0)[:, None]
    u1, v1 = tl.load(there, j < count, 0.0)[None, :], tl.load(there + 1, j < count, 0.0)[None, :]
    u2, v2 = tl.load(there + 2, j < count, 0.0)[None, :], tl.load(there + 3, j < count, 0.0)[None, :]
    width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
    height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
    inter = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
    over = (tl.div_rn(inter, union) > threshold) & (j[None, :] > i[:, None])  # [32, 32]; 0 / 0 is not above it
    bits = tl.sum(tl.where(over, 1 << lane[None, :], 0), 1)  # different powers of two: the sum is the union
    tl.store(words + (group * count + i) * n_words + word, bits, i < count)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _walk(words, valid, keep, count, n_words, PADDED: tl.constexpr):  # noqa: N803
    """keep[s, i] = valid, and no kept box before it overlaps it."""
    group = tl.program_id(0)
    lane, column = tl.arange(0, _LANES), tl.arange(0, PADDED)
    dropped = tl.zeros([PADDED], tl.int32)
    for block in range(n_words):
        i = block * _LANES + lane
        usable = tl.load(valid + group * count + i, i < count, 0) != 0
        dead = tl.sum(tl.where(column == block, dropped, 0), 0) | tl.sum(tl.where(usable, 0, 1 << lane), 0)
        kept = dead * 0
        for b in tl.static_range(32):
            row = block * _LANES + b
            overlaps = tl.load(words + (group * count + row) * n_words + block, row < count, 0)
            alive = 1 - ((dead >> b) & 1)
            kept = kept | (alive << b)
            dead = dead | (overlaps * alive)
        chosen = (kept >> lane) & 1  # [32]
        tl.store(keep + group * count + i, chosen.to(tl.int8), i < count)
        tile = words + (group * count + i[:, None]) * n_words + column[None, :]
        later = (column[None, :] > block) & (column[None, :] < n_words)
        overlapped = tl.load(tile, (chosen[:, None] == 1) & (i[:, None] < count) & later, 0)
        dropped = dropped | tl.reduce(overlapped, 0, _either)


def keep_sorted(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS of S groups whose boxes are sorted, best first.

    Args:
        boxes: float32 [S, N, 4] xyxy, contiguous.
        valid: bool [S, N]; the rest neither is kept nor suppresses.
        iou_threshold: as in `model.ops.nms.nms_keep`; the comparisons are bit-equal to torchvision's on the CPU.

    Returns:
        bool [S, N].
    """
    groups, count, _ = boxes.shape
    keep = torch.zeros(groups, count, dtype=torch.int8, device=boxes.device)
    if groups == 0 or count == 0:
        return keep.bool()
    n_words = -(-count // 32)
    words = torch.empty(groups, count, n_words, dtype=torch.int32, device=boxes.device)
    # Fused multiply-adds would round otherwise than torchvision does.
    _compare[(groups, n_words, n_words)](
        boxes, words, _not_above(iou_threshold), count, n_words, num_warps=1, enable_fp_fusion=False
    )
    _walk[(groups,)](words, valid.to(torch.int8), keep, count, n_words, triton.next_power_of_2(n_words), num_warps=4)
    return keep.bool()


def _not_above(threshold: float) -> float:
    """The largest float32 that is not above a threshold: a float32 is above the one where it is above the other."""
    near = torch.tensor(threshold, dtype=torch.float32, device="cpu")
    if near.item() > threshold:
        near = torch.nextafter(near, torch.tensor(-torch.inf, device="cpu"))
    return near.item()
