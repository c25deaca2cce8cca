import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from model.config import AnchorConfig, BoxConfig, MaskConfig, Normaliser, RPNConfig
from model.heads.box import BoxHead
from model.heads.mask import FCN, MLP, MaskHead
from model.heads.mask_scheme import Independent
from model.heads.rpn import RPN
from model.ops.boxes import box_iou, encode_boxes
from model.types import Targets

RPN_CONFIG = RPNConfig(
    anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 128.0)),
    batch_per_image=40,
    pre_nms_train=50,
    pre_nms_test=20,
    post_nms_train=30,
    post_nms_test=10,
)


def make_mask_head(config: MaskConfig) -> MaskHead:
    """For crops of 4 channels and 3 classes."""
    return MaskHead(FCN(4, config.roi_size, 3, config), config, Independent())


def boxes_in(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 16.0, height - 16.0])
    side = torch.rand(count, 2, generator=generator) * 40 + 6
    return torch.minimum(torch.cat([corner, corner + side], 1), torch.tensor([width, height] * 2).float())


def proposals_of(config: RPNConfig, seed: int) -> tuple[RPN, dict[int, Tensor]]:
    torch.manual_seed(seed)
    rpn = RPN(6, 5, config)
    for layer in (*rpn.conv, rpn.objectness, rpn.deltas):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return rpn, {level: torch.randn(3, 6, -(-64 // 2**level), -(-96 // 2**level)) for level in (2, 3, 4, 5, 6)}


@pytest.mark.parametrize("normaliser", ["budget", "sampled"])
@pytest.mark.parametrize("slots", [40, 2000])  # fewer than there are anchors, and more
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rpn_losses_by_hand(normaliser: Normaliser, slots: int, beta: float) -> None:
    config = dataclasses.replace(RPN_CONFIG, normaliser=normaliser, box_beta=beta, batch_per_image=slots)
    rpn, pyramid = proposals_of(config, 0)
    objectness, deltas = rpn(pyramid)
    anchors = rpn.anchors(pyramid, (64, 96))
    generator = torch.Generator().manual_seed(1)
    valid = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    boxes = boxes_in(9, 64, 96, generator).reshape(3, 3, 4)
    boxes[0, 1] = torch.tensor([3.0, 3.0, 3.2, 3.2])  # matched only because nothing is better
    noise = torch.rand(3, sum(map(len, anchors)), generator=generator)
    losses = rpn.losses(pyramid, anchors, Targets(boxes, valid.long(), valid, None), noise)

    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    flat = torch.cat(anchors)
    entropy = distance = torch.zeros(())
    sampled = 0
    for image in range(3):
        truth = boxes[image][valid[image]]
        matches = torch.full((len(flat),), -1)
        if len(truth):
            matches = matcher(torchvision.ops.box_iou(truth, flat))
        ranked = noise[image].argsort(descending=True).tolist()
        positive = [i for i in ranked if matches[i] >= 0][: slots // 2]
        negative = [i for i in ranked if matches[i] == -1][: slots - len(positive)]
        sampled += len(positive) + len(negative)
        logits, moves = (torch.cat([level[image] for level in levels]) for levels in (objectness, deltas))
        entropy = entropy + F.softplus(-logits[positive]).sum() + F.softplus(logits[negative]).sum()
        if positive:
            target = encode_boxes(truth[matches[positive]], flat[positive], torch.ones(4))
            distance = distance + F.smooth_l1_loss(moves[positive], target, reduction="sum", beta=beta)
    count = 3 * slots if normaliser == "budget" else sampled
    assert distance > 0 and (sampled == 3 * slots) == (slots == 40)
    torch.testing.assert_close(losses["rpn/objectness"], entropy / count, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["rpn/box"], distance / count, rtol=1e-5, atol=1e-6)


def test_anchors_read_alone_equal_those_of_the_whole_pyramid() -> None:
    """Values, and gradients of features and weights: at every border, on every level, one anchor twice."""
    rpn, pyramid = proposals_of(RPN_CONFIG, 0)
    rpn.double()
    pyramid = {level: feature.double().requires_grad_() for level, feature in pyramid.items()}
    objectness, deltas = (torch.cat(levels, 1) for levels in rpn(pyramid))
    everything = torch.arange(objectness.shape[1])
    for index in (everything.expand(3, -1), torch.tensor([[0, 5, 5], [len(everything) - 1, 7, 0], [300, 1154, 1155]])):
        towards = torch.randn(3, index.shape[1], 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        leaves = [*pyramid.values(), *rpn.parameters()]
        results = []
        for logits, moves in (
            rpn.at(pyramid, index),
            (objectness.gather(1, index), deltas.gather(1, index[..., None].expand(-1, -1, 4))),
        ):
            found = torch.cat([logits[..., None], moves], -1)
            results.append([found, *torch.autograd.grad((found * towards).sum(), leaves, retain_graph=True)])
        for alone, whole in zip(*results, strict=True):
            torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("min_size", [0.0, 12.0])
def test_proposals_by_hand(training: bool, min_size: float) -> None:
    rpn, pyramid = proposals_of(dataclasses.replace(RPN_CONFIG, min_size_px=min_size), 2)
    rpn.train(training)
    pre, post = (50, 30) if training else (20, 10)
    with torch.no_grad():
        objectness, deltas = rpn(pyramid)
    anchors = rpn.anchors(pyramid, (64, 96))
    sizes = torch.tensor([[64, 96], [40, 90], [20, 11]])
    boxes, objectness_of, valid = rpn.propose(objectness, deltas, anchors, sizes)
    assert boxes.shape == (3, post, 4) and valid.shape == (3, post)
    for image, (height, width) in enumerate(sizes.tolist()):
        kept: list[tuple[float, Tensor]] = []
        for logits, moves, level in zip(objectness, deltas, anchors, strict=True):
            best = logits[image].argsort(descending=True)[:pre]
            size = level[best, 2:] - level[best, :2]
            centre = level[best, :2] + size / 2 + moves[image, best, :2] * size
            half = size * moves[image, best, 2:].exp() / 2
            found = torchvision.ops.clip_boxes_to_image(torch.cat([centre - half, centre + half], 1), (height, width))
            large = ((found[:, 2:] - found[:, :2]) >= max(min_size, 1e-9)).all(1)
            found, scores = found[large], logits[image, best][large]
            for i in torchvision.ops.nms(found, scores, 0.7).tolist():
                kept.append((scores[i].item(), found[i]))
        kept = sorted(kept, key=lambda pair: -pair[0])[:post]
        assert valid[image].tolist() == [True] * len(kept) + [False] * (post - len(kept))
        if kept:
            expected = torch.stack([box for _, box in kept])
            torch.testing.assert_close(boxes[image, : len(kept)], expected, rtol=1e-4, atol=1e-3)
            assert objectness_of[image, : len(kept)].tolist() == [score for score, _ in kept]
    assert min_size == 0 or not valid[2].any()  # no box is 12 pixels wide in an image of 11


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_box_losses_by_hand(beta: float) -> None:
    torch.manual_seed(0)
    head = BoxHead(4, 2, 3, BoxConfig(roi_size=2, hidden=8, box_beta=beta))
    generator = torch.Generator().manual_seed(1)
    rois, truth = boxes_in(20, 60, 60, generator), boxes_in(20, 60, 60, generator)
    classes = torch.arange(20) % 4
    valid = torch.arange(20) < 15
    rois[classes == 0] = 0.0  # a negative RoI may be empty
    truth[classes == 0] = -7.0
    logits = torch.randn(20, 4, generator=generator).requires_grad_()
    deltas = torch.randn(20, 3, 4, generator=generator).requires_grad_()
    losses = head.losses(logits, deltas, rois, torch.where(valid, classes, 0), truth, valid)

    entropy = distance = 0.0
    for i in range(15):
        k = int(classes[i])
        entropy += (logits[i].logsumexp(0) - logits[i, k]).item()
        if k > 0:
            target = encode_boxes(truth[i], rois[i], torch.tensor([10.0, 10.0, 5.0, 5.0]))
            distance += F.smooth_l1_loss(deltas[i, k - 1], target, reduction="sum", beta=beta).item()
    assert losses["box/class"].item() == pytest.approx(entropy / 15, rel=1e-5)
    assert losses["box/box"].item() == pytest.approx(distance / 15, rel=1e-5)

    (losses["box/class"] + losses["box/box"]).backward()
    assert logits.grad is not None and deltas.grad is not None
    assert logits.grad.isfinite().all() and not logits.grad[15:].any()
    touched = deltas.grad.abs().sum(2) > 0
    assert touched.tolist() == [[bool(i < 15 and classes[i] == k) for k in (1, 2, 3)] for i in range(20)]


def test_no_roi_at_all() -> None:
    head = BoxHead(4, 2, 3, BoxConfig(roi_size=2, hidden=8))
    nobody, zeros = torch.zeros(6, dtype=torch.bool), torch.zeros(6, 4)
    losses = head.losses(
        torch.randn(6, 4), torch.randn(6, 3, 4), zeros, torch.zeros(6, dtype=torch.int64), zeros, nobody
    )
    assert losses["box/class"] == losses["box/box"] == 0


def test_detections_by_hand() -> None:
    config = BoxConfig(roi_size=2, hidden=8, score_threshold=0.2, nms_iou=0.4, min_size_px=3.0, detections_per_image=12)
    head = BoxHead(4, config.roi_size, 3, config)
    generator = torch.Generator().manual_seed(3)
    rois = boxes_in(80, 60, 70, generator).reshape(2, 40, 4)
    logits = torch.randn(2, 40, 4, generator=generator) * 2
    deltas = torch.randn(2, 40, 3, 4, generator=generator) * 2
    valid = torch.rand(2, 40, generator=generator) < 0.8
    sizes = torch.tensor([[60, 70], [30, 64]])
    decoded = head.refine(deltas.flatten(0, 1), rois.flatten(0, 1)).reshape(2, 40, 3, 4)
    for image, candidates in enumerate(head.candidates(logits.softmax(-1), decoded, valid, sizes)):
        boxes, scores, classes = head.suppress(candidates)
        found: list[tuple[float, int, Tensor]] = []
        for k in (1, 2, 3):
            size = rois[image, :, 2:] - rois[image, :, :2]
            move = deltas[image, :, k - 1] / torch.tensor([10.0, 10.0, 5.0, 5.0])
            centre = rois[image, :, :2] + size / 2 + move[:, :2] * size
            half = size * move[:, 2:].exp() / 2
            own = torch.cat([centre - half, centre + half], 1)
            own = torchvision.ops.clip_boxes_to_image(own, tuple(sizes[image].tolist()))
            score = logits[image].softmax(1)[:, k]
            good = valid[image] & (score > 0.2) & ((own[:, 2:] - own[:, :2]) >= 3).all(1)
            own, score = own[good], score[good]
            found += [(score[i].item(), k, own[i]) for i in torchvision.ops.nms(own, score, 0.4).tolist()]
        found = sorted(found, key=lambda item: -item[0])[:12]
        assert len(boxes) == 12
        assert classes.tolist() == [k for _, k, _ in found]
        torch.testing.assert_close(scores, torch.tensor([score for score, _, _ in found]))
        torch.testing.assert_close(boxes, torch.stack([box for _, _, box in found]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [FCN, MLP])
@pytest.mark.parametrize("last", [torch.channels_last, torch.contiguous_format])
def test_mask_losses_by_hand(kind: type[FCN] | type[MLP], last: torch.memory_format) -> None:
    """Against the whole predictor and a loop over RoIs, in float64; gradients too."""
    torch.manual_seed(0)
    config = MaskConfig(roi_size=3, channels=4, convs=1, hidden=5, mlp_size=6)
    head = MaskHead(kind(4, 3, 3, config), config, Independent()).double()
    torch.nn.init.normal_(head.layers.predictor.weight)
    torch.nn.init.normal_(head.layers.predictor.bias)  # type: ignore[arg-type]
    crops = torch.randn(8, 4, 3, 3, dtype=torch.float64).to(memory_format=last).requires_grad_()
    target = (torch.rand(8, 6, 6) < 0.5).float()
    classes = torch.tensor([1, 3, 2, 0, 1, 0, 3, 2])
    logits = head(crops, classes)
    assert logits.shape == (8, 1, 6, 6)
    loss = head.losses(logits, classes, target, classes > 0)["mask/mask"]
    inputs = [crops, *head.parameters()]
    found = torch.autograd.grad(loss, inputs)

    whole = head.layers(crops, None, None, None)  # all three masks
    assert whole.shape == (8, 3, 6, 6)
    own = [(i, k) for i, k in enumerate(classes.tolist()) if k > 0]
    entropies = [F.binary_cross_entropy_with_logits(whole[i, k - 1], target[i].double()) for i, k in own]
    total = torch.stack(entropies).mean()
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    for one, other in zip(found, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)

    probabilities = head.probabilities(logits, classes)
    for i, k in own:
        torch.testing.assert_close(probabilities[i], torch.sigmoid(whole[i, k - 1]).float(), rtol=1e-5, atol=1e-7)
    assert head.losses(logits, classes * 0, target, classes < 0)["mask/mask"] == 0


@pytest.mark.parametrize("kind", [FCN, MLP])
def test_masks_of_no_roi(kind: type[FCN] | type[MLP]) -> None:
    config = MaskConfig(roi_size=3, channels=4, convs=1, hidden=5, mlp_size=6)
    head = MaskHead(kind(4, 3, 3, config), config, Independent())
    classes = torch.zeros(0, dtype=torch.int64)
    logits = head(torch.zeros(0, 4, 3, 3), classes)
    assert logits.shape == (0, 1, 6, 6) and head.probabilities(logits, classes).shape == (0, 6, 6)


def test_head_shapes() -> None:
    mask = make_mask_head(MaskConfig(roi_size=5, channels=6, convs=2))
    assert mask(torch.randn(7, 4, 5, 5), torch.arange(7) % 4).shape == (7, 1, 10, 10) and mask.size == 10
    box = BoxHead(4, 5, 3, BoxConfig(roi_size=5, hidden=8))
    logits, deltas = box(torch.randn(7, 4, 5, 5))
    assert logits.shape == (7, 4) and deltas.shape == (7, 3, 4)
    assert box_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
