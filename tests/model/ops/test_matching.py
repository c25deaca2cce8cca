import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from model.ops.matching import match


def random_iou(seed: int, ties: bool, images: int = 3, slots: int = 6, candidates: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    iou = torch.rand(images, slots, candidates, generator=generator) ** 2
    if ties:
        iou = (iou * 10).round() / 10  # many candidates share a best value, and sit on the thresholds
    iou[..., 0] = 0.05  # no ground truth without any overlap: see below
    valid = torch.rand(images, slots, generator=generator) < 0.6
    valid[:, slots // 2] = True
    return iou, valid


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5), (0.95, 0.9)])
def test_equals_torchvision(thresholds: tuple[float, float], low_quality: bool, ties: bool) -> None:
    foreground, background = thresholds
    matcher = Matcher(foreground, background, allow_low_quality_matches=low_quality)
    for seed in range(5):
        iou, valid = random_iou(seed, ties)
        index, label = match(iou, valid, foreground, background, low_quality)
        assert index.shape == label.shape == (3, 60)
        assert index.dtype == torch.int64 and label.dtype == torch.int8
        for image in range(3):
            real = valid[image].nonzero()[:, 0]
            theirs = matcher(iou[image, real])
            expected = torch.where(theirs >= 0, 1, torch.where(theirs == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
            assert torch.equal(label[image].long(), expected)
            positive = theirs >= 0
            assert torch.equal(index[image][positive], real[theirs[positive]])


def naive(iou: list[list[float]], foreground: float, background: float, low_quality: bool) -> list[tuple[int, int]]:
    """(truth, label) of each candidate of one image, from IoUs [truths][candidates]; Faster R-CNN 3.1.2 in loops."""
    labels = []
    for candidate in range(len(iou[0])):
        column = [row[candidate] for row in iou]
        best = max(column)
        label = 1 if best >= foreground else (0 if best < background else -1)
        if low_quality and any(row[candidate] == max(row) > 0 for row in iou):
            label = 1
        labels.append((column.index(best), label))
    return labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("low_quality", [False, True])
def test_equals_a_loop_on_thousands_of_images(low_quality: bool, ties: bool) -> None:
    iou, valid = random_iou(4, ties, images=1000, slots=5, candidates=12)
    iou[::7] = iou[::7] * (torch.rand(iou[::7].shape, generator=torch.Generator().manual_seed(1)) < 0.3)  # far apart
    index, label = match(iou, valid, 0.7, 0.3, low_quality)
    foreground, background = torch.tensor([0.7, 0.3]).tolist()  # float32's, as the IoUs are
    for image in range(1000):
        real = valid[image].nonzero()[:, 0].tolist()
        expected = naive(iou[image, real].tolist(), foreground, background, low_quality)
        assert [one for _, one in expected] == label[image].tolist()
        assert [real[truth] for truth, _ in expected] == index[image].tolist()


def test_padding_changes_nothing() -> None:
    iou, valid = random_iou(9, ties=True)
    index, label = match(iou, valid, 0.7, 0.3, True)
    more_iou = torch.cat([iou, torch.ones(3, 4, 60)], 1)
    more_index, more_label = match(more_iou, torch.cat([valid, torch.zeros(3, 4, dtype=torch.bool)], 1), 0.7, 0.3, True)
    assert torch.equal(index, more_index) and torch.equal(label, more_label)


def test_every_touched_truth_gets_its_best_candidates() -> None:
    iou = torch.tensor([[[0.2, 0.1, 0.2, 0.0], [0.0, 0.6, 0.0, 0.0]]])
    _, label = match(iou, torch.ones(1, 2, dtype=torch.bool), 0.7, 0.3, True)
    assert label.tolist() == [[1, 1, 1, 0]]  # both that tie, and one between the thresholds
    _, label = match(iou, torch.ones(1, 2, dtype=torch.bool), 0.7, 0.3, False)
    assert label.tolist() == [[0, -1, 0, 0]]


def test_truth_that_nothing_touches_promotes_nothing() -> None:
    iou = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.8, 0.4]]])
    index, label = match(iou, torch.ones(1, 2, dtype=torch.bool), 0.7, 0.3, True)
    assert label.tolist() == [[0, 1, -1]]
    assert index[0, 1:].tolist() == [1, 1]


@pytest.mark.parametrize("threshold", [0.5, 0.0])
@pytest.mark.parametrize("low_quality", [False, True])
def test_no_ground_truth(low_quality: bool, threshold: float) -> None:
    _, label = match(torch.rand(2, 3, 10), torch.zeros(2, 3, dtype=torch.bool), threshold, threshold, low_quality)
    assert not label.any()
