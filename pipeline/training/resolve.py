"""A configuration made whole from its data, or why the two do not go together. No weights are loaded."""

from dataclasses import replace
from pathlib import Path

import torch

from model.build import build_model
from pipeline.config import RunConfig
from pipeline.configure import ConfigError
from pipeline.data.mixture import class_difference, join_manifests, locations
from pipeline.data.plan import plan_of
from pipeline.data.proposals import require_proposals
from pipeline.data.shards import Manifest, load_manifest
from pipeline.data.source import Keypoints
from pipeline.data.storage import Location, Storage
from pipeline.evaluation.evaluate import choose_protocol, tasks_of
from pipeline.evaluation.protocols import CITYSCAPES, PROTOCOLS
from pipeline.training.freezing import check_names


def resolve(config: RunConfig) -> tuple[RunConfig, Manifest]:
    """With the classes of its data and absolute paths; and the manifest of data.train.

    Raises:
        ConfigError, DataError: what would fail later.
    """
    if config.data.train is None or config.data.val is None:
        missing = "data.train" if config.data.train is None else "data.val"
        raise ConfigError(f"{missing} is not set; give a directory that `maskrcnn shard` wrote: {missing}=DIRECTORY")
    places = tuple(Storage.at(place).uri for place in locations(config.data.train))
    train, val = places[0] if isinstance(config.data.train, str) else places, Storage.at(config.data.val)
    manifest, held_out = join_manifests(train), load_manifest(val)
    if manifest.class_names != held_out.class_names:
        raise ConfigError(
            "data.train and data.val have different classes: "
            f"{class_difference(manifest.class_names, held_out.class_names, ('train', 'val'))}; "
            "shard both from annotation files with the same categories"
        )
    classes = len(manifest.class_names)
    if config.model.classes not in (None, classes):
        raise ConfigError(
            f"model.classes is {config.model.classes}, {places[0]} has {classes}; "
            "leave it null to take the data's number"
        )
    keypoint = config.model.keypoint
    if keypoint is not None:
        keypoint = replace(keypoint, count=_keypoint_count(keypoint.count, manifest.keypoints, places[0]))
        _keypoint_count(keypoint.count, held_out.keypoints, str(val))
    strangers = [name for name in config.evaluate.categories or () if name not in held_out.class_names]
    if strangers:
        raise ConfigError(
            f"evaluate.categories names {', '.join(strangers)}, which {val} does not have; it has "
            f"{', '.join(held_out.class_names[:10])}{', ...' if len(held_out.class_names) > 10 else ''}"
        )
    if config.model.rpn is None:
        require_proposals([*places, val])
    _check_metric(config, str(config.data.val))
    weights = None if config.init.weights is None else str(Path(config.init.weights).absolute())
    config = replace(
        config,
        model=replace(config.model, classes=classes, keypoint=keypoint),
        data=replace(config.data, train=train, val=val.uri),
        init=replace(config.init, weights=weights),
    )
    plan_of(config)  # there is something to train on
    if config.optim.freeze or config.optim.lr_factors or config.optim.layer_decay != 1 or config.optim.probe_steps:
        with torch.device("meta"):
            check_names(build_model(config.model), config.optim, config.model, config.train.steps)
    return config, manifest


def _check_metric(config: RunConfig, val: str) -> None:
    """What says which checkpoint is best must be among what is measured."""
    during = config.evaluate.during_training
    if during is None or during.metric is None:
        return
    known = metrics_of(config, val)
    if during.metric not in known:
        raise ConfigError(f"evaluate.during_training.metric must be one of {', '.join(known)}; got {during.metric}")


def metrics_of(config: RunConfig, val: Location) -> list[str]:
    """What is measured of a configuration's model on shards: mask/AP, ..."""
    style = choose_protocol(config, val)
    protocols = [CITYSCAPES] if style == "cityscapes" else [PROTOCOLS[style][task] for task in tasks_of(config.model)]
    return [f"{protocol.task}/{stat.name}" for protocol in protocols for stat in protocol.stats]


def _keypoint_count(wanted: int | None, keypoints: Keypoints | None, place: str) -> int:
    if keypoints is None:
        raise ConfigError(
            f"model.keypoint is set, but {place} has no keypoints; shard from annotations with keypoints, or set "
            "model.keypoint=null"
        )
    count = len(keypoints.names)
    if wanted not in (None, count):
        raise ConfigError(
            f"model.keypoint.count is {wanted}, {place} has {count}; leave it null to take the data's number"
        )
    return count
