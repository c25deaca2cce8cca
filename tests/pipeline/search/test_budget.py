"""Resources: never more than the cluster has, and no trial waits for ever for another's."""

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.config import ClusterConfig, DuringTrainingConfig
from pipeline.ray_cluster import ClusterError
from pipeline.search.budget import Budget, Resources, plan_trials, shortage
from pipeline.training.cluster import Layout

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
    with pytest.raises(ClusterError, match="no node is large enough for one worker, which takes 3 CPU"):
        plan(cluster, ClusterConfig(workers=1, cpus_per_worker=3.0))


def test_workers_that_lie_badly_leave_room_for_an_evaluator() -> None:
    """4 + 4 CPUs: workers of 3 on each node leave 1 and 1, which an evaluator of 2 cannot use."""
    cluster: list[Resources] = [{"CPU": 4.0}, {"CPU": 4.0}]
    budget = Budget(2, Layout(1, 0.0, 3.0), Layout(1, 0.0, 2.0))
    assert shortage(cluster, budget) is not None
    assert shortage(cluster, Budget(1, Layout(1, 0.0, 3.0), Layout(1, 0.0, 2.0))) is None


NODES = st.lists(
    st.builds(lambda c, g: {"CPU": float(c), "GPU": float(g)}, st.integers(1, 16), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)
SHARES = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])


@settings(deadline=None, max_examples=300)
@given(
    NODES,
    st.none() | st.integers(1, 4),
    st.none() | SHARES,
    SHARES,
    st.integers(1, 2),
    st.none() | st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 1000),
)
def test_never_more_than_the_cluster_and_evaluators_always_find_a_place(
    cluster: list[Resources],
    workers: int | None,
    cpus: float | None,
    evaluator_cpus: float,
    evaluators: int,
    concurrent: int | None,
    trials: int,
    seed: int,
) -> None:
    config = ClusterConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=0.0)
    during = DuringTrainingConfig(workers=evaluators, cpus_per_worker=evaluator_cpus, gpus_per_worker=0.0)
    try:
        found = plan(cluster, config, during, concurrent, batch=12, trials=trials)
    except ClusterError:
        assume(False)
        raise
    each = found.workers.workers * found.workers.cpus + found.evaluators.workers * found.evaluators.cpus
    assert found.concurrent * each <= sum(node["CPU"] for node in cluster) + 1e-6
    assert 1 <= found.concurrent <= trials and (concurrent is None or found.concurrent == min(concurrent, trials))
    # Whatever order and nodes Ray chooses for the workers, a trial that waits for an evaluator gets one.
    rng = Random(seed)
    free = [node["CPU"] for node in cluster]
    for _ in range(found.concurrent * found.workers.workers):
        places = [i for i, left in enumerate(free) if left + 1e-6 >= found.workers.cpus]
        if not places:  # this trial waits, and holds nothing
            break
        free[rng.choice(places)] -= found.workers.cpus
    assert max(free) + 1e-6 >= found.evaluators.cpus
