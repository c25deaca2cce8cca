"""How many trials fit on a cluster at once, and what each has: so many trainings that all have room side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.config import ClusterConfig, Decode, DuringTrainingConfig
from pipeline.ray_cluster import ClusterError
from pipeline.training.cluster import Layout
from pipeline.training.placement import Resources, plan_evaluation, plan_workers, total

_EPSILON = 1e-6
_TRIAL_MEMORY = 3e9  # bytes, at the least: a worker, an evaluator and the actors of Ray Train and Ray Tune


@dataclass(frozen=True)
class Budget:
    """What trials get."""

    concurrent: int  # at once
    workers: Layout  # of each, for training
    evaluators: Layout  # of each, beside them

    def __str__(self) -> str:
        at_once = f"{self.concurrent} trial{'s' if self.concurrent > 1 else ''} at once"
        return f"{at_once}, each {self.workers}, and {self.evaluators} to evaluate"


def plan_trials(
    cluster: Sequence[Resources],
    config: ClusterConfig,
    during: DuringTrainingConfig,
    batch_images: int,
    decode: Decode,
    concurrent: int | None,
    trials: int,
) -> Budget:
    """The largest budget that fits, with `concurrent` trials at once if that is given.

    Without cluster.workers a trial has an equal share of the cluster; of one trial at a time that is all of it. Where
    evaluate.during_training does not say whether evaluators have GPUs, they have if there is room for them.

    Args:
        cluster: what each node has.
        config: cluster.workers, gpus_per_worker and cpus_per_worker are those of one trial.
        during: the evaluators of one trial.
        batch_images: has to divide over the workers of a trial.
        decode: "cluster" leaves CPUs to the tasks that decode.
        concurrent: trials at once; None: as many as fit, in memory too, or one where the configuration
            does not say what one takes.
        trials: more than these never run at once.

    Raises:
        ClusterError: not even one trial fits, or not so many as were asked for.
    """
    on_gpus = plan_evaluation(during, cluster)
    choices = [on_gpus]
    if during.gpus_per_worker is None and on_gpus.gpus:  # rather on CPUs than not at all
        choices.append(replace(on_gpus, gpus=0.0))

    def largest(evaluators: Layout, most: int, least: int) -> Budget | str:
        problem = ""
        for count in range(most, least - 1, -1):
            try:
                workers = plan_workers(config, batch_images, decode, evaluators, cluster, count)
            except ClusterError as error:
                problem = str(error)
                continue
            return Budget(count, workers, evaluators)
        return problem

    asked = None if concurrent is None else min(concurrent, trials)
    found: list[Budget | str] = []
    for evaluators in choices:
        most = asked or (min(_room(cluster, config, evaluators), trials) if config.workers else 1)
        found.append(largest(evaluators, most, asked or 1))
    fitting = next((one for one in found if isinstance(one, Budget)), None)
    if fitting is not None:
        return fitting
    fewer = [] if asked is None else [largest(evaluators, asked - 1, 1) for evaluators in choices]
    fitting = next((one for one in fewer if isinstance(one, Budget)), None)
    if fitting is not None:
        raise ClusterError(
            f"{asked} trials at once do not fit on this cluster ({_describe(cluster)}): {found[-1]}; or set "
            f"tune.concurrent={fitting.concurrent}"
        )
    problem = next((one for one in fewer if one), found[0])
    raise ClusterError(f"not even one trial fits on this cluster ({_describe(cluster)}): {problem}")


def _room(cluster: Sequence[Resources], config: ClusterConfig, evaluators: Layout) -> int:
    """Trials that the totals have room for, where one worker takes what is configured, else a GPU, or a CPU.

    Of memory Ray says what is left beside its object store; a cluster that says nothing has enough.
    """
    workers = config.workers or 1
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(total(cluster, "GPU") > 0)
    cpus = config.cpus_per_worker if config.cpus_per_worker is not None else 1.0
    needs = {
        "CPU": workers * cpus + evaluators.workers * evaluators.cpus,
        "GPU": workers * gpus + evaluators.workers * evaluators.gpus,
        "memory": _TRIAL_MEMORY if total(cluster, "memory") else 0.0,
    }
    return max(1, min(int(total(cluster, kind) / need + _EPSILON) for kind, need in needs.items() if need))


def _describe(cluster: Sequence[Resources]) -> str:
    cpus, gpus = total(cluster, "CPU"), total(cluster, "GPU")
    places = f" on {len(cluster)} nodes" if len(cluster) > 1 else ""
    return f"{cpus:g} CPUs and {gpus:g} GPUs{places}"
