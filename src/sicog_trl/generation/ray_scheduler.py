"""Ray Data hands out the shards: same shards, same worker, same bytes; Ray decides where each one is made.

A shard is the unit that Ray may run again, so whatever dies, what was published stays. Nothing but the numbers of the
shards and their counts travels through Ray: a worker reads its rows and writes its files by itself, which therefore
have to be where all machines of the cluster see them.
"""

import os
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from .candidates import CandidateConfig
from .inputs import ImageRows
from .plan import Plan
from .sampling import Sampler
from .sources import load_images
from .worker import Progress, make_shard


# Ray Data keeps processors of its own beside the workers; with fewer than four to share it waits for itself for ever.
_LEAST_CPUS = 4
# A worker that dies is started again; one that dies so often will not get over it.
_RESTARTS = 5


class ShardWorker:
    """
    Makes one shard after the other in a process of its own; the model is loaded once.

    Args:
        plan ([`Plan`]):
            The run; its folder is an absolute path.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        source (`tuple`):
            Arguments of [`load_images`], with absolute paths.
        load_sampler (`Callable[[], Sampler]`):
            Loads what answers.
    """

    def __init__(
        self,
        plan: Plan,
        config: CandidateConfig,
        source: tuple,
        load_sampler: Callable[[], Sampler],
    ):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        self.plan, self.config = plan, config
        self.rows, self.sampler = ImageRows(load_images(*source), config.task), load_sampler()
        self.progress = Progress(plan.num_rows, disable=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Make the shards of a batch and return `rows`, `failed`, `tokens` and `said` of each."""
        done: dict[str, list] = {"rows": [], "failed": [], "tokens": [], "said": []}
        for shard in batch["shard"].tolist():
            before = self.progress.failed, self.progress.tokens
            try:
                said = make_shard(self.plan, shard, self.config, self.rows, self.sampler, self.progress)
            except Exception as error:
                # A dead engine lives on in its process, where Ray would try the next shard in vain.
                if type(error).__name__ == "EngineDeadError":
                    os._exit(1)
                raise
            done["rows"].append(len(self.plan.rows(shard)))
            done["failed"].append(self.progress.failed - before[0])
            done["tokens"].append(self.progress.tokens - before[1])
            done["said"].append(said or "")
        return done


def generate_with_ray(
    plan: Plan,
    shards: list[int],
    config: CandidateConfig,
    source: tuple,
    load_sampler: Callable[[], Sampler],
    num_workers: int | None = None,
    use_gpus: bool = True,
) -> None:
    """
    Make shards on the workers of a Ray cluster: a running one, or one that is started on this machine.

    Args:
        plan ([`Plan`]):
            The run; its folder is an absolute path that all machines of the cluster see.
        shards (`list[int]`):
            What to make.
        config ([`CandidateConfig`]):
            Which candidates to sample.
        source (`tuple`):
            Arguments of [`load_images`], with absolute paths.
        load_sampler (`Callable[[], Sampler]`):
            Loads what answers, in each worker; it is pickled.
        num_workers (`int`, *optional*):
            Workers; one per GPU of the cluster, or one, unless given.
        use_gpus (`bool`, *optional*, defaults to `True`):
            Give each worker a GPU if the cluster has any; what asks a server needs none.
    """
    if not shards:
        return
    if not ray.is_initialized():
        running = os.environ.get("RAY_ADDRESS")
        ray.init(**({} if running else {"num_cpus": max(_LEAST_CPUS, os.cpu_count() or 1)}), log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if use_gpus else 0
    num_workers = min(num_workers or gpus or 1, len(shards))
    DataContext.get_current().enable_progress_bars = False  # ours counts rows and tokens
    done = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        ShardWorker,
        fn_constructor_args=(plan, config, source, load_sampler),
        batch_size=1,
        # One at a time: a shard that waits behind another in one worker is one that an idle worker could make.
        compute=ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
        num_gpus=1 if gpus else 0,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
    )
    with Progress(sum(len(plan.rows(shard)) for shard in shards)) as progress:
        try:
            for row in done.iter_rows():
                if said := row.pop("said"):
                    progress.say(said)
                progress.add(**row)
        except RayError as error:
            raise _cause(error) from error


def _cause(error: BaseException) -> BaseException:
    """Return what a worker raised: Ray wraps it several times, and a person looks for the last line."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error
