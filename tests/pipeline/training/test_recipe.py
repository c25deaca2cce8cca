"""What is chosen for data of which size."""

import pytest

from pipeline.training.recipe import LEAST_STEPS, MOST_STEPS, choose_recipe


@pytest.mark.parametrize(
    ("images", "batch", "steps", "lr", "freeze"),
    [
        (3, 2, LEAST_STEPS, 0.005, {"trunk.body": None}),
        (63, 4, 945, 0.005, {"trunk.body": None}),
        (99, 8, 742, 0.005, {"trunk.body": None}),
        (100, 8, 375, 0.01, {"trunk.body": 37}),
        (999, 8, 3746, 0.01, {"trunk.body": 374}),
        (1000, 8, 1500, 0.02, {}),
        (2975, 8, 4462, 0.02, {}),  # Cityscapes: the paper has 4000 steps of 8
        (118000, 8, MOST_STEPS, 0.02, {}),
    ],
)
def test_the_rules(images: int, batch: int, steps: int, lr: float, freeze: dict[str, int | None]) -> None:
    found = choose_recipe([images] * 3, images, images * 5)
    assert (found.train.batch_images, found.train.steps) == (batch, steps)
    assert (found.optim.lr, found.optim.lr_batch_images, found.optim.freeze) == (lr, 16, freeze)
    assert 0 < found.optim.warmup_steps < found.optim.milestones[0] < steps
    assert found.train.checkpoint_every_steps <= steps
    assert found.repeat_threshold is None
    told = "\n".join(found.reasons)
    assert f"{images} images to train on" in told and f"{steps} steps" in told and "5.0 instances an image" in told


def test_limits_are_told() -> None:
    assert any("200 steps rather than 90" in reason for reason in choose_recipe([3], 3, 3).reasons)
    assert any("90000 steps rather than 177000" in reason for reason in choose_recipe([9], 118000, 9).reasons)


def test_rare_classes_are_repeated() -> None:
    found = choose_recipe([1000, 9, 10, 0, 3], 1000, 2000)
    assert found.repeat_threshold == 0.01
    assert any(reason.startswith("2 classes are in fewer than 1%") for reason in found.reasons)
