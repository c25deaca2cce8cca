"""`maskrcnn export CHECKPOINT --format torchvision --out FILE`: weights that a torchvision builder loads; no Ray."""

from pathlib import Path

from jobs.console import out
from pipeline.training.zoo import export_torchvision


def export_weights(checkpoint: Path, path: Path) -> None:
    """Write the file, and say how to load it and where its detections would differ."""
    written = export_torchvision(checkpoint, path)
    for title, text in (
        ("file", f"{path}, {len(written.tensors)} tensors"),
        ("builder", written.call),
        ("load", _load(path)),
        *(("note", note) for note in written.notes),
    ):
        out.print(f"{title:<12}{text}", soft_wrap=True, highlight=False, markup=False)


def _load(path: Path) -> str:
    if path.suffix == ".safetensors":
        return f"model.load_state_dict(safetensors.torch.load_file('{path}'))"
    return f"model.load_state_dict(torch.load('{path}', weights_only=True))"
