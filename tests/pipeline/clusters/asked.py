"""A run that a cluster is made for."""

from pipeline.config import RunConfig
from pipeline.configure import load_config

PLACES = ("data.train=/shared/coco/train", "data.val=/shared/coco/val", "cluster.runs_dir=/shared/runs")
AWKWARD = [  # names of runs: what a file, a shell or DNS could take for something else
    "r50 1x",
    'a "quoted" name',
    "it's",
    "$HOME `id` $(id)",
    "Größe 日本",
    "a: b # c",
    "- x",
    "null",
    "2024",
    "<nodes> <image>",
    "line\nbreak: yes",
    "x" * 200,
    "-",
    "🙂",
]


def run(*overrides: str) -> RunConfig:
    """On 8 GPUs, in /shared, called r50."""
    return load_config(None, ["cluster.workers=8", "train.name=r50", *PLACES, *overrides])


def run_called(name: str) -> RunConfig:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return run(f'train.name="{quoted}"')
