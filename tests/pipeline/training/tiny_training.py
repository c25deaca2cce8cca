"""The smallest Mask R-CNN that has every part."""

import functools
from pathlib import Path

import torch

from model.build import build_model
from model.config import AnchorConfig, BoxConfig, MaskConfig, ModelConfig, RoIConfig, RPNConfig, TrunkConfig
from model.mask_rcnn import MaskRCNN
from pipeline.config import RunConfig, TrainConfig
from pipeline.training.checkpoint import Meta, save_checkpoint
from pipeline.training.optim import make_sgd, set_lr

CLASSES = 8  # of the generated shapes


def tiny_config(classes: int | None = CLASSES) -> ModelConfig:
    """Its ResNet is frozen, so that no momentum of it has to be written."""
    return ModelConfig(
        classes=classes,
        trunk=TrunkConfig(body="resnet18", norm="bn", freeze_stages=5, fpn_channels=32),
        rpn=RPNConfig(
            anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 96.0)),
            batch_per_image=32,
            pre_nms_train=50,
            pre_nms_test=50,
            post_nms_train=30,
            post_nms_test=30,
        ),
        roi=RoIConfig(batch_per_image=16, sampling_ratio=2),
        box=BoxConfig(hidden=32, layers=1, detections_per_image=20),
        mask=MaskConfig(channels=16, convs=1),
    )


def tiny_run(**train: object) -> RunConfig:
    return RunConfig(model=tiny_config(), train=TrainConfig(**train))  # type: ignore[arg-type]


META = Meta(
    step=7,
    class_names=tuple("abcdefgh"),
    category_ids=(1, 2, 3, 5, 8, 13, 21, 34),
    dataset_fingerprint="f" * 64,
    run_name="tiny",
    mlflow_run_id="0123",
    versions={"torch": torch.__version__},
    keypoint_flip=(0, 2, 1),
)


def tiny_model(seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    return build_model(tiny_config())


@functools.cache
def untouched_model(seed: int) -> MaskRCNN:
    """The same as `tiny_model`, made once: for tests that only read it."""
    return tiny_model(seed)


def stepped(model: MaskRCNN, config: RunConfig) -> torch.optim.SGD:
    """An optimiser with momentum in it. The model does not move: the learning rate is 0."""
    optimiser = make_sgd(model, config.optim)
    set_lr(optimiser, 0.0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    return optimiser


def write_tiny(directory: Path, meta: Meta = META, seed: int = 0) -> MaskRCNN:
    """A checkpoint at `directory`; returns its model."""
    model, config = untouched_model(seed), tiny_run(name="tiny", precision="float32")
    save_checkpoint(directory, model, stepped(model, config), config, meta)
    return model
