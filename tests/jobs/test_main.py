"""The command line: what reaches a verb, what users see of errors, and that help does not wait for heavy imports."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.main import app
from pipeline.config import RunConfig
from pipeline.configure import to_dict
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def called(monkeypatch):
    """Replace every verb by a recorder: calls are (name, args, kwargs)."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for module, names in {
        "shard": ["shard_coco", "shard_shapes", "migrate"],
        "train": ["train"],
        "evaluate": ["evaluate_checkpoint"],
        "predict": ["predict"],
        "ui": ["ui"],
        "verify": ["verify"],
        "inspect": ["inspect"],
    }.items():
        fake = ModuleType(f"jobs.{module}")
        for name in names:
            setattr(fake, name, lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)))
        monkeypatch.setitem(sys.modules, f"jobs.{module}", fake)
    return calls


def run(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "shard coco --annotations a.json --images img --out shards",
            (
                "shard_coco",
                (Path("a.json"), "img", "shards"),
                {"strict": False, "overwrite": False, "rows_per_shard": None, "workers": None},
            ),
        ),
        (
            "shard coco --annotations a.json --images s3://b/img --out s3://b/s --strict --overwrite --rows-per-shard 7"
            " --workers 3",
            (
                "shard_coco",
                (Path("a.json"), "s3://b/img", "s3://b/s"),
                {"strict": True, "overwrite": True, "rows_per_shard": 7, "workers": 3},
            ),
        ),
        (
            "shard shapes --out data/shapes --train-images 9 --val-images 3 --seed 5",
            ("shard_shapes", (Path("data/shapes"),), {"train_images": 9, "val_images": 3, "seed": 5}),
        ),
        (
            "shard migrate old --out s3://b/new --workers 2",
            ("migrate", ("old", "s3://b/new"), {"overwrite": False, "workers": 2}),
        ),
        ("train c.yaml", ("train", (Path("c.yaml"), []), {})),
        ("train c.yaml a.b=1 c=[1,2]", ("train", (Path("c.yaml"), ["a.b=1", "c=[1,2]"]), {})),
        (
            "evaluate ckpt --data shards evaluate.max_images=5 --out here",
            ("evaluate_checkpoint", (Path("ckpt"), "shards", ["evaluate.max_images=5"], Path("here")), {}),
        ),
        ("evaluate ckpt --data shards", ("evaluate_checkpoint", (Path("ckpt"), "shards", [], None), {})),
        (
            "predict ckpt a.jpg dir --out here --score 0.7",
            ("predict", (Path("ckpt"), [Path("a.jpg"), Path("dir")], Path("here")), {"score": 0.7}),
        ),
        ("verify s3://bucket/val", ("verify", ("s3://bucket/val",), {"workers": None, "as_json": False})),
        ("verify val --workers 3 --json", ("verify", ("val",), {"workers": 3, "as_json": True})),
        (
            "inspect val --sample 12 --out a.png",
            ("inspect", ("val",), {"sample": "12", "stats": False, "out_path": Path("a.png")}),
        ),
        ("inspect val --stats", ("inspect", ("val",), {"sample": None, "stats": True, "out_path": None})),
        ("ui", ("ui", (Path("runs"),), {"host": "127.0.0.1", "port": 5000})),
        ("ui --runs r --host 0.0.0.0 --port 80", ("ui", (Path("r"),), {"host": "0.0.0.0", "port": 80})),
    ],
)
def test_words_reach_the_verb(called, words, call):
    result = run(*words.split())
    assert result.exit_code == 0, result.output
    assert called == [call]


@pytest.mark.parametrize(
    "words",
    [
        "nosuch",
        "train",
        "evaluate ckpt",
        "predict ckpt --out x",
        "shard coco --out x",
        "ui --port 0",
        "verify",
        "verify val --workers 0",
        "train c.yaml --zzz",
    ],
)
def test_wrong_words_are_refused(called, words):
    result = run(*words.split())
    assert result.exit_code == 2
    assert called == []
    assert "Traceback" not in result.output


def test_print_shows_the_resolved_config_and_does_not_train(called):
    result = run("train", str(ROOT / "configs/base.yaml"), "train.steps=7", "train.name=" + "x" * 300, "--print")
    assert result.exit_code == 0
    expected = to_dict(RunConfig())
    expected["train"] |= {"steps": 7, "name": "x" * 300}
    assert yaml.safe_load(result.stdout.replace("1.0e-05", "0.00001")) == expected
    assert called == []


def test_what_the_user_can_put_right_is_one_message_without_a_traceback(called, monkeypatch):
    result = run("train", str(ROOT / "configs/base.yaml"), "train.step=7", "--print")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: train.step is not a key; did you mean train.steps? (override train.step=7)\n"

    def fail(*args: Any, **kwargs: Any) -> None:
        raise UserError("[bold]no[/bold] shards in x; run `maskrcnn shard`" + " long" * 50)

    monkeypatch.setattr(sys.modules["jobs.shard"], "shard_shapes", fail)
    result = run("shard", "shapes", "--out", "x")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: [bold]no[/bold] shards in x; run `maskrcnn shard` long long")
    assert result.stderr.count("\n") == 1


def test_a_bug_of_ours_keeps_its_traceback(called, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(sys.modules["jobs.train"], "train", fail)
    result = run("train", "c.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert str(result.exception) == "ours"


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("maskrcnn-ray ")


def test_help_names_every_verb_and_imports_nothing_heavy():
    script = (
        "import sys; from jobs.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pyarrow', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    for verb in ("shard", "verify", "inspect", "train", "evaluate", "predict", "ui"):
        assert f" {verb} " in done.stdout
    assert "heavy: []" in done.stdout
