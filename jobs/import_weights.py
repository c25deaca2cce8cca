"""`maskrcnn import FILE --out CHECKPOINT`: a detector of torchvision as a checkpoint; no Ray."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jobs.console import out
from model.weights.loading import LoadReport
from pipeline.training.checkpoint import CheckpointError
from pipeline.training.zoo import Import, read_torchvision, write_import

_SHOWN = 10  # names that are listed before the rest is only counted
_PARTS: Mapping[str, str] = {"trunk.body": "body", "trunk": "pyramid", "rpn": "RPN", "box": "box head"}


def import_weights(path: Path, out_dir: Path, classes: str | None, overrides: Sequence[str]) -> None:
    """Show what of the file matched, what was left and what is missing; write the checkpoint if nothing is."""
    found = read_torchvision(path, None if classes is None else class_names(classes), overrides)
    out.print(load_table(found.report))
    for title, names in (
        ("left", found.report.left),
        ("missing", found.report.missing),
        ("other shape", found.report.mismatched),
    ):
        for name in names[:_SHOWN]:
            _say(title, name)
        if len(names) > _SHOWN:
            _say("", f"and {len(names) - _SHOWN} more")
    write_import(found, out_dir)
    _say("builder", f"torchvision's {found.builder}, body {found.config.model.trunk.body}")
    _say("classes", _classes(found))
    for note in found.notes:
        _say("note", note)
    _say("checkpoint", str(out_dir))
    _say("next", f"maskrcnn predict {out_dir} IMAGE_OR_DIR --out predictions")


def class_names(text: str) -> tuple[str, ...]:
    """Of --classes: a file with a name a line, or names with commas between them. Raises CheckpointError."""
    path = Path(text)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"--classes {text} cannot be read: {error}") from error
    elif path.suffix in (".txt", ".names") or "/" in text:
        raise CheckpointError(f"there is no file {text}; give --classes a file of a name a line, or names: cat,dog")
    else:
        lines = text.split(",")
    return tuple(line.strip() for line in lines if line.strip())


def load_table(report: LoadReport) -> Table:
    """How many tensors of each part of the network matched, were left, are missing or have another shape."""
    columns = {
        "matched": report.matched,
        "left": report.left,
        "missing": report.missing,
        "other shape": report.mismatched,
    }
    counts = {title: _count(names) for title, names in columns.items()}
    table = Table(box=SIMPLE_HEAD, title="tensors", title_justify="left", title_style="bold")
    table.add_column("part")
    for title in columns:
        table.add_column(title, justify="right")
    for part in dict.fromkeys(part for parts in counts.values() for part in parts):
        table.add_row(part, *(str(counts[title].get(part, "-")) for title in columns))
    table.add_section()
    table.add_row("all", *(str(len(names)) for names in columns.values()), style="bold")
    return table


def _count(names: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        part = _part(name)
        counts[part] = counts.get(part, 0) + 1
    return counts


def _part(name: str) -> str:
    for start, part in _PARTS.items():
        if name.startswith(f"{start}."):
            return part
    first = name.split(".")[0]
    return f"{first} head" if first in ("mask", "keypoint") else "elsewhere"


def _classes(found: Import) -> str:
    names = found.meta.class_names
    return f"{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def _say(title: str, text: str) -> None:
    out.print(f"{title:<12}{text}", soft_wrap=True, highlight=False, markup=False)
