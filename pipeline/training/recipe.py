"""How to fine-tune on so many images: a few rules, each with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config import OptimConfig, TrainConfig


class Rule(NamedTuple):
    """For data sets of fewer images than `below` (None: of any size)."""

    below: int | None
    epochs: int
    lr: float  # for a batch of 16 images
    body: str  # "frozen", "frozen at first", "trains"
    why: str


RULES = (
    Rule(100, 60, 0.005, "frozen", "so few images would spoil what the body has learnt, and each is needed often"),
    Rule(1000, 30, 0.01, "frozen at first", "heads that start anew must not disturb the body; then all of it adapts"),
    Rule(10000, 12, 0.02, "trains", "as the paper goes from COCO to Cityscapes: 11 epochs at the full learning rate"),
    Rule(None, 12, 0.02, "trains", "enough for the 1x schedule of COCO"),
)
LEAST_STEPS, MOST_STEPS = 200, 90000
RARE = 0.01  # share of images below which a class is repeated


@dataclass(frozen=True)
class Recipe:
    """What is set, and why."""

    train: TrainConfig
    optim: OptimConfig
    repeat_threshold: float | None
    reasons: tuple[str, ...]


def choose_recipe(images_of_class: Sequence[int], images: int, instances: int) -> Recipe:
    """The schedule for data of so many training images.

    Args:
        images_of_class: of each class, images that it is in.
        images: with at least one instance.
        instances: in all.
    """
    rule = next(rule for rule in RULES if rule.below is None or images < rule.below)
    batch = 8 if images >= 64 else 4 if images >= 8 else 2
    wanted = rule.epochs * images / batch
    steps = round(min(max(wanted, LEAST_STEPS), MOST_STEPS))
    warmup = min(500, max(20, steps // 10))
    span = "at least 0" if rule is RULES[0] else f"from {RULES[RULES.index(rule) - 1].below}"
    size = f"{images} images to train on ({span}{'' if rule.below is None else f', below {rule.below}'})"
    reasons = [f"{size}: {rule.epochs} epochs, lr {rule.lr:g} for 16 images, the body {rule.body}: {rule.why}"]
    if steps != round(wanted):
        limit = "at least" if steps > wanted else "at most"
        reasons.append(f"{steps} steps rather than {round(wanted)}: it is {limit} {steps}, whatever the data's size")
    reasons.append(f"{instances / max(images, 1):.1f} instances an image; batches of {batch} images, {steps} steps")
    freeze: dict[str, int | None] = {}
    if rule.body == "frozen":
        freeze = {"trunk.body": None}
    elif rule.body == "frozen at first":
        freeze = {"trunk.body": warmup}
    rare = sum(0 < count < RARE * images for count in images_of_class)
    if rare:
        reasons.append(f"{rare} classes are in fewer than {RARE:.0%} of the images: their images are repeated")
    optim = OptimConfig(
        lr=rule.lr, lr_batch_images=16, warmup_steps=warmup, milestones=(max(1, steps * 3 // 4),), freeze=freeze
    )
    every = min(2500, max(50, steps // 4))
    train = TrainConfig(steps=steps, batch_images=batch, checkpoint_every_steps=every)
    return Recipe(train, optim, RARE if rare else None, tuple(reasons))
