import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from model.ops.boxes import MAX_LOG_SCALE, box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, smooth_l1

AWKWARD = [
    [0.0, 0.0, 10.0, 10.0],
    [0.0, 0.0, 10.0, 10.0],  # the same again
    [2.0, 3.0, 4.0, 5.0],  # inside the first
    [10.0, 0.0, 20.0, 10.0],  # shares an edge with it
    [10.0, 10.0, 20.0, 20.0],  # shares a corner
    [5.0, 5.0, 5.0, 5.0],  # a point in it
    [5.0, 2.0, 5.0, 8.0],  # a line in it
    [-30.0, -40.0, 900.0, 1300.0],  # around everything
    [1e-3, 1e-3, 2e-3, 2e-3],  # tiny
    [-5.0, -5.0, -1.0, -1.0],  # negative coordinates
]


def random_boxes(count: int, seed: int, smallest: float = 0.5, largest: float = 80.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 140 - 20
    log = torch.rand(count, 2, generator=generator) * math.log(largest / smallest) + math.log(smallest)
    return torch.cat([corner, corner + log.exp()], 1)


def naive_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def test_iou_equals_a_loop_and_torchvision() -> None:
    a = torch.cat([torch.tensor(AWKWARD), random_boxes(40, 0)])
    b = torch.cat([torch.tensor(AWKWARD), random_boxes(25, 1)])
    iou = box_iou(a, b)
    assert iou.shape == (50, 35) and iou.dtype == torch.float32
    naive = torch.tensor([[naive_iou(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(iou, naive, rtol=2e-5, atol=1e-7)
    theirs = torchvision.ops.box_iou(a, b)
    both_empty = (box_area(a) == 0)[:, None] & (box_area(b) == 0)
    assert theirs[both_empty].isnan().any()  # where torchvision divides zero by zero, ours is zero
    assert (iou[both_empty] == 0).all()
    torch.testing.assert_close(iou[~both_empty], theirs[~both_empty], rtol=1e-6, atol=0)


def test_iou_of_a_batch() -> None:
    a, b = random_boxes(12, 2).reshape(3, 4, 4), random_boxes(15, 3).reshape(3, 5, 4)
    iou = box_iou(a, b)
    assert iou.shape == (3, 4, 5)
    assert all(torch.equal(iou[i], box_iou(a[i], b[i])) for i in range(3))
    assert torch.equal(box_iou(a, b[0]), torch.stack([box_iou(a[i], b[0]) for i in range(3)]))
    assert box_iou(a[:, :0], b).shape == (3, 0, 5)


def test_area() -> None:
    assert box_area(torch.tensor(AWKWARD))[:7].tolist() == [100, 100, 4, 100, 100, 0, 0]


@pytest.mark.parametrize("between", [(), (7,), (7, 2)])
def test_clip_equals_a_loop(between: tuple[int, ...]) -> None:
    sizes = torch.tensor([[60, 90], [33, 21], [1, 1]])
    boxes = random_boxes(3 * math.prod(between), 4).reshape(3, *between, 4) * 2
    clipped = clip_boxes(boxes, sizes)
    assert clipped.shape == boxes.shape
    for image, (height, width) in enumerate(sizes.tolist()):
        for got, box in zip(clipped[image].reshape(-1, 4), boxes[image].reshape(-1, 4).tolist(), strict=True):
            limits = (width, height, width, height)
            assert got.tolist() == [min(max(x, 0.0), limit) for x, limit in zip(box, limits, strict=True)]
        theirs = torchvision.ops.clip_boxes_to_image(boxes[image].reshape(-1, 4), (height, width))
        assert torch.equal(clipped[image].reshape(-1, 4), theirs)


def naive_encode(target: list[float], reference: list[float], weights: tuple[float, ...]) -> list[float]:
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    return [
        weights[0] * ((target[0] + target[2]) / 2 - (reference[0] + reference[2]) / 2) / width,
        weights[1] * ((target[1] + target[3]) / 2 - (reference[1] + reference[3]) / 2) / height,
        weights[2] * math.log((target[2] - target[0]) / width),
        weights[3] * math.log((target[3] - target[1]) / height),
    ]


def naive_decode(delta: list[float], reference: list[float], weights: tuple[float, ...]) -> list[float]:
    sides = (reference[2] - reference[0], reference[3] - reference[1])
    box = [0.0] * 4
    for axis in (0, 1):
        centre = (reference[axis] + reference[axis + 2]) / 2 + delta[axis] / weights[axis] * sides[axis]
        side = sides[axis] * math.exp(min(delta[axis + 2] / weights[axis + 2], math.log(62.5)))
        box[axis], box[axis + 2] = centre - side / 2, centre + side / 2
    return box


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)])
def test_deltas_equal_a_loop_and_torchvision(weights: tuple[float, float, float, float]) -> None:
    references, truth = random_boxes(2000, 5), random_boxes(2000, 6)
    deltas = encode_boxes(truth, references, torch.tensor(weights))
    pairs = zip(truth.double().tolist(), references.double().tolist(), strict=True)
    naive = torch.tensor([naive_encode(t, r, weights) for t, r in pairs])
    torch.testing.assert_close(deltas, naive, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(deltas, BoxCoder(weights).encode_single(truth, references), rtol=1e-5, atol=1e-4)

    generator = torch.Generator().manual_seed(7)
    moves = torch.randn(2000, 4, generator=generator) * 2 * torch.tensor(weights)
    moves[::9, 2:] = 1e4  # beyond the limit of enlargement
    moves[::11, 2:] = -1e4  # nothing is left
    boxes = decode_boxes(moves, references, torch.tensor(weights))
    pairs = zip(moves.double().tolist(), references.double().tolist(), strict=True)
    naive = torch.tensor([naive_decode(d, r, weights) for d, r in pairs])
    torch.testing.assert_close(boxes, naive, rtol=1e-5, atol=1e-3)
    theirs = BoxCoder(weights).decode(moves, [references])[:, 0]
    torch.testing.assert_close(boxes, theirs, rtol=1e-5, atol=1e-3)


def test_decode_undoes_encode() -> None:
    references, truth = random_boxes(500, 8, smallest=4), random_boxes(500, 9, smallest=4)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    back = decode_boxes(encode_boxes(truth, references, weights), references, weights)
    torch.testing.assert_close(back, truth, rtol=1e-5, atol=2e-4)
    assert torch.equal(encode_boxes(truth, truth, weights), torch.zeros_like(truth))
    torch.testing.assert_close(decode_boxes(torch.zeros_like(truth), truth, weights), truth, rtol=1e-6, atol=1e-5)


def test_decode_of_a_class_axis() -> None:
    references, weights = random_boxes(6, 10).reshape(2, 3, 4), torch.ones(4)
    moves = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    boxes = decode_boxes(moves, references[:, :, None], weights)
    assert boxes.shape == (2, 3, 5, 4)
    for k in range(5):
        torch.testing.assert_close(boxes[:, :, k], decode_boxes(moves[:, :, k], references, weights))


def test_enlargement_is_limited() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 32.0]])
    for move in (MAX_LOG_SCALE, 50.0, torch.inf):
        grown = decode_boxes(torch.tensor([[0.0, 0.0, move, move]]), box, torch.ones(4))
        torch.testing.assert_close(grown[:, 2:] - grown[:, :2], torch.tensor([[1000.0, 2000.0]]))


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 0.5, 1.0])
def test_smooth_l1_and_its_gradient(beta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = (torch.randn(300, 4, generator=generator) * 0.7).requires_grad_()
    target = torch.randn(300, 4, generator=generator) * 0.7
    with torch.no_grad():
        ours[:20] = target[:20]  # no difference
        ours[20:40] = target[20:40] + beta  # on the corner
    theirs = ours.detach().clone().requires_grad_()
    loss, expected = smooth_l1(ours, target, beta), F.smooth_l1_loss(theirs, target, reduction="none", beta=beta)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    loss.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)
