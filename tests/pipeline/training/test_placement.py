"""How many workers a cluster gets, and what it says when it cannot."""

import pytest
import ray
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import ClusterConfig, RunConfig
from pipeline.ray_cluster import ClusterError
from pipeline.training.cluster import (
    Layout,
    run_config,
    scaling_config,
    torch_config,
)
from pipeline.training.placement import plan_workers


def plan(config: ClusterConfig, batch: int, cpus: float, gpus: float = 0) -> Layout:
    return plan_on([(cpus, gpus)], config, batch)


def plan_on(nodes: list[tuple[float, float]], config: ClusterConfig, batch: int) -> Layout:
    """On nodes of so many CPUs and GPUs."""
    found = [{"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})} for cpus, gpus in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 1e3, "GPU": 1e3}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in found)])
        return plan_workers(config, batch)


@pytest.mark.parametrize(
    ("nodes", "config", "expected"),
    [
        ([(1, 0), (1, 0)], ClusterConfig(workers=1), Layout(1, 0.0, 1.0)),  # a worker lies on one node
        ([(8, 0), (8, 0)], ClusterConfig(workers=1), Layout(1, 0.0, 8.0)),
        ([(8, 0), (3, 0)], ClusterConfig(workers=2), Layout(2, 0.0, 4.0)),  # both on the larger one
        ([(8, 0), (6, 0)], ClusterConfig(workers=2), Layout(2, 0.0, 6.0)),
        ([(1, 0), (1, 0), (1, 0)], ClusterConfig(workers=4), Layout(4, 0.0, 0.5)),
        ([(4, 0), (8, 1)], ClusterConfig(), Layout(1, 1.0, 8.0)),  # a head without a GPU
        ([(16, 0), (8, 4), (8, 4)], ClusterConfig(), Layout(8, 1.0, 2.0)),
    ],
)
def test_workers_have_room_on_nodes(nodes: list[tuple[float, float]], config: ClusterConfig, expected: Layout) -> None:
    assert plan_on(nodes, config, 8) == expected


def test_workers_that_no_node_has_room_for() -> None:
    """Ray would wait for ever."""
    with pytest.raises(ClusterError, match="1 workers with 2 CPU and 0 GPU each have no place"):
        plan_on([(1, 0), (1, 0)], ClusterConfig(workers=1, cpus_per_worker=2.0), 8)
    with pytest.raises(ClusterError, match="2 GPU each have no place"):
        plan_on([(8, 1), (8, 1)], ClusterConfig(workers=1, gpus_per_worker=2.0), 8)


@pytest.mark.parametrize(
    ("cpus", "gpus", "batch", "expected"),
    [
        (1, 0, 8, Layout(1, 0.0, 1.0)),
        (2, 0, 8, Layout(2, 0.0, 1.0)),
        (3, 0, 8, Layout(2, 0.0, 1.0)),  # 3 do not divide 8
        (3, 0, 9, Layout(3, 0.0, 1.0)),
        (4, 0, 8, Layout(4, 0.0, 1.0)),
        (16, 0, 16, Layout(8, 0.0, 2.0)),  # no more than 8 without GPUs
        (64, 0, 16, Layout(8, 0.0, 8.0)),
        (16, 0, 7, Layout(7, 0.0, 2.0)),
        (16, 0, 1, Layout(1, 0.0, 16.0)),
        (8, 1, 16, Layout(1, 1.0, 8.0)),
        (64, 8, 16, Layout(8, 1.0, 8.0)),
        (64, 8, 12, Layout(6, 1.0, 10.0)),
        (4, 8, 16, Layout(8, 1.0, 0.5)),
        (256, 64, 16, Layout(16, 1.0, 16.0)),
    ],
)
def test_as_many_workers_as_the_cluster_serves(cpus: int, gpus: int, batch: int, expected: Layout) -> None:
    assert plan(ClusterConfig(), batch, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("config", "cpus", "gpus", "expected"),
    [
        (ClusterConfig(workers=2), 16, 0, Layout(2, 0.0, 8.0)),
        (ClusterConfig(workers=16), 16, 0, Layout(16, 0.0, 1.0)),  # more than 8 when asked for
        (ClusterConfig(workers=16), 2, 0, Layout(16, 0.0, 0.125)),  # and more than CPUs
        (ClusterConfig(gpus_per_worker=0), 16, 2, Layout(8, 0.0, 2.0)),
        (ClusterConfig(gpus_per_worker=0.5), 16, 2, Layout(4, 0.5, 4.0)),
        (ClusterConfig(workers=1, gpus_per_worker=2.0), 16, 2, Layout(1, 2.0, 16.0)),
        (ClusterConfig(cpus_per_worker=0.5), 2, 0, Layout(2, 0.0, 0.5)),
        (ClusterConfig(workers=4, cpus_per_worker=2.0), 16, 0, Layout(4, 0.0, 2.0)),
    ],
)
def test_what_the_configuration_says_is_kept(config: ClusterConfig, cpus: int, gpus: int, expected: Layout) -> None:
    assert plan(config, 16, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("config", "batch", "cpus", "gpus", "message"),
    [
        (
            ClusterConfig(workers=3),
            8,
            16,
            0,
            r"train\.batch_images=8 does not divide over cluster\.workers=3; use a multiple of 3 for the batch, or one "
            r"of \[1, 2, 4, 8\] workers",
        ),
        (
            ClusterConfig(workers=4),
            8,
            16,
            2,
            r"4 workers with 1 GPU each need 4 GPUs, the cluster has 2; lower cluster\.workers, or set "
            r"cluster\.gpus_per_worker=0",
        ),
        (ClusterConfig(gpus_per_worker=1.0), 8, 16, 0, r"1 workers with 1 GPU each need 1 GPUs, the cluster has 0"),
        (ClusterConfig(), 8, 0, 0, r"1 workers with 0 CPU each .* the cluster has 0; lower"),
        (
            ClusterConfig(workers=2, cpus_per_worker=1.5),
            8,
            2,
            0,
            r"2 workers with 1\.5 CPU each need 3 CPUs, the cluster has 2; lower cluster\.workers or "
            r"cluster\.cpus_per_worker",
        ),
    ],
)
def test_what_does_not_fit_says_how_it_would(
    config: ClusterConfig, batch: int, cpus: int, gpus: int, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        plan(config, batch, cpus, gpus)


@given(st.integers(1, 512), st.integers(1, 512))
@example(7, 25)  # 25 * (7 / 25) > 7 in float64
def test_the_default_share_of_a_worker_always_fits(cpus: int, workers: int) -> None:
    layout = plan(ClusterConfig(workers=workers), 64 * workers, cpus)
    assert layout.workers == workers
    assert workers * int(layout.cpus * 10_000) <= cpus * 10_000  # Ray counts in ten-thousandths
    assert layout.cpus < 1 or layout.cpus == int(layout.cpus)


def test_the_layout_for_ray() -> None:
    cpu, gpu = Layout(2, 0.0, 0.75), Layout(4, 1.0, 7.0)
    assert cpu.threads == 1 and gpu.threads == 7
    scaling = scaling_config(cpu)
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (2, False, {"CPU": 0.75})
    scaling = scaling_config(gpu)
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (4, True, {"CPU": 7.0, "GPU": 1.0})
    assert torch_config(cpu).backend == "gloo"
    assert torch_config(gpu).backend == "nccl"


def test_storage_and_failures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = run_config(RunConfig(cluster=ClusterConfig(max_failures=5)), tmp_path, "first")
    assert (made.name, made.storage_path) == ("first", str(tmp_path))
    assert made.failure_config.max_failures == 5
    assert made.checkpoint_config.num_to_keep == RunConfig().train.keep_checkpoints
