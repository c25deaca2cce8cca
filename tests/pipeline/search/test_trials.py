"""Trials as files, what comes next, what stops them, and how they are shown."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.config import RunConfig
from pipeline.configure import load_config
from pipeline.search import candidates
from pipeline.search.candidates import Listed, Tpe, batches
from pipeline.search.plots import (
    axis,
    comparable,
    cost_plot,
    importance_plot,
    importances,
    parallel_coordinates,
    pareto,
)
from pipeline.search.results import live_table, results_table, short_names, write_best, write_csv
from pipeline.search.settings import Search, TuneConfig
from pipeline.search.space import SpaceError, read_space
from pipeline.search.trials import (
    Outcome,
    Progress,
    Report,
    Trial,
    Why,
    best,
    candidate,
    ranked,
    read_trials,
    write_candidates,
    write_outcome,
    write_progress,
)

BASE = ["model.trunk.body=resnet18", "model.trunk.norm=bn"]
TREE = {
    "model.trunk.neck": {"choice": ["fpn", "c5"]},
    "model.trunk.fpn_channels": {"choice": [64, 128], "when": {"model.trunk.neck": "fpn"}},
    "optim.lr": {"log_uniform": [0.001, 0.1]},
}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(None, BASE)


def trial(
    config: RunConfig,
    number: int,
    scores: list[float],
    why: Why | None = "finished",
    seconds: float = 10.0,
    note: str = "",
    **settings: Any,
) -> Trial:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    reports = tuple(Report(2 * (i + 1), seconds * (i + 1), score) for i, score in enumerate(scores))
    progress = Progress(reports, seconds * max(len(scores), 1), 1, f"run{number}")
    return Trial(candidate(number, named, config), progress, None if why is None else Outcome(why, note))


# --- files


def test_what_is_written_is_read(config: RunConfig, tmp_path: Path) -> None:
    written = [
        trial(config, 0, [0.1, 0.3], optim__lr=0.01),
        trial(config, 1, [], "failed", note="Traceback\nRuntimeError: gone", optim__lr=0.1),
        trial(config, 10, [0.2], None, model__rpn__anchors__ratios=[1.0]),
    ]
    for one in written:
        number = one.candidate.number
        write_candidates(tmp_path, [one.candidate])
        write_progress(tmp_path, number, one.progress)
        if one.outcome is not None:
            write_outcome(tmp_path, number, one.outcome)
    assert read_trials(tmp_path) == written
    assert read_trials(tmp_path)[0].candidate.config == config
    waiting = candidate(11, {}, config)
    write_candidates(tmp_path, [waiting])
    assert read_trials(tmp_path)[-1] == Trial(waiting, Progress(), None)


def test_the_best_is_one_that_ended_well(config: RunConfig) -> None:
    trials = [
        trial(config, 0, [0.1, 0.3]),
        trial(config, 1, [0.9], "diverged"),
        trial(config, 2, [0.8], "failed"),
        trial(config, 3, [0.5], None),
        trial(config, 4, [0.4], "stopped early"),  # others had more after as many steps
    ]
    found = best(trials)
    assert found is not None and found.name == "trial_000"
    assert trials[1].score == 0.0 and math.isnan(trials[2].score)
    assert [one.candidate.number for one in ranked(trials)] == [3, 0, 4, 1, 2]
    assert best(trials[1:3]) is None and best([]) is None


# --- what comes next


def test_listed_trials_come_once() -> None:
    config = load_config(None)
    source = Listed([candidate(number, {}, config) for number in (3, 5)])
    found = [source.next(), source.next(), source.next()]
    assert [None if one is None else one.number for one in found] == [3, 5, None]


def searched(config: RunConfig, trials: int) -> Search:
    return Search(TuneConfig(trials=trials, search="tpe"), config, read_space(TREE, config, "space"), TREE)


def ap(settings: dict[str, Any]) -> float:
    """Best at a learning rate of 0.01 with FPN."""
    return max(
        0.0, 0.5 - 0.2 * abs(math.log10(settings["optim.lr"]) + 2) - 0.2 * (settings["model.trunk.neck"] == "c5")
    )


def test_tpe_learns_which_settings_are_good(config: RunConfig) -> None:
    source = Tpe(searched(config, 40))
    scores = []
    while (one := source.next()) is not None:
        assert ("model.trunk.fpn_channels" in one.settings) == (one.settings["model.trunk.neck"] == "fpn")
        assert one.number == len(scores) and one.config.optim.lr == one.settings["optim.lr"]
        scores.append(ap(one.settings))
        source.tell(one.number, math.nan if one.number == 2 else scores[-1])
    assert len(scores) == 40
    assert sum(scores[20:]) / 20 > sum(scores[:10]) / 10 + 0.05


def test_tpe_asks_again_where_settings_do_not_go_together(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The longer side may be chosen below the shorter one, which no check of random settings has to find."""
    tree = {
        "data.train_max_size_px": {"int": [800, 1400]},
        "data.train_sizes_px": {"choice": [[500], [1200]]},
    }
    source = Tpe(Search(TuneConfig(trials=12, search="tpe"), config, read_space(tree, config, "space"), tree))
    numbers = []
    while (one := source.next()) is not None:
        assert one.config.data.train_max_size_px >= one.config.data.train_sizes_px[0]
        numbers.append(one.number)
        source.tell(one.number, 1 / one.settings["data.train_max_size_px"])  # towards what does not go together
    assert numbers == list(range(12))
    states = [trial.state.name for trial in source._study.trials]
    assert states.count("COMPLETE") == 12 and states.count("FAIL") == len(states) - 12 > 0

    def refuse(*_: Any) -> RunConfig:
        raise SpaceError("never")

    monkeypatch.setattr(candidates, "_checked", refuse)
    assert Tpe(searched(config, 3)).next() is None and "none goes together: never" in caplog.text


def test_resources_are_for_every_batch_of_a_space(config: RunConfig) -> None:
    def sizes(spec: dict[str, Any], **other: Any) -> list[int]:
        tree = {"train.batch_images": spec, **other}
        return batches(Search(TuneConfig(search="tpe"), config, read_space(tree, config, "space"), tree))

    own = config.train.batch_images
    assert sizes({"int": [4, 8]}) == [4, 5, 6, 7, 8]
    assert sizes({"choice": [4, 8, 12]}) == [4, 8, 12] and sizes({"choice": [8]}) == [8]
    neck = {"model.trunk.neck": {"choice": ["fpn", "c5"]}}
    assert sizes({"choice": [4], "when": {"model.trunk.neck": "c5"}}, **neck) == [4, own]
    assert batches(searched(config, 1)) == [own]


def test_tpe_goes_on_where_it_was(config: RunConfig) -> None:
    """Trials that ended are known and not asked for again, one that did not comes first, numbers go on."""
    search = searched(config, 14)
    source, earlier = Tpe(search), []
    for _ in range(12):
        one = source.next()
        assert one is not None
        ended = one.number != 7
        score = ap(one.settings)
        outcome = Outcome("diverged" if one.number == 3 else "finished") if ended else None
        earlier.append(Trial(one, Progress((Report(2, 1.0, score),), 1.0, 1), outcome))
        source.tell(one.number, score)
    again = Tpe(search, earlier)
    assert len(again._study.trials) == 11
    values = {round(t.value, 9) for t in again._study.trials}
    assert values == {round(one.score, 9) for one in earlier if one.outcome is not None}
    first = again.next()
    assert first == earlier[7].candidate
    again.tell(7, 0.3)
    left = []
    while (one := again.next()) is not None:
        left.append(one.number)
        again.tell(one.number, 0.1)
    assert left == [12, 13]


# --- how they are shown


@pytest.fixture
def trials(config: RunConfig) -> list[Trial]:
    def settings(neck: str, lr: float, channels: int | None = None) -> dict[str, Any]:
        same = {"model__trunk__neck": neck, "optim__lr": lr, "optim__momentum": 0.9}
        return same if channels is None else same | {"model__trunk__fpn_channels": channels}

    return [
        trial(config, 0, [0.10, 0.21], seconds=10, **settings("fpn", 0.01, 64)),
        trial(config, 1, [0.12, 0.34], seconds=20, **settings("fpn", 0.02, 128)),
        trial(config, 2, [0.05], "stopped early", seconds=4, **settings("c5", 0.1)),
        trial(config, 3, [0.15], "diverged", seconds=3, note="not finite", **settings("c5", 0.9)),
        trial(config, 4, [], "failed", note="Traceback ...\nOSError: disk full", **settings("fpn", 0.002, 64)),
    ]


def test_the_table(trials: list[Trial]) -> None:
    text = printed(results_table(trials, "mask/AP", "a search"), 140)
    rows = [" ".join(line.split()) for line in text.splitlines()[3:]]
    assert rows == [  # by AP
        "1 34.0 4 0:40 finished neck=fpn lr=0.02 fpn_channels=128",
        "0 21.0 4 0:20 finished neck=fpn lr=0.01 fpn_channels=64",
        "2 5.0 2 0:04 stopped early neck=c5 lr=0.1",
        "3 0.0 2 0:03 diverged neck=c5 lr=0.9",
        "4 - 0 0:10 failed neck=fpn lr=0.002 fpn_channels=64",
        "OSError: disk full",
    ]  # and no momentum: it is the same in all


def printed(table: Table, width: int) -> str:
    text = io.StringIO()
    Console(width=width, file=text).print(table)
    return text.getvalue()


def many(config: RunConfig, count: int) -> list[Trial]:
    """Trials of 12 settings each: of each five one runs, one waits, the others have ended."""
    whys: tuple[Why | None, ...] = (None, "finished", "stopped early", "failed", None)
    made = []
    for number in range(count):
        named = {f"model__trunk__a_long_name_{place}": place + number / 1000 for place in range(11)}
        named |= {"model__rpn__anchors__sizes_px": [number + 16.5, 32.5, 64.5, 128.5, 256.5]}
        why = whys[number % 5]
        one = trial(config, number, [0.01 * number], why, 3700.0, "OSError: disk full", **named)
        waits = number % 5 == 4
        made.append(replace(one, progress=Progress()) if waits else one)
    return made


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_last_table_has_every_setting_and_number_whole(width: int, config: RunConfig) -> None:
    made = many(config, 10)
    text = printed(results_table(made, "mask/AP", "a search"), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    settings = " ".join(text.split())
    for one in made:
        for key, value in one.candidate.settings.items():
            name = key.rpartition(".")[2]
            for number in value if isinstance(value, list) else [value]:
                assert (f" {name}={number} " if number is value else f"{number}") in settings, (name, number)
    assert settings.count("1:01:40") == 8 and settings.count("OSError: disk full") == 2 and " 1.0 " in settings


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_live_table_is_a_line_a_trial_and_fits_a_terminal(width: int, config: RunConfig) -> None:
    def lines(count: int, height: int) -> list[str]:
        title = "backbone_and_loss-20261125-010203: 9/16 trials have ended"
        return printed(live_table(many(config, count), "mask/AP", title, height), width).splitlines()

    found = lines(16, 24)
    assert len(found) < 24 and max(map(len, found)) <= width
    assert [int(line.split()[0]) for line in found[3:]] == [
        *(15, 10, 5, 0),  # run, by AP
        *(11, 6, 1),  # ended well
        *(12, 7, 2),  # stopped
        *(3, 8, 13),  # failed
        *(4, 9, 14),  # wait
    ]
    assert found[3].split()[:5] == ["15", "15.0", "2", "1:01:40", "running"] and found[3].rstrip().endswith("…")
    several = lines(100, 24)
    assert len(several) == 22 and several[-1].split()[:4] == ["...", "82", "more:", "2"]
    assert "2 running, 20 finished, 20 stopped early" in several[-1] or width == 80


def test_the_numbers_of_a_narrow_range_are_told_apart(config: RunConfig) -> None:
    text = printed(
        results_table([trial(config, n, [0.1], optim__momentum=0.999 + n * 1e-6) for n in (1, 2)], "a", "b"), 80
    )
    assert "momentum=0.999001" in text and "momentum=0.999002" in text


def test_short_names_tell_keys_apart() -> None:
    keys = ["model.box.norm", "model.mask.norm", "optim.lr", "model.trunk.norm_eps"]
    assert list(short_names(keys).values()) == ["box.norm", "mask.norm", "lr", "norm_eps"]


def test_csv_has_every_digit(trials: list[Trial], tmp_path: Path) -> None:
    write_csv(trials, "mask/AP", tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mask/AP"] for row in rows] == ["0.21", "0.34", "0.05", "0.0", ""]
    assert rows[2]["model.trunk.fpn_channels"] == "" and rows[1]["optim.lr"] == "0.02"
    assert [row["stopped"] for row in rows] == ["finished", "finished", "stopped early", "diverged", "failed"]


def test_the_best_configuration_trains(config: RunConfig, tmp_path: Path) -> None:
    changed = load_config(None, [*BASE, "optim.lr=0.03", "train.name=trial", "cluster.runs_dir=x/trials"])
    write_best(trial(changed, 4, [0.5], optim__lr=0.03), "mask/AP", config, "a", tmp_path / "best.yaml")
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# trial_004 of the search a: mask/AP 50.0 after 2 steps.\n#   lr=0.03\n")
    again = load_config(tmp_path / "best.yaml")
    assert again.optim.lr == 0.03 and again.train.name is None and again.cluster == config.cluster


def test_axes() -> None:
    log = axis("lr", [0.001, 0.01, 0.1, ""])
    assert log.heights[:3] == pytest.approx((0, 0.5, 1)) and log.heights[3] is None
    assert [label for _, label in log.ticks] == ["0.001", "0.01", "0.1"]
    chosen = axis("roi_size", [7, 14, 7, 28])
    assert chosen.ticks == ((0.0, "7"), (pytest.approx(1 / 3), "14"), (1.0, "28"))  # no value between
    assert len(axis("lr", [0.01, 0.02, 0.03, 0.04, 0.05]).ticks) == 3
    assert axis("same", [3, 3]).ticks == ((0.0, "3"),)
    assert axis("steps", [10, 20, 15]).heights == (0.0, 1.0, 0.5)
    words = axis("norm", ["gn", "bn", None, "gn"])
    assert words.heights == (0.0, 0.5, 1.0, 0.0) and words.ticks[2] == (1.0, "null")
    assert axis("one", [3.0, 3.0]).heights == (0.0, 0.0)


def test_importance_finds_what_matters_and_leaves_out_what_cannot_be_judged(config: RunConfig) -> None:
    made = []
    for number in range(24):
        lr, warmup, neck = (0.01, 0.02, 0.05)[number % 3], 10 * (number // 3), ("fpn", "c5")[number % 2]
        extra = {"model__trunk__fpn_channels": 64 + number} if neck == "fpn" else {}
        later = [0.9] if number % 5 == 0 else []  # what trained longer is no better for it
        made.append(trial(config, number, [5 * lr, *later], optim__lr=lr, optim__warmup_steps=warmup, **extra))
    found = importances(made)
    assert list(found) == ["optim.lr", "optim.warmup_steps"] and found["optim.lr"] > 0.9
    assert importances(made[:3]) == {}
    assert importances([trial(config, n, [0.2], optim__lr=0.1 * n) for n in range(6)]) == {}


def test_trials_are_compared_after_equal_steps(config: RunConfig, trials: list[Trial]) -> None:
    step, scored = comparable(trials)
    assert step == 2 and [score for _, score in scored] == [0.10, 0.12, 0.05, 0.0]  # one diverged, one failed
    assert comparable(trials[:2])[0] == 4
    assert comparable(trials[3:]) == (0, []) == comparable([])


def test_pareto(trials: list[Trial]) -> None:
    assert [one.candidate.number for one in pareto(trials)] == [3, 2, 0, 1]  # 3 s, 4 s, 20 s, 40 s


def test_plots_are_pictures(trials: list[Trial], config: RunConfig, tmp_path: Path) -> None:
    parallel_coordinates(trials, "mask/AP", tmp_path / "p.png")
    cost_plot(trials, "mask/AP", tmp_path / "c.png")
    assert importance_plot(trials, tmp_path / "i.png")
    parallel_coordinates(trials[4:], "mask/AP", tmp_path / "nothing.png")  # no AP at all
    cost_plot(trials[4:], "mask/AP", tmp_path / "nothing2.png")
    assert not importance_plot(trials[:2], tmp_path / "few.png") and not (tmp_path / "few.png").exists()
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            colours = image.convert("RGB").getcolors(1 << 24) or ()
            assert image.width > 300
            if path.stem in "pc":
                assert (255, 255, 255) in {colour for _, colour in colours} and len(colours) > 50
                assert any(colour == (192, 57, 43) for _, colour in colours), path  # the one that diverged
