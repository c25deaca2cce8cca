"""The words of a job before they are sent: what is certain to fail on the cluster, or to get lost there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from pipeline.config import RunConfig
from pipeline.configure import load_config
from pipeline.errors import UserError
from pipeline.search.settings import load_search
from pipeline.submission.package import Package

_CONFIGS = {"train": "config", "transfer": "config", "tune": "space"}  # verb -> its parameter that is a file of ours
_PLACES = ("runs", "out_dir", "out_path")  # parameters that say where results go


def check_verb(words: Sequence[str], package: Package | None) -> list[str]:
    """What may get lost, in words.

    Args:
        words: of the command line after `maskrcnn`.
        package: what goes along; None: an image has all, and its files are not at hand.

    Raises:
        UserError, ConfigError: it cannot work there. The error of the command line itself, for a verb or an option
            that there is not.
    """
    if words[0] in ("submit", "jobs", "ui"):
        raise UserError(
            f"a job cannot be `maskrcnn {words[0]}`; give what the cluster is to do, such as -- train CONFIG"
        )
    if any(word.startswith("cluster.address=") for word in words):
        raise UserError("cluster.address is that of --address in a job, which Ray tells it; leave cluster.address out")
    if words[0].startswith("-") or {"-h", "--help"} & set(words):
        return []
    verb, values = _parse(words)
    overrides = values.get("overrides") or []
    file = values.get(_CONFIGS.get(verb, ""))
    if file is None or package is None:
        return _lost({name: values.get(name) for name in _PLACES})
    if file.as_posix() not in package.sizes_bytes:
        raise UserError(
            f"{file} is not among the files that go to the cluster; give a path below {package.root}, relative to it, "
            "that .gitignore does not name"
        )
    place = package.root / file
    config: RunConfig = load_search(place, overrides).config if verb == "tune" else load_config(place, overrides)
    if config.cluster.address not in (None, "auto"):
        raise UserError(
            f"{file} sets cluster.address={config.cluster.address}; a job has that of --address: set it to null"
        )
    return _lost({"cluster.runs_dir": config.cluster.runs_dir})


def _parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb, with its group, and the values of its parameters."""
    from jobs.main import app  # which has this command too

    command: Any = typer.main.get_command(app)
    context, verb, rest = None, ["maskrcnn"], list(words)
    while hasattr(command, "commands"):
        if not rest:
            raise UserError(f"`{' '.join(verb)}` wants one of {', '.join(command.commands)} after it")
        context = command.make_context(verb[-1], [], parent=context, resilient_parsing=True)  # a group alone is help
        context.resilient_parsing = False
        name, command, rest = command.resolve_command(context, rest)
        verb.append(name)
    return " ".join(verb[1:]), command.make_context(verb[-1], rest, parent=context).params


def _lost(places: Mapping[str, Any]) -> list[str]:
    """Those in the job's own directory, which the cluster deletes."""
    found = []
    for name, value in places.items():
        if value is None or "://" in str(value) or Path(value).is_absolute():
            continue
        option = name if "." in name else f"--{name.partition('_')[0]} "
        equals = "=" if "." in name else ""
        found.append(
            f"{option}{equals}{value} is in the job's own directory, which the cluster deletes; give "
            f"{option}{equals}/PATH that every node sees"
        )
    return found
