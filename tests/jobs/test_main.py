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
PLAIN = {"overwrite": False, "rows_per_shard": None, "workers": None}
CHOSEN, CHOSEN_WORDS = (
    {"overwrite": True, "rows_per_shard": 7, "workers": 3},
    "--overwrite --rows-per-shard 7 --workers 3",
)
NOT_AUGMENTED: dict[str, Any] = {"augment": None, "overrides": []}


@pytest.fixture
def called(monkeypatch):
    """Replace every verb by a recorder: calls are (name, args, kwargs)."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for module, names in {
        "shard": [
            "shard_coco",
            "shard_lvis",
            "shard_cityscapes",
            "shard_images",
            "shard_shapes",
            "shard_streets",
            "migrate",
        ],
        "train": ["train"],
        "evaluate": ["evaluate_checkpoint"],
        "predict": ["predict"],
        "ui": ["ui"],
        "tune": ["tune", "resume_tune"],
        "paper": ["paper", "resume_paper"],
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
                {"keypoints": None, "boxes_only": False, "proposals": [], "classes": None, "strict": False, **PLAIN},
            ),
        ),
        (
            "shard coco --annotations a.json --keypoints k.json --images s3://b/img --out s3://b/s --boxes-only"
            " --proposals p.json --proposals q.json --classes dog,hot_dog --strict"
            " --overwrite --rows-per-shard 7 --workers 3",
            (
                "shard_coco",
                (Path("a.json"), "s3://b/img", "s3://b/s"),
                {
                    "keypoints": Path("k.json"),
                    "boxes_only": True,
                    "proposals": [Path("p.json"), Path("q.json")],
                    "classes": ["dog", "hot_dog"],
                    "strict": True,
                    **CHOSEN,
                },
            ),
        ),
        (
            "shard lvis --annotations a.json --images img --out shards",
            ("shard_lvis", (Path("a.json"), "img", "shards"), {"strict": False, **PLAIN}),
        ),
        (
            f"shard lvis --annotations a.json --images img --out shards --strict {CHOSEN_WORDS}",
            ("shard_lvis", (Path("a.json"), "img", "shards"), {"strict": True, **CHOSEN}),
        ),
        (
            "shard cityscapes --root s3://b/c --split val --out shards",
            (
                "shard_cityscapes",
                ("s3://b/c", "val", "shards"),
                {"cities": None, "classes": None, "strict": False, **PLAIN},
            ),
        ),
        (
            f"shard cityscapes --root c --split train --city ulm --city bochum --out shards --strict {CHOSEN_WORDS}",
            (
                "shard_cityscapes",
                ("c", "train", "shards"),
                {"cities": ["ulm", "bochum"], "classes": None, "strict": True, **CHOSEN},
            ),
        ),
        ("shard images --images img --out shards", ("shard_images", ("img", "shards"), {"strict": False, **PLAIN})),
        (
            f"shard images --images img --out shards --strict {CHOSEN_WORDS}",
            ("shard_images", ("img", "shards"), {"strict": True, **CHOSEN}),
        ),
        (
            "shard streets --out data/streets --train-images 9 --val-images 3 --seed 5 --height 128",
            (
                "shard_streets",
                (Path("data/streets"),),
                {"train_images": 9, "val_images": 3, "seed": 5, "height_px": 128},
            ),
        ),
        (
            "shard streets --out x",
            ("shard_streets", (Path("x"),), {"train_images": None, "val_images": None, "seed": 0, "height_px": 256}),
        ),
        (
            "shard shapes --out data/shapes --train-images 9 --val-images 3 --seed 5",
            (
                "shard_shapes",
                (Path("data/shapes"),),
                {"train_images": 9, "val_images": 3, "seed": 5, "keypoints": False},
            ),
        ),
        (
            "shard migrate old --out s3://b/new --workers 2",
            ("migrate", ("old", "s3://b/new"), {"overwrite": False, "workers": 2}),
        ),
        ("train c.yaml", ("train", (Path("c.yaml"), []), {})),
        ("train c.yaml a.b=1 c=[1,2]", ("train", (Path("c.yaml"), ["a.b=1", "c=[1,2]"]), {})),
        (
            "evaluate ckpt --data shards evaluate.max_images=5 --out here",
            ("evaluate_checkpoint", (Path("ckpt"), "shards", ["evaluate.max_images=5"], Path("here"), None), {}),
        ),
        (
            "evaluate ckpt --data shards --report there --bootstrap 9",
            (
                "evaluate_checkpoint",
                (Path("ckpt"), "shards", ["evaluate.bootstrap=9", "evaluate.report=true"], None, Path("there")),
                {},
            ),
        ),
        (
            "predict ckpt a.jpg dir --out here --score 0.7",
            ("predict", (Path("ckpt"), [Path("a.jpg"), Path("dir")], Path("here")), {"score": 0.7, "overrides": []}),
        ),
        (
            "predict ckpt a.jpg --out here --set a.b=1 --set c=[1,2]",
            (
                "predict",
                (Path("ckpt"), [Path("a.jpg")], Path("here")),
                {"score": 0.5, "overrides": ["a.b=1", "c=[1,2]"]},
            ),
        ),
        ("verify s3://bucket/val", ("verify", ("s3://bucket/val",), {"workers": None, "as_json": False})),
        ("verify val --workers 3 --json", ("verify", ("val",), {"workers": 3, "as_json": True})),
        (
            "inspect val --sample 12 --out a.png",
            ("inspect", ("val",), {"sample": "12", "stats": False, **NOT_AUGMENTED, "out_path": Path("a.png")}),
        ),
        (
            "inspect val --stats",
            ("inspect", ("val",), {"sample": None, "stats": True, **NOT_AUGMENTED, "out_path": None}),
        ),
        (
            "inspect val --sample 12 --augment c.yaml train.seed=1 a.b=2",
            (
                "inspect",
                ("val",),
                {
                    "sample": "12",
                    "stats": False,
                    "augment": Path("c.yaml"),
                    "overrides": ["train.seed=1", "a.b=2"],
                    "out_path": None,
                },
            ),
        ),
        ("tune space.yaml", ("tune", (Path("space.yaml"), []), {})),
        ("tune s.yaml tune.trials=8 a.b=c", ("tune", (Path("s.yaml"), ["tune.trials=8", "a.b=c"]), {})),
        ("tune --resume NAME", ("resume_tune", (Path("runs"), "NAME", False), {})),
        ("tune --resume NAME --retry-failed", ("resume_tune", (Path("runs"), "NAME", True), {})),
        ("tune --resume NAME --runs r", ("resume_tune", (Path("r"), "NAME", False), {})),
        ("paper 2c", ("paper", ("2c", "tiny", None, Path("runs"), None, []), {})),
        (
            "paper 2c --budget short --data d --seeds 3 --runs r a=b",
            ("paper", ("2c", "short", Path("d"), Path("r"), 3, ["a=b"]), {}),
        ),
        ("paper --resume NAME", ("resume_paper", (Path("runs"), "NAME", False), {})),
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
        "shard lvis --annotations a.json --out x",
        "shard cityscapes --root c --out x",
        "shard images --out x",
        "shard streets --out x --height 63",
        "ui --port 0",
        "paper 2c --budget huge",
        "paper 2c --seeds 0",
        "tune",
        "paper",
        "tune s.yaml --resume NAME",
        "paper 2c --resume NAME",
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
    for verb in ("shard", "verify", "inspect", "train", "evaluate", "predict", "ui", "tune", "paper", "cluster"):
        assert f" {verb} " in done.stdout
    assert "heavy: []" in done.stdout
