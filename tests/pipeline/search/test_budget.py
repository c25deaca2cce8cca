"""Resources: never more than the cluster has, and no trial waits for ever for another's."""

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.config import ClusterConfig, Decode, DuringTrainingConfig
from pipeline.ray_cluster import ClusterError
from pipeline.search.budget import Budget, plan_trials
from pipeline.training.cluster import Layout
from pipeline.training.placement import Resources, plan_evaluation, plan_workers, shortage

LAPTOP: list[Resources] = [{"CPU": 2.0}]
DURING = DuringTrainingConfig(cpus_per_worker=0.5)


def plan(
    cluster: list[Resources],
    config: ClusterConfig,
    during: DuringTrainingConfig = DURING,
    concurrent: int | None = None,
    batch: int = 8,
    trials: int = 16,
) -> Budget:
    return plan_trials(cluster, config, during, batch, "worker", concurrent, trials)


def test_a_laptop() -> None:
    alone = plan(LAPTOP, ClusterConfig())
    assert alone == Budget(1, Layout(1, 0.0, 1.0), Layout(1, 0.0, 0.5))
    two = plan(LAPTOP, ClusterConfig(workers=2, cpus_per_worker=0.25))
    assert two == Budget(2, Layout(2, 0.0, 0.25), Layout(1, 0.0, 0.5))
    assert str(two) == "2 trials at once, each 2 x 0.25 CPU, and 1 x 0.5 CPU to evaluate"
    assert plan(LAPTOP, ClusterConfig(), concurrent=2).workers == Layout(1, 0.0, 0.5)
    assert plan(LAPTOP, ClusterConfig(workers=1, cpus_per_worker=0.1), trials=3).concurrent == 3


def test_many_cores_and_little_memory() -> None:
    """A laptop of eight cores and 16 GB must not start eight trainings."""
    config = ClusterConfig(workers=1, cpus_per_worker=0.5)
    assert plan([{"CPU": 8.0}], config).concurrent == 8
    assert plan([{"CPU": 8.0, "memory": 9.5e9}], config).concurrent == 3
    assert plan([{"CPU": 8.0, "memory": 1e9}], config).concurrent == 1
    assert plan([{"CPU": 8.0, "memory": 9.5e9}], config, concurrent=5).concurrent == 5  # who asks for it gets it


def test_gpus() -> None:
    cluster: list[Resources] = [{"CPU": 32.0, "GPU": 8.0}]
    during = DuringTrainingConfig(gpus_per_worker=0.0)
    found = plan(cluster, ClusterConfig(workers=2), during)
    assert (found.concurrent, found.workers.workers, found.workers.gpus) == (4, 2, 1.0)
    found = plan(cluster, ClusterConfig(workers=2), DuringTrainingConfig())  # evaluators take a GPU each
    assert found.concurrent == 2 and found.evaluators.gpus == 1.0


@pytest.mark.parametrize(
    ("config", "concurrent", "message"),
    [
        (ClusterConfig(workers=2, cpus_per_worker=0.75), 2, "set tune.concurrent=1"),
        (ClusterConfig(workers=4, cpus_per_worker=1.0), None, "not even one trial fits on this cluster (2 CPUs"),
        (ClusterConfig(workers=2, gpus_per_worker=1.0), None, "the cluster has 0"),
        (ClusterConfig(workers=3), None, "does not divide over cluster.workers=3"),
    ],
)
def test_too_small_a_cluster_says_what_to_do(config: ClusterConfig, concurrent: int | None, message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        plan(LAPTOP, config, concurrent=concurrent)
    assert message in str(caught.value)


def test_a_worker_that_fits_on_no_node() -> None:
    cluster: list[Resources] = [{"CPU": 2.0}, {"CPU": 2.0}]
    with pytest.raises(ClusterError, match=r"1 workers with 3 CPU and 0 GPU each have no place: .* 2 x 2 CPUs"):
        plan(cluster, ClusterConfig(workers=1, cpus_per_worker=3.0))


def test_workers_that_lie_badly_leave_room_for_an_evaluator() -> None:
    """4 + 4 CPUs: workers of 3 on each node leave 1 and 1, which an evaluator of 2 cannot use."""
    cluster: list[Resources] = [{"CPU": 4.0}, {"CPU": 4.0}]
    workers, evaluators = Layout(1, 0.0, 3.0), Layout(1, 0.0, 2.0)
    assert shortage(cluster, workers, evaluators, 2) is not None
    assert shortage(cluster, workers, evaluators, 1) is None


# --- a cluster whose nodes differ

HEAD: Resources = {"CPU": 4.0}
ONE: Resources = {"CPU": 16.0, "GPU": 1.0}
EIGHT: Resources = {"CPU": 96.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("cluster", "config", "concurrent", "expected"),
    [
        ([HEAD, ONE], ClusterConfig(), None, (1, Layout(1, 1.0, 16.0), 0.0)),
        ([ONE, ONE], ClusterConfig(), None, (1, Layout(1, 1.0, 16.0), 1.0)),
        ([HEAD, EIGHT], ClusterConfig(), None, (1, Layout(4, 1.0, 23.0), 1.0)),
        ([HEAD, EIGHT], ClusterConfig(workers=2), None, (2, Layout(2, 1.0, 23.0), 1.0)),
        ([HEAD, ONE, ONE, ONE, ONE], ClusterConfig(), None, (1, Layout(2, 1.0, 16.0), 1.0)),
        ([{"CPU": 8.0}] * 3, ClusterConfig(workers=1), 2, (2, Layout(1, 0.0, 8.0), 0.0)),
        # evaluators are on CPUs only where there is no room for them on GPUs
        ([EIGHT], ClusterConfig(workers=1), None, (4, Layout(1, 1.0, 23.0), 1.0)),
        ([EIGHT], ClusterConfig(workers=1), 8, (8, Layout(1, 1.0, 11.0), 0.0)),
        ([{"CPU": 16.0, "GPU": 2.0}], ClusterConfig(workers=2), None, (1, Layout(2, 1.0, 7.0), 0.0)),
    ],
)
def test_nodes_that_differ(
    cluster: list[Resources], config: ClusterConfig, concurrent: int | None, expected: tuple[int, Layout, float]
) -> None:
    found = plan(cluster, config, DuringTrainingConfig(), concurrent, batch=16)
    assert (found.concurrent, found.workers, found.evaluators.gpus) == expected


@pytest.mark.parametrize(
    ("cluster", "config", "during", "concurrent", "message"),
    [
        (  # of the whole cluster, and names the evaluators' GPU
            [{"CPU": 16.0, "GPU": 2.0}],
            ClusterConfig(workers=2),
            DuringTrainingConfig(gpus_per_worker=1.0),
            None,
            r"not even one trial .* 2 workers with 1 GPU each need 2 GPUs, the cluster has 2, of which 1 are the "
            r"evaluators'; lower .*, or set .* evaluate\.during_training\.gpus_per_worker=0",
        ),
        ([HEAD, ONE], ClusterConfig(), DuringTrainingConfig(), 2, r"need 2 GPUs, the cluster has 1; .*concurrent=1"),
        (
            [{"CPU": 2.0}] * 2,
            ClusterConfig(workers=1),
            DuringTrainingConfig(cpus_per_worker=3.0),
            None,
            r"no node has 3 CPU for one evaluator, they have 2 x 2 CPUs and 0 GPUs; lower cpus_per_worker",
        ),
    ],
)
def test_what_does_not_fit_says_what_of_the_whole_cluster(
    cluster: list[Resources], config: ClusterConfig, during: DuringTrainingConfig, concurrent: int | None, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        plan(cluster, config, during, concurrent, batch=16)


@pytest.mark.parametrize("concurrent", [1, 2])
def test_tasks_that_decode_are_small(concurrent: int) -> None:
    """One trial has more of them, not larger ones."""
    cluster: list[Resources] = [{"CPU": 4.0}, {"CPU": 4.0}]
    found = plan_trials(cluster, ClusterConfig(workers=2), DuringTrainingConfig(), 8, "cluster", concurrent, 16)
    assert found.concurrent == concurrent


# --- any cluster

NODES = st.lists(
    st.builds(lambda c, g: {"CPU": float(c), "GPU": float(g)}, st.integers(1, 16), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)
GPUS = st.sampled_from([None, None, 0.0, 0.5, 1.0])
SHARES = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])


@settings(deadline=None, max_examples=400)
@given(
    cluster=NODES,
    config=st.builds(
        ClusterConfig, workers=st.none() | st.integers(1, 4), cpus_per_worker=st.none() | SHARES, gpus_per_worker=GPUS
    ),
    during=st.builds(DuringTrainingConfig, workers=st.integers(1, 2), cpus_per_worker=SHARES, gpus_per_worker=GPUS),
    decode=st.sampled_from(["worker", "worker", "cluster"]),
    concurrent=st.none() | st.integers(1, 6),
    trials=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_never_more_than_the_cluster_and_nothing_waits_for_ever(
    cluster: list[Resources],
    config: ClusterConfig,
    during: DuringTrainingConfig,
    decode: Decode,
    concurrent: int | None,
    trials: int,
    seed: int,
) -> None:
    try:
        found = plan_trials(cluster, config, during, 12, decode, concurrent, trials)
    except ClusterError:
        assume(False)
        raise
    workers, evaluators = found.workers, found.evaluators
    for kind in ("CPU", "GPU"):
        each = sum(one.workers * one.resources.get(kind, 0.0) for one in (workers, evaluators))
        assert found.concurrent * each <= sum(node[kind] for node in cluster) + 1e-6
    assert 1 <= found.concurrent <= trials and (concurrent is None or found.concurrent == min(concurrent, trials))
    # Whatever order and nodes Ray chooses for the workers, a trial that waits for an evaluator gets one, and so does
    # one that waits for a decoded batch.
    rng = Random(seed)
    free = [dict(node) for node in cluster]

    def places(needs: Resources) -> list[dict[str, float]]:
        return [node for node in free if all(node[kind] + 1e-6 >= amount for kind, amount in needs.items())]

    for _ in range(found.concurrent * workers.workers):
        possible = places(workers.resources)
        if not possible:  # this trial waits, and holds nothing
            break
        node = rng.choice(possible)
        for kind, amount in workers.resources.items():
            node[kind] -= amount
    assert places(evaluators.resources)
    assert decode == "worker" or places({"CPU": workers.decode_task_cpus})


@settings(deadline=None, max_examples=300)
@given(
    cluster=NODES,
    config=st.builds(
        ClusterConfig, workers=st.none() | st.integers(1, 4), cpus_per_worker=st.none() | SHARES, gpus_per_worker=GPUS
    ),
    during=st.builds(DuringTrainingConfig, workers=st.integers(1, 2), cpus_per_worker=SHARES, gpus_per_worker=GPUS),
    decode=st.sampled_from(["worker", "cluster"]),
)
def test_a_search_has_room_wherever_one_training_has(
    cluster: list[Resources], config: ClusterConfig, during: DuringTrainingConfig, decode: Decode
) -> None:
    evaluators = plan_evaluation(during, cluster)
    try:
        expected = plan_workers(config, 12, decode, evaluators, cluster)
    except ClusterError:
        assume(False)
        raise
    assert plan_trials(cluster, config, during, 12, decode, 1, 16) == Budget(1, expected, evaluators)
    plan_trials(cluster, config, during, 12, decode, None, 16)
