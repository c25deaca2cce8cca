"""YAML, `base:`, overrides and messages of pipeline/configure.py."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from model.config import (
    AnchorConfig,
    BoxConfig,
    CascadeConfig,
    KeypointConfig,
    MaskConfig,
    ModelConfig,
    RPNConfig,
    TrunkConfig,
)
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    DuringTrainingConfig,
    EvaluateConfig,
    InitConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    TransferConfig,
    TTAConfig,
)
from pipeline.configure import ConfigError, from_yaml_text, known_keys, load_config, to_dict, to_yaml
from pipeline.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def message(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_nothing_given_is_the_defaults(tmp_path):
    assert load_config(None) == RunConfig()
    assert load_config(write(tmp_path / "empty.yaml", "")) == RunConfig()
    assert load_config(write(tmp_path / "comment.yaml", "# nothing\n")) == RunConfig()


# --- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E4", 1e4), ("1.e2", 100.0), (".5", 0.5), ("3", 3.0), ("+2.5e+1", 25.0), ("0", 0.0)],
)
def test_floats_of_yaml_1_2(tmp_path, text, value):
    config = load_config(write(tmp_path / "a.yaml", f"optim:\n  lr: {text}\n"))
    assert config.optim.lr == value
    assert type(config.optim.lr) is float
    assert load_config(None, [f"optim.lr={text}"]).optim.lr == value


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "N", "2024-01-01", "1:30", "1_000", "0b1", "=", "<<"])
def test_words_that_yaml_1_1_takes_for_something_else_stay_text(tmp_path, word):
    assert load_config(write(tmp_path / "a.yaml", f"train:\n  name: {word}\n")).train.name == word
    assert load_config(None, [f"train.name={word}"]).train.name == word


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "1", "0", "'true'"])
def test_only_true_and_false_are_booleans(word):
    assert "data.drop_empty must be true or false" in message(f"data.drop_empty={word}")


def test_integers(tmp_path):
    assert load_config(None, ["train.seed=010"]).train.seed == 10  # YAML 1.1 reads 8
    assert load_config(None, ["train.seed=0x10"]).train.seed == 16
    assert load_config(None, ["train.seed=0o10"]).train.seed == 8


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("optim:\n  lr: 1\n  momentum: 0.5\n  lr: 2\n", "optim.lr", 4),
        ("train:\n  steps: 1\ntrain:\n  seed: 1\n", "train", 3),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path, text, key, line):
    path = write(tmp_path / "twice.yaml", text)
    said = message(path=path)
    assert said.startswith(f"{path}:{line}: {key} is given twice")
    with pytest.raises(ConfigError, match=f"config.yaml:{line}: {key} is given twice"):
        from_yaml_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  steps: [1\n", ":3:1: not valid YAML"),
        ("train:\n\tsteps: 1\n", ":2:1: not valid YAML"),
        ("a: &x [1]\nb: *x\n", ":2:4: not valid YAML: aliases are not supported"),
        ("a: &x [*x]\n", "aliases are not supported"),
        ("train: !!python/object/apply:os.getcwd []\n", ":1: the tag"),
        ("train:\n  name: !secret x\n", ":2: the tag !secret is not supported"),
        ("train:\n  steps: !!int x\n", ":2: 'x' cannot be read as int"),
        ("? [a]\n: 1\n", ":1: a key must be a plain name"),
        ("- 1\n- 2\n", "expected sections such as `train:`, got [1, 2]"),
        ("train\n", 'expected sections such as `train:`, got "train"'),
        ("a: 1\n---\nb: 1\n", ":2:1: not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
        ("a: " + "[" * 3000 + "\n", "nested too deeply"),
        ("train:\n  steps: " + "1" * 5000 + "\n", "cannot be read as int"),
    ],
)
def test_broken_yaml(tmp_path, text, expected):
    path = write(tmp_path / "broken.yaml", text)
    said = message(path=path)
    assert said.startswith(str(path))
    assert expected in said


def test_files_that_cannot_be_read(tmp_path):
    write(tmp_path / "there.yaml", "")
    assert message(path=tmp_path / "ther.yaml") == f"{tmp_path}/ther.yaml: no such file; {tmp_path} has there.yaml"
    assert "no .yaml file" in message(path=tmp_path / "nowhere" / "x.yaml")
    assert "cannot be read" in message(path=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"train:\n  name: \xe9\n")
    assert "give a YAML file in UTF-8" in message(path=tmp_path / "latin.yaml")


def test_byte_order_mark_and_windows_lines(tmp_path):
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbftrain:\r\n  steps: 7\r\n")
    assert load_config(tmp_path / "windows.yaml").train.steps == 7


# --- base and merging


def test_a_chain_of_bases_merges_mappings_and_replaces_lists(tmp_path):
    write(tmp_path / "a.yaml", "train: {steps: 1, seed: 1}\noptim: {milestones: [1, 2, 3], lr: 0.5}\n")
    write(tmp_path / "sub/b.yaml", "base: ../a.yaml\ntrain:\n  steps: 2\noptim:\n  milestones: [9]\n")
    config = load_config(write(tmp_path / "sub/deep/c.yaml", "base: ../b.yaml\ntrain: {precision: float32}\n"))
    assert config.train == TrainConfig(steps=2, seed=1, precision="float32")
    assert config.optim == OptimConfig(milestones=(9,), lr=0.5)


def test_null_removes_a_section_and_a_key_below_brings_it_back(tmp_path):
    write(tmp_path / "a.yaml", "model:\n  mask:\n    convs: 7\n    channels: 32\n")
    path = write(tmp_path / "b.yaml", "base: a.yaml\nmodel:\n  mask: null\n")
    assert load_config(path).model.mask is None
    assert load_config(path, ["model.mask.convs=2"]).model.mask == MaskConfig(convs=2)
    assert load_config(path, ["model.mask={}"]).model.mask == MaskConfig()
    assert load_config(None, ["model.mask=null", "model.mask.convs=2"]).model.mask == MaskConfig(convs=2)
    assert load_config(None, ["model.mask.convs=2", "model.mask=null"]).model.mask is None
    assert load_config(None, ["data.train=x", "data.train=null"]).data.train is None
    again = write(tmp_path / "c.yaml", "base: b.yaml\nmodel: {mask: {threshold: 0.25}}\n")
    assert load_config(again).model.mask == MaskConfig(threshold=0.25)


def test_one_location_or_several():
    assert load_config(None, ["data.train=x"]).data.train == "x"
    both = load_config(None, ["data.train=[x, y]", "data.mix_weights=[0.7, 0.3]"])
    assert both.data.train == ("x", "y") and both.data.mix_weights == (0.7, 0.3)
    assert from_yaml_text(to_yaml(both)) == both


def test_circles_of_bases(tmp_path):
    alone = write(tmp_path / "alone.yaml", "base: alone.yaml\n")
    assert f"goes in a circle: {alone} -> {alone}" in message(path=alone)
    a = write(tmp_path / "a.yaml", "base: sub/../b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    (tmp_path / "sub").mkdir()
    assert "goes in a circle" in message(path=a)


def test_wrong_bases(tmp_path):
    path = write(tmp_path / "a.yaml", "train: {steps: 1}\nbase: nothing.yaml\n")
    assert f"nothing.yaml: no such file (the base of {path})" in message(path=path)
    assert "a.yaml:1: base must be one path" in message(path=write(tmp_path / "a.yaml", "base: [x.yaml, y.yaml]\n"))
    assert "base must be one path" in message(path=write(tmp_path / "a.yaml", "base:\n"))
    assert "base is not a key" in message("base=x.yaml")
    with pytest.raises(ConfigError, match="base is not a key"):
        from_yaml_text("base: x.yaml\n")


# --- overrides


def test_overrides_are_yaml_and_the_last_one_wins():
    config = load_config(
        None,
        [
            "train.steps=5",
            "train.steps=6",
            "data.train_sizes_px=[160, 192]",
            "model.input.mean=[1,2.5,3]",
            "train.name=a=b",
            "data.train=/data/with space",
            "data.val=",
            "model.rpn={nms_iou: 0.6, anchors: {ratios: [1.0]}}",
            "optim.clip_norm=35",
            " cluster.workers =4",
        ],
    )
    assert config == RunConfig(
        train=TrainConfig(steps=6, name="a=b"),
        data=DataConfig(train_sizes_px=(160, 192), train="/data/with space"),
        model=ModelConfig(
            input=replace(ModelConfig().input, mean=(1.0, 2.5, 3.0)),
            rpn=RPNConfig(nms_iou=0.6, anchors=AnchorConfig(ratios=(1.0,))),
        ),
        optim=OptimConfig(clip_norm=35.0),
        cluster=ClusterConfig(workers=4),
    )


@pytest.mark.parametrize("override", ["train.steps", "=5", "train..steps=5", ".train=1", "", "train.=1"])
def test_overrides_of_the_wrong_form(override):
    assert "is not of the form a.b.c=VALUE" in message(override)


@pytest.mark.parametrize("value", ["[1", "@x", "a: b: c", "{a: 1, a: 2}", "*x", "!!set {a}", "%x"])
def test_override_values_that_are_not_yaml(value):
    assert message(f"train.name={value}").startswith(f"override train.name={value}: ")


# --- unknown keys and wrong values


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.step=5", "train.step is not a key; did you mean train.steps? (override train.step=5)"),
        ("train.lr=1", "train.lr is not a key; did you mean optim.lr? (override train.lr=1)"),
        ("steps=1", "steps is not a key; did you mean train.steps? (override steps=1)"),
        ("modle.trunk.body=resnet18", "modle.trunk.body is not a key; did you mean model.trunk.body?"),
        ("optimizer.lr=1", "optimizer.lr is not a key; did you mean optim.lr?"),
        ("nms_iou=0.5", "did you mean model.rpn.nms_iou or model.box.nms_iou?"),
        ("train.batch=4", "did you mean train.batch_images?"),
        ("model.trunk.boddy=resnet18", "did you mean model.trunk.body?"),
        ("model.mask.score_threshold=0.5", "did you mean model.box.score_threshold?"),
        ("init.zzz=1", "init.zzz is not a key; init has weights"),
        ("zzz={a: 1, b: 2}", "zzz is not a key; the configuration has model, init, data"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_known_one(override, said):
    assert said in message(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=many", 'train.steps must be a whole number, got "many"'),
        ("train.steps=2.0", "train.steps must be a whole number, got 2.0"),
        ("train.steps=true", "train.steps must be a whole number, got true"),
        ("train.steps=null", "train.steps must be a whole number, got null"),
        ("train.steps.more=1", 'train.steps must be a whole number, got {"more": 1}'),
        ("cluster.workers=two", 'cluster.workers must be a whole number or null, got "two"'),
        ("optim.lr=false", "optim.lr must be a number, got false"),
        ("optim.lr='0.1'", 'optim.lr must be a number, got "0.1"'),
        ("data.drop_empty=1", "data.drop_empty must be true or false, got 1"),
        ("train.name=12", "train.name must be a text or null, got 12; write '\"12\"'"),
        (
            "model.trunk.body=resnet20",
            "must be one of resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, ",
        ),
        ("model.mask.scheme=soft", 'model.mask.scheme must be one of independent, competing, agnostic, got "soft"'),
        ("model.input.mean=[1, 2]", "model.input.mean must be a list of 3 numbers, got [1, 2]"),
        ("model.input.mean=[1, 2, 3, 4]", "model.input.mean must be a list of 3 numbers, got [1, 2, 3, 4]"),
        ("data.train_sizes_px=160", "data.train_sizes_px must be a list of whole numbers, got 160"),
        ("data.train_sizes_px=[160, x, y]", 'must be a list of whole numbers, got [160, "x", "y"]'),
        ("data.train=3", "data.train must be a text or a list of texts or null, got 3; write '\"3\"'"),
        ("data.train=[a, 3]", 'data.train must be a text or a list of texts or null, got ["a", 3]'),
        ("data.mix_weights=1", "data.mix_weights must be a list of numbers or null, got 1"),
        ("model.mask=3", "model.mask must be null or a section with the keys head, scheme, roi_size"),
        ("train=", "train must be a section with the keys name, steps"),
        ("optim.lr=.nan", "optim.lr must be finite, got NaN"),
        ("optim.clip_norm=.inf", "optim.clip_norm must be finite, got Infinity"),
        ("optim.lr=1e999", "optim.lr must be finite, got Infinity"),
        ("model.input.std=[1, -.inf, 1]", "model.input.std must be finite, got [1, -Infinity, 1]"),
        ("nothing.here=.nan", "nothing.here is not a key"),
    ],
)
def test_wrong_values_say_expected_and_got(override, said):
    message_ = message(override)
    assert said in message_
    assert message_.endswith(f"(override {override})")
    assert "\n" not in message_


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("model.rpn.nms_iou=1.5", "model.rpn.nms_iou must be at least 0 and at most 1, got 1.5"),
        ("model.input.std=[1, 0, 1]", "model.input.std must be above 0, got 0.0"),
        ("model.rpn.background_iou=0.8", "model.rpn.background_iou must be at most foreground_iou (0.7), got 0.8"),
        ("model.rpn.anchors.sizes_px=[32, 64]", "must hold 5 sizes, one a level P2..P6 of trunk.neck=fpn, got 2"),
        ("model.rpn.anchors.ratios=[]", "model.rpn.anchors.ratios must hold at least one number, got none"),
        ("model.box.cascade={}", "model.box.class_agnostic must be true with box.cascade, got false"),
        (
            "model.box={class_agnostic: true, cascade: {weight_factors: [2]}}",
            "model.box.cascade.weight_factors must hold 2 numbers",
        ),
        ("model.box=null", "model.mask must be null with box: null, got a section"),
        ("model.keypoint.count=0", "model.keypoint.count must be at least 1, got 0"),
        ("model.loss_weights.mask=-1", "model.loss_weights.mask must be at least 0, got -1"),
        ("optim.milestones=[9, 5]", "optim.milestones must ascend, got [9, 5]"),
        ("data.train_sizes_px=[]", "data.train_sizes_px must hold at least one size"),
        ("data.train_sizes_px=[2000]", "data.train_max_size_px (longer side) must be at least the shorter side, 2000"),
        ("data.train=[]", "data.train must hold at least one directory of shards, got none"),
        ("data.mix_weights=[1, 2]", "data.mix_weights must hold one weight for each of data.train, 1, got 2"),
        ("data.mix_weights=[0]", "data.mix_weights must hold a weight above 0, got only zeros"),
        ("data.mix_weights=[-1]", "data.mix_weights must be at least 0, got -1"),
        ("train.name=../x", "train.name must be a plain directory name, got '../x'"),
        ("cluster.workers=3", "16 images do not divide over 3 workers; set train.batch_images to a multiple of 3"),
    ],
)
def test_values_out_of_range(override, said):
    assert said in message(override)


def test_ranges_hold_without_yaml_too():
    with pytest.raises(ValueError, match="freeze_stages must be at least 0 and at most 5, got 6"):
        TrunkConfig(freeze_stages=6)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0\nnms_iou must be"):
        BoxConfig(hidden=0, nms_iou=-1.0)


def test_all_problems_come_together_with_where_they_are(tmp_path):
    write(tmp_path / "base.yaml", "optim:\n  lr: fast\n  zzz: 3\n")
    path = write(tmp_path / "run.yaml", "base: base.yaml\n\ntrain:\n  steps: 0\n  step: 7\ntrain.seed: 1\n")
    lines = message(
        "model.trunk.body=r50", "model.box.hidden=0", "data.augment.flip_probability=.nan", path=path
    ).splitlines()
    assert lines[0] == "8 problems in the configuration:"
    told = "\n".join(lines)
    for said in (
        f'optim.lr must be a number, got "fast" ({tmp_path}/base.yaml:2)',
        f"optim.zzz is not a key; optim has lr, lr_batch_images, momentum, weight_decay, weight_decay_norm, "
        f"weight_decay_bias, warmup_steps, warmup_factor, milestones, gamma, clip_norm, lr_factors, layer_decay, "
        f"freeze, probe_steps ({tmp_path}/base.yaml:3)",
        f"train.steps must be at least 1, got 0 ({path}:4)",
        f"train.step is not a key; did you mean train.steps? ({path}:5)",
        f"train.seed is not a key; in a file, write one level a line, indented, instead of dots ({path}:6)",
        "model.trunk.body must be one of",
        "model.box.hidden must be at least 1, got 0 (override model.box.hidden=0)",
        "data.augment.flip_probability must be finite",
    ):
        assert said in told


def test_a_value_that_was_replaced_is_not_a_problem(tmp_path):
    path = write(tmp_path / "a.yaml", "train:\n  steps: .nan\n")
    assert load_config(path, ["train.steps=3"]).train.steps == 3


def test_it_is_an_error_of_the_user():
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)


# --- writing


NASTY = [
    "on",
    "1e-4",
    "null",
    "~",
    "",
    "true",
    "010",
    "0o7",
    "1_000",
    "1:30",
    "2024-01-01",
    " x ",
    "a: b",
    "# no",
    "'",
    '"',
]
NASTY += [
    "- a",
    "*a",
    "&a",
    "!t",
    "{a}",
    "[a]",
    "ü",
    "日本",
    "😀",
    "a\nb",
    "a\\b",
    "\t",
    "\x85",
    ".inf",
    "=",
    "<<",
    "---",
    "%",
    "@",
    "`",
    "x" * 500,
]


@pytest.mark.parametrize("text", NASTY)
def test_every_text_survives_the_round_trip(text):
    config = RunConfig(data=DataConfig(train=text, val=text), init=InitConfig(weights=text))
    assert from_yaml_text(to_yaml(config)) == config


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(model=ModelConfig(mask=None), train=TrainConfig(name="a", seed=2**40)),
        RunConfig(optim=OptimConfig(lr=1e-300, weight_decay=0.1 + 0.2, milestones=(), clip_norm=1e22)),
        RunConfig(cluster=ClusterConfig(gpus_per_worker=0.5, workers=8, address="ray://head:10001")),
    ],
)
def test_round_trip(config, tmp_path):
    text = to_yaml(config)
    assert from_yaml_text(text) == config
    assert load_config(write(tmp_path / "resolved.yaml", text)) == config
    assert to_yaml(from_yaml_text(text)) == text
    assert "&" not in text
    assert "!" not in text


def test_order_of_keys_is_that_of_the_dataclasses():
    def leaves(section: Any, prefix: str = "") -> list[str]:
        keys: list[str] = []
        for field in fields(section):
            value = getattr(section, field.name)
            keys += leaves(value, f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
        return keys

    cascade = BoxConfig(class_agnostic=True, cascade=CascadeConfig())
    model = ModelConfig(box=cascade, keypoint=KeypointConfig())
    evaluate = EvaluateConfig(tta=TTAConfig(), during_training=DuringTrainingConfig())
    whole = RunConfig(model=model, init=InitConfig(transfer=TransferConfig()), evaluate=evaluate)
    assert known_keys() == leaves(whole)
    assert list(to_dict(RunConfig())) == [field.name for field in fields(RunConfig)]
    lines = to_yaml(whole).splitlines()
    assert lines[0] == "model:"
    assert [line.split(":")[0].strip() for line in lines if not line.endswith(":")] == [
        key.rpartition(".")[2] for key in known_keys()
    ]


def test_to_dict_is_plain_and_does_not_share(tmp_path):
    plain = to_dict(RunConfig())
    assert plain["data"]["train_sizes_px"] == [640, 672, 704, 736, 768, 800]
    plain["data"]["train_sizes_px"].append(1)
    assert to_dict(RunConfig())["data"]["train_sizes_px"][-1] == 800
