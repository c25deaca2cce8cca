from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.config import RoIConfig, TrunkConfig
from model.trunks.fpn import FPN


def pair(depth: str, channels: int) -> tuple[FPN, FeaturePyramidNetwork]:
    torch.manual_seed(0)
    ours = FPN(TrunkConfig(depth, norm="gn", fpn_channels=channels), RoIConfig(sampling_ratio=2, aligned=False)).eval()
    theirs = FeaturePyramidNetwork(ours.body.channels, channels, LastLevelMaxPool())
    for index in range(4):
        for mine, block in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
            nn.init.normal_(mine[index].bias, std=0.1)
            block[index][0].load_state_dict(mine[index].state_dict())
    return ours, theirs


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
@pytest.mark.parametrize("shape", [(64, 96), (32, 32), (97, 131), (65, 33)])
def test_equals_torchvision(depth: str, shape: tuple[int, int]) -> None:
    ours, theirs = pair(depth, 24)
    images = torch.randn(2, 3, *shape)
    with torch.no_grad():
        pyramid = ours(images)
        expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(ours.body(images))))
    assert list(pyramid) == [2, 3, 4, 5, 6]
    for (level, mine), other in zip(pyramid.items(), expected.values(), strict=True):
        assert mine.shape == (2, 24, *(-(-side // 2**level) for side in shape))
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_crops_equal_torchvision() -> None:
    ours, _ = pair("resnet18", 8)
    with torch.no_grad():
        pyramid: dict[int, Tensor] = ours(torch.randn(2, 3, 512, 480))
        boxes = torch.tensor([[0.0, 0.0, 480.0, 512.0], [8.0, 9.0, 40.0, 60.0], [3.0, 3.0, 120.0, 130.0]])
        boxes = torch.cat([boxes, boxes.flip(0) * 0.9 + 7])
        crops = ours.crop(pyramid, boxes, torch.tensor([0, 0, 0, 1, 1, 1]), 7)
        pooler = MultiScaleRoIAlign(["2", "3", "4", "5"], 7, 2)
        features = {str(level): feature for level, feature in pyramid.items()}
        expected = pooler(features, [boxes[:3], boxes[3:]], [(512, 480)] * 2)
    torch.testing.assert_close(crops, expected, rtol=1e-4, atol=1e-4)


def test_initialisation() -> None:
    torch.manual_seed(0)
    fpn = FPN(TrunkConfig("resnet18", fpn_channels=128), RoIConfig())
    for conv in [*fpn.lateral, *fpn.output]:
        fan_in = conv.in_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.05)  # Caffe2's XavierFill
        assert conv.weight.abs().max() <= (3 / fan_in) ** 0.5
        assert not conv.bias.any()
