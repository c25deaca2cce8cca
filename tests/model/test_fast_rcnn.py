"""Fast R-CNN: with the RPN's own proposals it is the model that has the RPN, to the last bit."""

import dataclasses

import pytest
import torch
from test_mask_rcnn import noise_for, spread
from tiny_model import TINY, scene, with_proposals

from model.build import build_model
from model.heads.rpn import RPN
from model.mask_rcnn import MaskRCNN, SamplingNoise
from model.types import Batch, Proposals

FAST = dataclasses.replace(TINY, rpn=None)


def pair() -> tuple[MaskRCNN, MaskRCNN]:
    """The same weights with an RPN and without."""
    torch.manual_seed(0)
    whole, fast = spread(build_model(TINY)), build_model(FAST)
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("rpn.")}
    assert len(state) < len(whole.state_dict())
    fast.load_state_dict(state)  # strict: nothing is missing and nothing is left
    return whole, fast


def proposed(model: MaskRCNN, batch: Batch) -> Proposals:
    assert isinstance(model.rpn, RPN)
    with torch.no_grad():
        return model.rpn.look(model.trunk(model.normalise(batch.images, batch.sizes)), (96, 128), batch).proposals


@pytest.mark.parametrize("counts", [[3, 1], [0, 0]])
def test_losses_are_those_of_the_heads(counts: list[int]) -> None:
    whole, fast = pair()
    batch = scene(counts)
    noise = noise_for(batch)
    expected = whole.train()(batch, noise)
    given = dataclasses.replace(batch, proposals=proposed(whole, batch))
    losses = fast.train()(given, SamplingNoise(noise.anchors[:, :0], noise.rois))
    assert list(losses) == ["box/class", "box/box", "mask/mask"]
    assert all(torch.equal(loss, expected[name]) for name, loss in losses.items())


def test_detections_are_those_of_the_whole_model() -> None:
    whole, fast = pair()
    batch = dataclasses.replace(scene([2, 1]), targets=None)
    expected = whole.eval().predict(batch)
    found = fast.eval().predict(dataclasses.replace(batch, proposals=proposed(whole, batch)))
    for one, other in zip(found, expected, strict=True):
        assert len(one.boxes) > 10 and torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        assert one.masks is not None and other.masks is not None and torch.equal(one.masks, other.masks)


def test_slots_that_are_not_real_change_nothing() -> None:
    _, fast = pair()
    fast.eval()
    batch = with_proposals(scene([2, 1]))
    assert batch.proposals is not None and not batch.proposals.real.all()
    boxes, scores, real = batch.proposals
    junk = Proposals(torch.where(real[..., None], boxes, torch.tensor([0.0, 0.0, 60.0, 60.0])), scores, real)
    for one, other in zip(fast.predict(batch), fast.predict(dataclasses.replace(batch, proposals=junk)), strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
    none = dataclasses.replace(batch, proposals=Proposals(boxes, scores, torch.zeros_like(real)))
    assert [len(found.boxes) for found in fast.predict(none)] == [0, 0]
    losses = fast.train()(none)  # the ground truth itself still trains
    assert all(loss.isfinite() for loss in losses.values()) and losses["box/class"] > 0


def test_batches_without_proposals_are_refused() -> None:
    _, fast = pair()
    for act in (fast.train(), fast.eval().predict):
        with pytest.raises(ValueError, match=r"needs batch\.proposals, got None; shard with --proposals, or set model"):
            act(scene([1]))


def test_proposals_move_with_their_batch() -> None:
    batch = with_proposals(scene([1]))
    moved = batch.to("meta")
    assert moved.proposals is not None and {t.device.type for t in moved.proposals} == {"meta"}
    assert scene([1]).to("meta").proposals is None


def test_without_rpn_and_without_boxes_nothing_is_left() -> None:
    with pytest.raises(ValueError, match="box must be a section with rpn: null"):
        dataclasses.replace(FAST, box=None, mask=None)
