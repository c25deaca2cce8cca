"""What is found before a search starts: trials that could not train on the data, or not be compared."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.configure import load_config
from pipeline.data import manifest as manifest_module
from pipeline.data import shards as shards_module
from pipeline.errors import UserError
from pipeline.search.candidates import tried
from pipeline.search.dimension import SpaceError
from pipeline.search.plan import Plan, new_plan
from pipeline.search.settings import Search, Searcher, TuneConfig
from pipeline.search.space import read_space

Planned = Callable[..., Plan]
SMALL = (
    *("model.trunk.body=resnet18", "model.trunk.norm=bn", "model.trunk.freeze_stages=0"),
    *("train.steps=6", "train.checkpoint_every_steps=2", "train.batch_images=4", "optim.milestones=[]"),
)


@pytest.fixture
def planned(shapes: Path, tmp_path: Path) -> Planned:
    """A plan of a space."""

    def make(tree: dict[str, object], *overrides: str, search: Searcher = "random", trials: int = 8) -> Plan:
        data = [f"data.{split}={shapes / split}" for split in ("train", "val")]
        config = load_config(None, [*SMALL, *data, f"cluster.runs_dir={tmp_path}", *overrides])
        tune = TuneConfig(name="s", search=search, trials=trials)
        asked = Search(tune, config, read_space(tree, config, "space.yaml"), tree)
        return new_plan(tune, config, "s", tree, {"verb": "tune"}, tried(asked))

    return make


@pytest.mark.parametrize("search", ["random", "grid", "tpe"])
def test_trials_are_compared_by_what_all_have(search: Searcher, planned: Planned) -> None:
    def metric(tree: dict[str, object], *overrides: str) -> str:
        return planned(tree, *overrides, search=search).metric

    assert metric({"model.roi.operation": {"choice": ["align", "pool"]}}) == "mask/AP"
    assert metric({"model.mask": {"choice": [None, {}]}}) == "box/AP"
    assert metric({"model.mask": {"choice": [{}]}}, "evaluate.during_training={every_steps: 2, metric: box/AP50}") == (
        "box/AP50"
    )
    with pytest.raises(
        SpaceError, match=r"space: model\.mask=null: evaluate\.during_training\.metric must be one of box"
    ):
        metric({"model.mask": {"choice": [None, {}]}}, "evaluate.during_training={every_steps: 2, metric: mask/AP}")
    with pytest.raises(SpaceError, match="no metric in common"):
        metric({"model.box": {"choice": [None, {}]}}, "model.mask=null")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model.rpn": {"choice": [None, {}]}}, r"space: model\.rpn=null: .* has no proposals"),
        ({"data.train": {"choice": ["nowhere"]}}, r'space: data\.train="nowhere": .*nowhere'),
        ({"optim.freeze": {"choice": [{}, {"trunkk": 3}]}}, r'freeze=\{"trunkk": 3\}: optim\.freeze names trunkk'),
        ({"model.classes": {"choice": [None, 99]}}, r"space: model\.classes=99: model\.classes is 99, .* has "),
        ({"model.keypoint": {"choice": [None, {}]}}, r"space: model\.keypoint=\{\}: .* has no keypoints"),
    ],
)
def test_a_trial_that_cannot_train_on_the_data_is_named(
    tree: dict[str, object], message: str, planned: Planned, tmp_path: Path
) -> None:
    with pytest.raises(SpaceError, match=message):
        planned(tree)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_each_problem_is_named_once(planned: Planned) -> None:
    with pytest.raises(SpaceError) as caught:
        planned({"model.classes": {"grid": [99, 98]}, "optim.lr": {"uniform": [0.01, 0.02]}}, trials=20)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "model.classes is 99" in lines[0] and "model.classes is 98" in lines[1]


def test_the_data_is_read_once_for_all_trials(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: the shards may lie in an object store."""
    read: list[str] = []

    def counted(module: object, name: str) -> None:
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda storage: (read.append(f"{name} {storage}"), inner(storage))[1])

    counted(manifest_module, "_load")
    counted(shards_module, "_load_index")
    planned({"optim.lr": {"uniform": [0.01, 0.02]}}, trials=100)
    assert sorted(one.split()[0] for one in read) == ["_load", "_load", "_load_index"], read  # train and val
    read.clear()
    with pytest.raises(UserError, match="nowhere"):
        planned({"data.train": {"choice": ["nowhere"]}})
    assert read  # nothing is kept from one plan to the next


def test_what_a_plan_read_is_not_kept(planned: Planned, shapes: Path) -> None:
    assert manifest_module.load_manifest(shapes / "train") is not manifest_module.load_manifest(shapes / "train")
    with manifest_module.reading_once():
        first = manifest_module.load_manifest(shapes / "train")
        assert (
            first is manifest_module.load_manifest(shapes / "train") == manifest_module.load_manifest(shapes / "train")
        )
    assert first is not manifest_module.load_manifest(shapes / "train")
