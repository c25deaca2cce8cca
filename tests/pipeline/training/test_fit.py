"""What the driver does while Ray Train runs: where it resumes, what ends it at once, what stops it from outside."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import tiny_config

from pipeline.config import ClusterConfig, DataConfig, DuringTrainingConfig, OptimConfig, RunConfig, TrainConfig
from pipeline.data.ledger import read_ledger
from pipeline.errors import UserError
from pipeline.training.checkpoint import checkpoint_name
from pipeline.training.cluster import Layout
from pipeline.training.evaluations import best_checkpoint
from pipeline.training.placement import plan_evaluation
from pipeline.training.run import Event, NotTrainableError, fit, prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

ONE = Layout(1, 0.0, 1.0)
TWO = Layout(2, 0.0, 1.0)


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=tiny_config(classes=None),
        data=DataConfig(
            train=str(shapes / "train"),
            val=str(shapes / "val"),
            train_sizes_px=(64,),
            train_max_size_px=96,
            test_size_px=64,
            test_max_size_px=96,
        ),
        optim=OptimConfig(lr=0.001, warmup_steps=0, milestones=()),
        train=TrainConfig(name="fits", steps=4, batch_images=4, precision="float32", checkpoint_every_steps=2),
        cluster=ClusterConfig(runs_dir=str(tmp_path / "runs")),
    )


def kinds(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


def test_it_resumes_at_the_newest_checkpoint_that_lies_there_though_it_was_never_reported(config: RunConfig) -> None:
    events: list[Event] = []
    run = prepare(config, "x")
    assert fit(run, ONE, None, events.append) == run.directory / checkpoint_name(4)
    known = run.directory / "checkpoint_manager_snapshot.json"
    known.unlink()  # as if all was killed between writing the checkpoint and reporting it
    longer = replace(config, train=replace(config.train, steps=6, keep_checkpoints=1))
    again = prepare(longer, "x")
    assert again.done == 4
    assert fit(again, TWO, None, events.append) == run.directory / checkpoint_name(6)
    assert [(event["step"], event["world"]) for event in kinds(events, "start")] == [(0, 1), (4, 2)]
    assert [(attempt.start, attempt.end, attempt.world) for attempt in read_ledger(run.directory)] == [
        (0, 4, 1),
        (4, 6, 2),
    ]
    # Ray Train was told of step 4, so it could delete it when step 6 came.
    assert not (run.directory / checkpoint_name(4)).exists() and known.exists()


def test_steps_that_are_never_finite_end_the_run_at_once(config: RunConfig) -> None:
    events: list[Event] = []
    optim = replace(config.optim, lr=1e30)
    train = replace(config.train, steps=50, max_bad_steps=2)
    run = prepare(replace(config, optim=optim, train=train), "x")
    assert run.config.cluster.max_failures == 3
    with pytest.raises(NotTrainableError, match=r"not finite for 2 steps in a row .* lower optim\.lr") as caught:
        fit(run, TWO, None, events.append)
    assert isinstance(caught.value, UserError)
    assert len(kinds(events, "start")) == 1 and not kinds(events, "failure")  # it was not tried again
    assert {event["rank"] for event in kinds(events, "not_finite")} == {0, 1}


def test_checkpoints_are_evaluated_while_training_goes_on_and_it_stops_when_they_get_no_better(
    config: RunConfig,
) -> None:
    events: list[Event] = []
    during = DuringTrainingConfig(every_steps=2, max_images=4, patience=1, cpus_per_worker=0.5)
    config = replace(
        config,
        optim=replace(config.optim, lr=0.0),  # nothing gets better
        train=replace(config.train, steps=100_000, keep_checkpoints=1),
        evaluate=replace(config.evaluate, pictures=1, during_training=during),
    )
    run = prepare(config, "x")
    last = fit(run, Layout(1, 0.0, 0.5), None, events.append, plan_evaluation(during))
    assert not kinds(events, "evaluation_failure")
    evaluated = kinds(events, "evaluated")
    steps = [event["step"] for event in evaluated]
    assert steps == sorted(set(steps)) and len(steps) >= 2
    assert kinds(events, "not_evaluated")  # steps are faster than evaluations, and those do not pile up
    (stopped,) = kinds(events, "stopped_early")
    assert last == run.directory / checkpoint_name(stopped["step"]) and stopped["step"] < 100_000
    assert all(set(event["aps"]) == {"box", "mask"} for event in evaluated)
    assert all((event["directory"] / "pictures/overview.png").is_file() for event in evaluated)
    # Weights that do not move score the same; one that was evaluated is kept beside the newest.
    assert len({event["aps"]["box"].stats["AR_100"] for event in evaluated}) == 1
    best = best_checkpoint(run.directory, during)
    assert best in [run.directory / checkpoint_name(step) for step in steps]
    assert {path for path in run.directory.glob("step_*")} <= {best, last}  # the one in between was deleted


class TrackingIsDownError(Exception):
    pass


def fail() -> None:
    raise TrackingIsDownError("the tracking server is gone")


@pytest.mark.parametrize(
    ("what", "ends_with"),
    [(fail, TrackingIsDownError), (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt)],
)
def test_what_fails_beside_training_and_ctrl_c_stop_the_run(
    config: RunConfig, what: Callable[[], None], ends_with: type[BaseException]
) -> None:
    def on_event(event: Event) -> None:
        if event["kind"] == "metrics" and event["step"] == 2:
            what()

    before = signal.getsignal(signal.SIGINT)
    endless = replace(config.train, steps=1_000_000, log_every_steps=2, checkpoint_every_steps=1_000_000)
    run = prepare(replace(config, train=endless), "x")
    begun = time.monotonic()
    with pytest.raises(ends_with):
        fit(run, ONE, None, on_event)
    assert time.monotonic() - begun < 120
    assert signal.getsignal(signal.SIGINT) == before
    (attempt,) = read_ledger(run.directory)
    time.sleep(3)
    assert read_ledger(run.directory) == [attempt]  # nobody trains on
