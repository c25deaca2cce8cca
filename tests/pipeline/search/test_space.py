"""Spaces: what is drawn, what counts when, and what is refused before anything starts."""

from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.configure import ConfigError, load_config
from pipeline.search.candidates import listed, tried
from pipeline.search.dimension import SpaceError
from pipeline.search.settings import load_search
from pipeline.search.space import apply, read_space
from pipeline.training.optim import peak_lr

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "configs/tune/backbone_and_loss.yaml"
SMALL = ["model.trunk.body=resnet18", "model.trunk.norm=bn"]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(None, SMALL)


def problem(tree: dict[str, object], config: RunConfig) -> str:
    with pytest.raises(SpaceError) as caught:
        read_space(tree, config, "space.yaml")
    return str(caught.value)


def test_every_kind_stays_within_its_bounds_and_reaches_them(config: RunConfig) -> None:
    tree = {
        "optim.lr": {"log_uniform": [0.001, 0.1]},
        "model.loss_weights.mask": {"uniform": [0.5, 2.0]},
        "optim.warmup_steps": {"int": [3, 5]},
        "model.roi.operation": {"choice": ["align", "pool"]},
        "model.rpn.anchors.ratios": {"choice": [[0.5, 1.0, 2.0], [1.0]]},
    }
    space = read_space(tree, config, "space.yaml")
    drawn = space.sample(200, seed=1)
    assert len(drawn) == 200 and drawn == space.sample(200, seed=1) != space.sample(200, seed=2)
    rates = [settings["optim.lr"] for settings in drawn]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    below = sum(rate < 0.01 for rate in rates)  # half of them, in log space; uniform would give 9 %
    assert 70 < below < 130
    weights = [settings["model.loss_weights.mask"] for settings in drawn]
    assert all(0.5 <= weight <= 2.0 for weight in weights) and 70 < sum(weight < 1.25 for weight in weights) < 130
    assert {settings["optim.warmup_steps"] for settings in drawn} == {3, 4, 5}
    assert {settings["model.roi.operation"] for settings in drawn} == {"align", "pool"}
    for dimension in space.dimensions:
        assert dimension.at(0.0) == dimension.values[0] and dimension.at(1.0) == dimension.values[-1]


def test_values_arrive_in_the_configuration_as_they_are(config: RunConfig) -> None:
    settings = {"model.rpn.anchors.ratios": [1.0], "model.mask": None, "optim.lr": 1e-5, "optim.clip_norm": 3.0}
    changed = apply(config, settings)
    assert changed.model.rpn is not None and changed.model.rpn.anchors.ratios == (1.0,)
    assert changed.model.mask is None and changed.optim.clip_norm == 3.0 and changed.optim.lr == 1e-5


def test_the_learning_rate_scales_with_the_batch_unless_the_space_sets_it(config: RunConfig) -> None:
    halved = apply(config, {"train.batch_images": 8})
    assert peak_lr(halved.optim, halved.train.batch_images) == pytest.approx(0.01)
    for settings in ({"train.batch_images": 8, "optim.lr": 0.03}, {"optim.lr": 0.03, "train.batch_images": 8}):
        fixed = apply(config, settings)
        assert peak_lr(fixed.optim, fixed.train.batch_images) == pytest.approx(0.03)
    own = apply(config, {"optim.lr": 0.03, "optim.lr_batch_images": 32})
    assert peak_lr(own.optim, own.train.batch_images) == pytest.approx(0.015)


# --- conditions


def test_a_condition_on_a_key_of_the_space_or_of_the_configuration(config: RunConfig) -> None:
    tree = {
        "model.trunk.fpn_channels": {"choice": [64, 128], "when": {"model.trunk.neck": "fpn"}},  # before what it needs
        "model.trunk.neck": {"choice": ["fpn", "c5"]},
        "model.box.box_beta": {"uniform": [0.1, 1.0], "when": {"model.box.box_loss": ["smooth_l1"]}},
        "model.mask.norm": {"choice": ["gn"], "when": {"model.mask.head": "mlp"}},
    }
    space = read_space(tree, config, "space.yaml")
    drawn = space.sample(40, seed=0)
    assert {settings["model.trunk.neck"] for settings in drawn} == {"fpn", "c5"}
    for settings in drawn:
        assert ("model.trunk.fpn_channels" in settings) == (settings["model.trunk.neck"] == "fpn")
        assert "model.box.box_beta" in settings  # the configuration's box_loss is smooth_l1
        assert "model.mask.norm" not in settings


def test_conditions_of_conditions(config: RunConfig) -> None:
    tree = {
        "model.trunk.neck": {"grid": ["fpn", "c5"]},
        "model.trunk.fpn_norm": {"grid": [None, "gn"], "when": {"model.trunk.neck": "fpn"}},
        "model.trunk.fpn_channels": {"grid": [32, 64], "when": {"model.trunk.fpn_norm": "gn"}},
    }
    found = read_space(tree, config, "space.yaml").all()
    assert found == [
        {"model.trunk.neck": "fpn", "model.trunk.fpn_norm": None},
        {"model.trunk.neck": "fpn", "model.trunk.fpn_norm": "gn", "model.trunk.fpn_channels": 32},
        {"model.trunk.neck": "fpn", "model.trunk.fpn_norm": "gn", "model.trunk.fpn_channels": 64},
        {"model.trunk.neck": "c5"},
    ]


def test_grids_are_crossed_and_the_rest_is_drawn_for_each(config: RunConfig) -> None:
    tree = {
        "model.roi.operation": {"grid": ["align", "pool"]},
        "model.mask.scheme": {"grid": ["independent", "agnostic", "competing"]},
        "optim.lr": {"uniform": [0.01, 0.02]},
    }
    space = read_space(tree, config, "space.yaml")
    drawn = space.sample(2, seed=0)
    pairs = [(settings["model.roi.operation"], settings["model.mask.scheme"]) for settings in drawn]
    assert len(drawn) == 12 and len(set(pairs)) == 6 and len({settings["optim.lr"] for settings in drawn}) == 12
    with pytest.raises(SpaceError, match=r"optim\.lr \(uniform\) has no end"):
        space.all()


def test_a_small_space_gives_no_trial_twice(config: RunConfig) -> None:
    space = read_space({"model.trunk.neck": {"choice": ["fpn", "c5"]}}, config, "space.yaml")
    assert len(space.sample(16, seed=0)) == 2


def test_a_grid_beside_something_drawn_is_tried_whole_with_each_draw(config: RunConfig) -> None:
    tree = {
        "model.trunk.neck": {"choice": ["fpn", "c5"]},
        "model.trunk.fpn_channels": {"grid": [32, 64, 128], "when": {"model.trunk.neck": "fpn"}},
        "model.trunk.fpn_norm": {"grid": [None, "gn"], "when": {"model.trunk.fpn_channels": 64}},  # of a grid of those
        "optim.lr": {"uniform": [0.01, 0.02]},
    }
    drawn = read_space(tree, config, "space.yaml").sample(12, seed=0)
    by_draw: dict[float, list[tuple[object, object]]] = {}
    for one in drawn:
        key = (one.get("model.trunk.fpn_channels"), one.get("model.trunk.fpn_norm", "none"))
        by_draw.setdefault(one["optim.lr"], []).append(key)
    whole = [(32, "none"), (64, None), (64, "gn"), (128, "none")]
    assert len(by_draw) == 12 and {tuple(found) for found in by_draw.values()} == {tuple(whole), ((None, "none"),)}


def test_a_condition_compares_numbers_as_numbers(config: RunConfig) -> None:
    ten = load_config(None, [*SMALL, "optim.clip_norm=10.0"])
    tree = {"optim.momentum": {"choice": [0.8, 0.9], "when": {"optim.clip_norm": 10}}}
    assert read_space(tree, ten, "space.yaml").sample(2, seed=0) == [{"optim.momentum": 0.8}, {"optim.momentum": 0.9}]
    of_space = tree | {"optim.clip_norm": {"choice": [10.0, 20.0]}}
    assert len(read_space(of_space, config, "space.yaml").all()) == 3


@pytest.mark.parametrize(
    ("named", "when", "message"),
    [
        (
            {"choice": ["fpn", "c5"]},
            "fnp",
            'when model.trunk.neck is "fnp", which it never is: it is one of "fpn", "c5"',
        ),
        ({"choice": ["fpn", "c5"]}, "c4", 'is "c4", which it never is'),  # though it could be configured
        ({"choice": ["fpn", "c5"]}, ["fpn", "c55"], 'is "c55", which it never is'),
        ({"choice": ["fpn", "c5"]}, [], "when takes KEY: VALUE or KEY: [VALUE, ...], got"),
        (None, ["fpn", "c55"], 'is "c55", which it never is: it is one of '),  # the configuration's
    ],
)
def test_a_condition_that_never_holds(
    named: dict[str, object] | None, when: object, message: str, config: RunConfig
) -> None:
    tree: dict[str, object] = {"model.roi.operation": {"choice": ["align"], "when": {"model.trunk.neck": when}}}
    assert message in problem(tree if named is None else tree | {"model.trunk.neck": named}, config)


def test_conditions_on_ranges_and_lists(config: RunConfig) -> None:
    def when(key: str, value: object, spec: dict[str, object]) -> dict[str, object]:
        return {"model.roi.operation": {"choice": ["align"], "when": {key: value}}, key: spec}

    assert "drawn from a range (uniform)" in problem(when("optim.lr", 0.01, {"uniform": [0.01, 0.02]}), config)
    steps = "optim.warmup_steps"
    assert "it is a whole number from 3 to 5" in problem(when(steps, 6, {"int": [3, 5]}), config)
    drawn = read_space(when(steps, [4, 5], {"int": [3, 5]}), config, "space.yaml").sample(3, seed=0)
    assert sorted((one[steps], "model.roi.operation" in one) for one in drawn) == [(3, False), (4, True), (5, True)]
    lists: dict[str, object] = {"choice": [[1.0], [0.5, 1.0, 2.0]]}
    ratios = "model.rpn.anchors.ratios"
    assert "write [[...]] for one list" in problem(when(ratios, [1.0], lists), config)
    assert len(read_space(when(ratios, [[1]], lists), config, "space.yaml").sample(5, seed=0)) == 2


def test_sections_and_mappings_arrive_as_they_are_meant() -> None:
    """A learning rate in a section is the space's too; a mapping replaces the configuration's."""
    config = load_config(None, [*SMALL, "optim.freeze={trunk: 5}"])
    tree = {"optim": {"choice": [{"lr": 0.03}]}, "train.batch_images": {"choice": [4, 8]}}
    for settings in read_space(tree, config, "space.yaml").all():
        changed = apply(config, settings)
        assert peak_lr(changed.optim, changed.train.batch_images) == pytest.approx(0.03)
    tree = {"optim.freeze": {"choice": [{}, {"rpn": 3}]}}
    found = [apply(config, one).optim.freeze for one in read_space(tree, config, "space.yaml").all()]
    assert found == [{}, {"rpn": 3}]


def test_narrow_ranges_have_digits_enough(config: RunConfig) -> None:
    tree = {"optim.momentum": {"uniform": [0.9990, 0.9999]}, "optim.lr": {"log_uniform": [0.001, 0.1]}}
    drawn = read_space(tree, config, "space.yaml").sample(100, seed=0)
    assert len({one["optim.momentum"] for one in drawn}) > 95
    assert max(len(str(one["optim.momentum"])) for one in drawn) == len("0.9991234")
    assert all(one["optim.lr"] == float(f"{one['optim.lr']:.4g}") for one in drawn)


# --- what is refused


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"optim.lrr": {"uniform": [0, 1]}}, "optim.lrr is not a key; did you mean optim.lr?"),
        ({"box_loss": {"choice": ["giou"]}}, "did you mean model.box.box_loss?"),
        ({"model.trunk.body": {"choice": ["resnet18", "resnet19"]}}, "model.trunk.body must be one of"),
        ({"optim.warmup_steps": {"uniform": [1, 9]}}, "takes a whole number, which uniform does not give; use int"),
        ({"optim.warmup_steps": {"log_uniform": [1, 9]}}, "which log_uniform does not give; use int"),
        ({"optim.momentum": {"uniform": [0.5, 1.5]}}, "optim.momentum must be at least 0 and at most 1, got 1.5"),
        ({"optim.lr": {"uniform": [0.1, 0.01]}}, "takes two numbers, [low, high], got [0.1, 0.01]"),
        ({"optim.lr": {"log_uniform": [0, 0.01]}}, "log_uniform must be above 0, got 0; use uniform"),
        ({"optim.lr": {"int": [0.5, 2]}}, "takes two whole numbers"),
        ({"optim.lr": {"uniform": [True, 2]}}, "takes two numbers"),
        ({"optim.lr": [0.01, 0.1]}, "optim.lr must hold one of choice, grid, uniform"),
        ({"optim.lr": {"choice": [0.1], "grid": [0.1]}}, "must hold one of"),
        ({"optim.lr": {"choice": [0.1], "if": {}}}, "optim.lr has if, which is not known"),
        ({"optim.lr": {"choice": []}}, "choice takes a list, got []"),
        ({"optim.lr": {"choice": [0.1, 0.1]}}, "holds a value twice"),
        ({"train.steps": {"choice": [10, 20]}}, "train.steps cannot be searched: AP after different numbers of steps"),
        ({"cluster.workers": {"choice": [1, 2]}}, "cluster.workers cannot be searched"),
        ({"optim.lr": {"choice": [0.1], "when": {"model.trunk.nek": "fpn"}}}, "did you mean model.trunk.neck?"),
        ({"train": {"choice": [{"steps": 10}]}}, "train cannot be searched whole: it holds train.name"),
        ({"data": {"choice": [{"val": "x"}]}}, "data cannot be searched whole: it holds data.val"),
        ({}, "there is nothing to search"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(tree: dict[str, object], message: str, config: RunConfig) -> None:
    assert message in problem(tree, config)


def test_all_problems_are_named_together(config: RunConfig) -> None:
    tree = {"model.trunk.body": {"choice": ["resnet19"]}, "optim.momentum": {"choice": [2.0]}}
    text = problem(tree, config)
    assert "2 problems" in text and "model.trunk.body" in text and "optim.momentum" in text


def test_conditions_in_a_circle(config: RunConfig) -> None:
    tree = {
        "optim.lr": {"choice": [0.1], "when": {"optim.momentum": 0.9}},
        "optim.momentum": {"choice": [0.9], "when": {"optim.lr": 0.1}},
    }
    assert "conditions of optim.lr, optim.momentum go in a circle" in problem(tree, config)


def test_a_choice_that_does_not_build(config: RunConfig) -> None:
    tree = {"model.rpn.anchors.sizes_px": {"choice": [[32.0, 64.0, 128.0, 256.0, 512.0], [32.0, 64.0]]}}
    assert "must hold 5 sizes, one a level P2..P6 of trunk.neck=fpn, got 2" in problem(tree, config)
    tree = {"model.trunk.fpn_norm": {"choice": ["gn"]}, "model.trunk.fpn_channels": {"choice": [64, 50]}}
    grouped = load_config(None, [*SMALL, "model.trunk.fpn_norm=gn"])
    assert "model.trunk.fpn_channels: 50: the network cannot be built" in problem(tree, grouped)


def test_settings_that_do_not_go_together_are_found_before_anything_starts() -> None:
    search = load_search(EXAMPLE, ["tune.search=random", "tune.trials=40"])
    assert len(listed(search)) == 40
    tree = {
        "model.rpn": {"choice": [None, {}]},
        "data.augment.copy_paste_probability": {"choice": [0.0, 0.5]},
    }
    config = load_config(None, SMALL)
    bad = type(search)(search.tune, config, read_space(tree, config, "space.yaml"), tree)
    for check in (listed, tried):
        with pytest.raises(SpaceError, match="add a `when`"):
            check(bad)


# --- the file


def test_the_example_says_what_it_means() -> None:
    search = load_search(EXAMPLE)
    assert search.tune.trials == 16 and search.tune.scheduler == "asha"
    assert search.config.evaluate.during_training is not None
    changed = load_search(EXAMPLE, ["tune.trials=3", "train.steps=200", "tune.search=tpe", "tune.concurrent=2"])
    assert (changed.tune.trials, changed.tune.search, changed.tune.concurrent) == (3, "tpe", 2)
    assert changed.config.train.steps == 200


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.trails=3"], "tune.trails is not a key; did you mean trials?"),
        (["tune.trials=0"], "tune.trials must be at least 1, got 0"),
        (["tune.search=bayes"], "tune.search: "),
        (["tune.trials"], "is not of the form"),
        (["tune.scheduler=pbt"], "Tune hears the path alone"),
        (["train.stepz=3"], "train.stepz is not a key; did you mean train.steps?"),
    ],
)
def test_bad_overrides(overrides: list[str], message: str) -> None:
    with pytest.raises((SpaceError, ConfigError)) as caught:
        load_search(EXAMPLE, overrides)
    assert message in str(caught.value)


def test_a_file_that_is_no_search(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("train: {steps: 3}\n")
    with pytest.raises(SpaceError, match="it has no `space`"):
        load_search(tmp_path / "other.yaml")
    with pytest.raises(SpaceError, match=r"no such file; .* has other\.yaml"):
        load_search(tmp_path / "gone.yaml")
