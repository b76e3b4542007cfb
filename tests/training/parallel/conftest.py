import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from learners import Job, Told, learn, warm

from fedspeech.config.data_parallel import ParallelSettings
from fedspeech.training.parallel import method_of
from fedspeech.training.parallel.group import serve

MOST = 4


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Learners' processes, which go from job to job."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(MOST, multiprocessing.get_context("spawn")) as pool:
        for each in [pool.submit(warm) for _ in range(MOST)]:
            each.result(120)
        started = set(multiprocessing.active_children()) - others
        yield pool
        # One that waits for a learner which is gone would be waited for.
        for process in started:
            process.kill()


@pytest.fixture(scope="session")
def together(processes) -> Callable[..., list[Told]]:
    """Let all learners of some settings do a job; keyword arguments are those of `Job`."""
    store, port = serve()
    generations = itertools.count()

    def run(settings: dict, ranks: list[int] | None = None, **job) -> list[Told]:
        parallel = ParallelSettings(**settings)
        generation = f"job-{next(generations)}"
        everyone = range(parallel.learners + method_of(parallel).servers)
        each = [
            (rank, {k: v(rank) if callable(v) else v for k, v in job.items()})
            for rank in ranks or everyone
        ]
        jobs = [Job(port, generation, rank, parallel, **given) for rank, given in each]
        return [future.result(60) for future in [processes.submit(learn, job) for job in jobs]]

    run.store = store  # which lives as long as it is used
    return run
