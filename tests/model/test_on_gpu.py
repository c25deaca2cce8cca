"""On a GPU the same numbers come out as on the CPU."""

import dataclasses

import pytest
import torch

from model.build import build_model
from model.config import MaskConfig, ModelConfig, RoIConfig, RPNConfig, TrunkConfig
from model.mask_rcnn import SamplingNoise
from model.ops.nms import nms_keep
from model.types import Batch, Targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_nms_of_many_groups_is_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(12, 300, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + torch.rand(12, 300, 2, generator=generator) * 80], -1)
    scores = torch.rand(12, 300, generator=generator)
    valid = torch.rand(12, 300, generator=generator) > 0.2
    expected = nms_keep(boxes, scores, valid, 0.5)
    assert torch.equal(nms_keep(boxes.cuda(), scores.cuda(), valid.cuda(), 0.5).cpu(), expected)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_losses_and_gradients_are_the_same(sampling_ratio: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        classes=5,
        trunk=TrunkConfig(body="resnet18", norm="gn", freeze_stages=0, fpn_channels=64),
        rpn=RPNConfig(pre_nms_train=200, post_nms_train=100),
        roi=RoIConfig(batch_per_image=32, sampling_ratio=sampling_ratio),
        mask=MaskConfig(channels=32),
    )
    model = build_model(config).train()
    corner = torch.rand(2, 8, 2) * 60
    targets = Targets(
        torch.cat([corner, corner + 20 + torch.rand(2, 8, 2) * 40], -1),
        torch.randint(1, 6, (2, 8)),
        torch.tensor([[True] * 3 + [False] * 5, [True] * 8]),
        torch.randint(0, 2, (2, 8, 112, 112), dtype=torch.uint8),
    )
    sizes = torch.tensor([[128, 128], [100, 120]])
    batch = Batch(torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8), sizes, sizes, torch.arange(2), targets)
    anchors = sum(3 * side * side for side in (32, 16, 8, 4, 2))
    noise = SamplingNoise(torch.rand(2, anchors), torch.rand(2, 108))
    expected = model(batch, noise)
    torch.stack(list(expected.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    on_gpu = SamplingNoise(*(getattr(noise, field.name).cuda() for field in dataclasses.fields(noise)))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        losses = model(batch.to("cuda"), on_gpu)
        torch.stack(list(losses.values())).sum().backward()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.cpu(), expected[name], rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        reference = gradients[name]
        assert parameter.grad is not None and reference is not None, name
        assert (parameter.grad.cpu() - reference).abs().max() <= 2e-2 * reference.abs().max() + 1e-6, name


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_the_loss_never_waits_for_the_device(sampling_ratio: int) -> None:
    config = ModelConfig(
        classes=5,
        trunk=TrunkConfig(body="resnet18", norm="gn", freeze_stages=0, fpn_channels=64),
        rpn=RPNConfig(pre_nms_train=200, post_nms_train=100),
        roi=RoIConfig(batch_per_image=32, sampling_ratio=sampling_ratio),
        mask=MaskConfig(channels=32),
    )
    model = build_model(config).train().cuda()
    corner = torch.rand(2, 8, 2) * 60
    targets = Targets(
        torch.cat([corner, corner + 20 + torch.rand(2, 8, 2) * 40], -1),
        torch.randint(1, 6, (2, 8)),
        torch.tensor([[True] * 3 + [False] * 5, [True] * 8]),
        torch.randint(0, 2, (2, 8, 112, 112), dtype=torch.uint8),
    )
    sizes = torch.tensor([[128, 128], [100, 120]])
    images = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    batch = Batch(images, sizes, sizes, torch.arange(2), targets).to("cuda")
    model(batch)  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for precision in (torch.float32, torch.bfloat16):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
                losses = model(batch)
            torch.stack(list(losses.values())).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
