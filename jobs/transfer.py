"""`maskrcnn transfer CONFIG --from CHECKPOINT`: train on other classes than the checkpoint's, which are mapped by name.

It is `maskrcnn train` with init.weights and init.transfer set, so that the run's config.yaml says all of it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.train import train_config
from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.configure import ConfigError, apply_overrides, load_config
from pipeline.training.checkpoint import read_meta
from pipeline.yaml_core import YamlError, read


def transfer_config(
    config_path: Path, checkpoint: Path, overrides: Sequence[str], class_map: Path | None, network: str
) -> RunConfig:
    """CONFIG that starts from a checkpoint.

    Args:
        config_path: of the recipe.
        checkpoint: directory.
        overrides: KEY=VALUE, which go before everything else.
        class_map: YAML file of classes of the data -> classes of the checkpoint, or null for one that is new.
        network: "config" or "checkpoint": whose model section counts.

    Raises:
        ConfigError, CheckpointError: one of them cannot be read.
    """
    ours = [f"init.weights={json.dumps(str(checkpoint))}", "init.transfer={}"]
    if class_map is not None:
        ours.append(f"init.transfer.classes={json.dumps(read_class_map(class_map))}")
    config = load_config(config_path, ours)
    if network == "checkpoint":
        config = replace(config, model=network_of(checkpoint))
    return apply_overrides(config, overrides)


def network_of(checkpoint: Path) -> ModelConfig:
    """A checkpoint's model section, for data with classes and keypoints of its own. Raises CheckpointError."""
    model = read_meta(checkpoint)[0].model
    keypoint = None if model.keypoint is None else replace(model.keypoint, count=None)
    return replace(model, classes=None, keypoint=keypoint)


def read_class_map(path: Path) -> dict[str, str | None]:
    """Raises ConfigError where the file is no mapping of names."""
    try:
        content = read(path).value
    except YamlError as error:
        raise ConfigError(f"--map {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(one is None or isinstance(one, str) for one in content.values()):
        raise ConfigError(
            f"--map {path} must map names to names, a line each, such as `rider: person` or `rider: null`"
        )
    return content


def transfer(
    config_path: Path, checkpoint: Path, overrides: Sequence[str], class_map: Path | None, network: str
) -> None:
    """Run it."""
    train_config(transfer_config(config_path, checkpoint, overrides, class_map, network), config_path.stem)
