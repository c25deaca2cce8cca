"""What `maskrcnn transfer` shows before anything starts: which class comes from where, and what is new."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jobs.console import err, out
from pipeline.training.transfer import Transfer

_LONG = 40  # classes that are all listed; of more, those that need a look
_SHOWN = 10
_HOW = {"name": "same name", "synonym": "synonym", "map": "as the map says", "new": "new"}


def show_transfer(found: Transfer) -> None:
    """Print it."""
    table = Table("class", "from", "how", box=SIMPLE_HEAD, title="classes", title_justify="left", title_style="bold")
    matches = found.matches
    plain = [match for match in matches if match.how == "name" and match.source is not None]
    for match in matches:
        source = "-" if match.source is None else found.source_names[match.source - 1]
        if len(matches) <= _LONG or match.how != "name":
            table.add_row(match.name, source, _HOW[match.how])
    out.print(table)
    if len(matches) > _LONG and plain:
        _say("", f"and {len(plain)} classes of the same name")
    _say("transfer", str(found))
    if found.class_layers:
        _say("by class", ", ".join(found.class_layers))
    new = [match.name for match in matches if match.source is None]
    if new:
        _say("new", f"{len(new)} classes: {_few(new)}")
    for name, why in list(found.tensors.new.items())[:_SHOWN]:
        _say("new", f"{name}: {why}")
    if len(found.tensors.new) > _SHOWN:
        _say("", f"and {len(found.tensors.new) - _SHOWN} more tensors")
    if found.unused:
        _say("not used", f"{len(found.unused)} classes of the checkpoint: {_few(found.unused)}")
    for note in found.notes:
        err.print(f"warning: {note}; its layers have to learn that", soft_wrap=True, highlight=False, markup=False)
    if not found.shared:
        err.print(
            f"warning: none of the {len(matches)} classes is one of {found.checkpoint}'s: the layers that end in "
            "classes start anew, the rest is transferred; where names differ, say which are the same: "
            "init.transfer.classes={OURS: THEIRS}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _say(title: str, text: str) -> None:
    out.print(f"{title:<12}{text}", soft_wrap=True, highlight=False, markup=False)
