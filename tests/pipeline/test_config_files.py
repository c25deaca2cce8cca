"""The files in configs/: base.yaml documents every key, the others load."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.configure import from_yaml_text, known_keys, load_config, to_yaml
from pipeline.search.settings import TuneConfig, load_search
from pipeline.variants import load_table
from pipeline.yaml_core import parse

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = CONFIGS / "base.yaml"
TABLES = sorted(path for path in CONFIGS.rglob("*.yaml") if re.search("^rows:", path.read_text(encoding="utf-8"), re.M))
SEARCHES = sorted((CONFIGS / "tune").glob("*.yaml"))
CLUSTERS = sorted((CONFIGS / "cluster").glob("*.yaml"))  # of other programs
OTHERS = sorted({*CONFIGS.rglob("*.yaml")} - {BASE, *TABLES, *SEARCHES, *CLUSTERS})


def test_base_alone_is_the_defaults():
    assert load_config(BASE) == RunConfig()


def with_absent_sections(text):
    """What is null by default and a section otherwise is followed by its keys as comments: the section, written out."""
    text = re.sub(r"^( +\w+:) null(  # .*; its keys:)$", r"\1\2", text, flags=re.M)
    return re.sub(r"^( +)# (\w+: .*  # .*)$", r"\1\2", text, flags=re.M)


def test_absent_sections_are_written_with_their_defaults():
    sections = ("model.keypoint", "model.box.cascade", "init.transfer", "evaluate.tta", "evaluate.during_training")
    config = load_config(BASE, [*(f"{name}={{}}" for name in sections), "model.box.class_agnostic=true"])
    text = with_absent_sections(BASE.read_text(encoding="utf-8"))
    written = from_yaml_text(text.replace("class_agnostic: false", "class_agnostic: true"))
    assert written == config != RunConfig()


def test_base_names_every_key_in_order():
    origins = parse(with_absent_sections(BASE.read_text(encoding="utf-8")), "base.yaml").origins
    sections = {key.rpartition(".")[0] for key in origins}
    assert [key for key in origins if key not in sections] == known_keys()


def test_base_explains_every_key():
    bare = [
        line
        for line in with_absent_sections(BASE.read_text(encoding="utf-8")).splitlines()
        if re.match(r" +\w+: *[^ #]", line) and not re.search(r"  # \S", line)
    ]
    assert bare == []


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_other_files_start_from_base_and_say_what_to_expect(path):
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^base: (\S+/)?\w+\.yaml$", text, re.M)
    load_config(path)
    header = text.split("\nbase:")[0]
    assert "Launch:" in header
    assert "Expected:" in header


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_tables_of_variants_load(path):
    assert load_table(path).variants
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_coco_recipe_is_the_default():
    # but for what a user gives; printed so that a changed default shows up as a changed recipe
    assert to_yaml(load_config(CONFIGS / "coco/mask_rcnn_r50_fpn_1x.yaml")) == to_yaml(RunConfig())


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_searches_load_and_say_how_they_are_started(path):
    load_search(path)
    assert "Launch:" in path.read_text(encoding="utf-8").split("\nconfig:")[0]


def test_the_example_of_a_search_explains_every_key_with_its_default():
    text = (CONFIGS / "tune/backbone_and_loss.yaml").read_text(encoding="utf-8")
    written = parse(text, "example").value["tune"]
    assert list(written) == [field.name for field in fields(TuneConfig)] and TuneConfig(**written) == TuneConfig()
    section = text.partition("\ntune:\n")[2].partition("\n\n")[0]
    assert [line for line in section.splitlines() if re.match(r"  \w+:", line) and "  # " not in line] == []
