import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from model.config import BodyName, TrunkConfig
from model.trunks.non_local import NonLocal
from model.trunks.resnet import SHAPES, ResNet
from model.weights.loading import load_matching


def awake(channels: int, seed: int = 0) -> NonLocal:
    """A block that is no identity, with attention that prefers some places."""
    torch.manual_seed(seed)
    block = NonLocal(channels)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    return block


def by_hand(block: NonLocal, x: Tensor) -> np.ndarray:
    """Wang et al. 2018, eq. 1 to 6, in float64, a place at a time."""

    def embed(conv: nn.Conv2d, vector: np.ndarray) -> np.ndarray:
        return conv.weight.double().detach().numpy()[:, :, 0, 0] @ vector + conv.bias.double().detach().numpy()

    pixels = x.double().numpy()
    seen = pixels.copy()
    for image in range(len(pixels)):
        places = [(row, column) for row in range(x.shape[2]) for column in range(x.shape[3])]
        for row, column in places:
            query = embed(block.theta, pixels[image, :, row, column])
            weights, values = [], []
            for other_row, other_column in places:
                other = pixels[image, :, other_row, other_column]
                weights.append(math.exp(query @ embed(block.phi, other) / math.sqrt(len(query))))
                values.append(embed(block.g, other))
            y = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            seen[image, :, row, column] += embed(block.out, y)
    return seen


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 4, 1, 1), (1, 4, 1, 7)])
def test_equals_a_loop(shape: tuple[int, ...]) -> None:
    block, x = awake(shape[1]), torch.randn(*shape)
    expected = by_hand(block, x)
    assert np.abs(expected - x.numpy()).max() > 0.1  # it does something
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_differences() -> None:
    block, x = awake(4).double(), torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_starts_as_the_identity_and_learns() -> None:
    torch.manual_seed(0)
    block, x = NonLocal(16), torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves `out` alone: the others' gradients pass through its zeros
        optimiser.zero_grad()
        (block(x) * x.roll(1, 2)).sum().backward()
        optimiser.step()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters() if p is not block.phi.bias)  # softmax drops that one
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize("body", ["resnet18", "resnet50", "resnext152_32x8d"])
def test_stands_before_the_last_block_of_the_fourth_stage(body: BodyName) -> None:
    with torch.device("meta"):
        names = [name for name, _ in ResNet(TrunkConfig(body, non_local=True)).stage(3).named_children()]
    last = SHAPES[body].blocks[2] - 1
    assert names == [*(str(i) for i in range(last)), "non_local", str(last)]


def test_pretrained_weights_keep_their_meaning() -> None:
    torch.manual_seed(0)
    with_block = ResNet(TrunkConfig("resnet18", non_local=True)).eval()
    weights = torchvision.models.resnet18(weights=None).state_dict()
    report = load_matching(with_block, weights)
    assert {name.rsplit(".", 2)[0] for name in report.missing} == {"layer3.non_local"}
    plain = ResNet(TrunkConfig("resnet18")).eval()
    load_matching(plain, weights)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(with_block(images), plain(images), strict=True):
            assert torch.equal(one, other)


def test_the_rest_of_the_body_starts_with_the_same_weights() -> None:
    torch.manual_seed(0)
    plain = ResNet(TrunkConfig("resnet18")).state_dict()
    torch.manual_seed(0)
    other = ResNet(TrunkConfig("resnet18", non_local=True)).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in plain.items())


def test_freezing_the_fourth_stage_freezes_it() -> None:
    with torch.device("meta"):
        body = ResNet(TrunkConfig("resnet18", non_local=True, freeze_stages=4))
    assert not any(p.requires_grad for p in body.stage(3).parameters())


def test_other_bodies_have_no_place_for_it() -> None:
    with pytest.raises(ValueError, match="non_local must be false with body convnext_tiny, got true"):
        TrunkConfig("convnext_tiny", non_local=True)
