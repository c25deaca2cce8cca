"""With torchvision's weights, conventions, input and samples: its losses, gradients and detections, to round-off."""

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision_pair import ALL, CLASSES, Pair, as_theirs, both_losses, gradient_errors, in_float64, make_pair, scene

from model.ops.masks import paste_full
from model.weights.torchvision import from_torchvision, rows_of_classes, to_torchvision


@pytest.fixture(scope="module", params=ALL)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param)


def test_losses_and_gradients_in_float64(pair: Pair) -> None:
    """That both compute the same: float32 would hide behind round-off what is small, such as a norm's statistics."""
    heads = pair.config.mask is not None or pair.config.keypoint is not None
    with in_float64(pair):
        mine, reference = both_losses(pair, [0, 300 if heads else 3], seed=3)
        for name, loss in reference.items():  # torchvision's own targets stay float32
            torch.testing.assert_close(mine[name], loss, rtol=2e-7, atol=1e-9)
            assert loss > 0
        errors = gradient_errors(pair, mine, reference)
        assert max(errors.values()) < 2e-6, max(errors, key=errors.__getitem__)
        theirs = from_torchvision(pair.theirs.state_dict(), CLASSES)
        for name, value in pair.ours.state_dict().items():  # running statistics moved alike
            torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counts", [[0, 0], [2, 1], [1, 300]], ids=str)
def test_losses(pair: Pair, counts: list[int]) -> None:
    with torch.no_grad():
        mine, reference = both_losses(pair.begin(), counts, seed=len(counts) + sum(counts))
    for name, loss in reference.items():
        torch.testing.assert_close(mine[name], loss, rtol=1e-5, atol=1e-6)
        assert (loss > 0) == (max(counts) > 0 or name in ("rpn/objectness", "box/class"))


def test_detections(pair: Pair) -> None:
    ours, theirs = pair.begin().ours.eval(), pair.theirs.eval()
    batch, _ = scene([2, 2], seed=3)
    with torch.no_grad():
        reference = theirs(as_theirs(batch))
    for mine, other in zip(ours.predict(batch), reference, strict=True):
        assert len(mine.boxes) > 5
        assert torch.equal(mine.classes, other["labels"])
        torch.testing.assert_close(mine.scores, other["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.boxes, other["boxes"], rtol=1e-4, atol=1e-3)
        assert (mine.masks is None) == ("masks" not in other)
        assert (mine.keypoints is None) == ("keypoints" not in other)
        if mine.masks is not None:
            pasted = paste_full(mine.masks, mine.boxes, mine.size, "integer", 0.5)
            assert (pasted != (other["masks"][:, 0] > 0.5)).float().mean() < 1e-4
            soft = paste_masks_in_image(mine.masks[:, None], mine.boxes, mine.size)
            torch.testing.assert_close(soft, other["masks"], rtol=1e-3, atol=1e-3)
        if mine.keypoints is not None:
            torch.testing.assert_close(mine.keypoints[..., :2], other["keypoints"][..., :2], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(mine.keypoints[..., 2], other["keypoints_scores"], rtol=1e-4, atol=1e-4)


def test_weights_go_back(pair: Pair) -> None:
    rows, count = rows_of_classes(CLASSES, None)
    ours, theirs = pair.begin().ours.state_dict(), pair.theirs.state_dict()
    back = to_torchvision(ours, rows, count)
    assert all(torch.equal(value, ours[name]) for name, value in from_torchvision(back, CLASSES).items())
    if pair.config.trunk.norm == "bn":
        assert back.keys() == theirs.keys()
    for name, value in back.items():
        layer = name.split(".")[-2]
        made_up = {"bbox_pred": 4, "mask_fcn_logits": 1}.get(layer, 0) if name.startswith("roi_heads") else 0
        if made_up:  # the background's, which torchvision never reads
            assert not value[:made_up].any() and torch.equal(value[made_up:], theirs[name][made_up:])
        else:
            assert torch.equal(value, theirs[name]), name
    pair.theirs.load_state_dict(back, strict=True)
