"""The learners on Ray: started once, trained with as often as asked, replaced when they die."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedspeech.cluster import joining
from fedspeech.config.data_parallel import DataParallelConfig, ParallelSettings
from fedspeech.config.engine import EngineSettings, RaySettings
from fedspeech.errors import FedSpeechError, RunError
from fedspeech.training.parallel import method_of
from fedspeech.training.parallel.group import LOOPBACK, serve
from fedspeech.training.parallel.learner import Learner, Training

AT_ONCE = 2
"""Calls that an actor answers side by side: it is told to stop while it learns."""
DIED = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)
"""What Ray raises where a learner is no more: also where it ended one for want of memory, and where
what one has told was still on its machine, which is gone."""


def look(settings: DataParallelConfig, asked: Sequence[ParallelSettings]) -> None:
    """Raise RunError where Ray cannot be reached, or has no room for the learners of these."""
    engine = settings.engine
    # One that is started here has the processors that it is told of.
    if engine.ray_address is None and not engine.gpus_per_worker:
        return
    ours = _connected(settings, max(each.learners for each in asked))
    try:
        for each in asked:
            if each.method == "hierarchical" and engine.ray_address is not None:
                _check_nodes(each, engine)
    finally:
        joining.leave(ours)


def _check_nodes(parallel: ParallelSettings, engine: RaySettings) -> None:
    size = parallel.node_size
    wanted, room = parallel.learners // size, sum(n // size for n in joining.places(engine))
    if wanted > room:
        raise RunError(
            f"parallel.node_size: {wanted} nodes of {size} learners each, Ray has room for {room}: "
            "the learners of a node lie on one machine; set a smaller node_size or fewer learners"
        )


def _connected(settings: DataParallelConfig, learners: int) -> bool:
    engine = EngineSettings(workers=learners, **settings.engine.model_dump())
    return joining.connect(engine, settings.counted)


class Crew:
    """Ray's actors, by their numbers, and the store at which they meet.

    Raises RunError as `look` does.
    """

    def __init__(self, settings: DataParallelConfig, learners: int) -> None:
        self._settings = everywhere(settings)
        self._actors: dict[int, Any] = {}
        self._servers: set[int] = set()
        self._nodes: list[Any] = []
        self._node_size = 1
        engine = settings.engine
        self._ours = _connected(settings, learners)
        host = LOOPBACK if engine.ray_address is None else str(ray.util.get_node_ip_address())
        self.own_gpus = engine.gpus_per_worker >= 1 and not engine.simulated_gpus
        self.store, port = serve(host)
        self.address = host, port

    def actor(self, number: int) -> Any:
        """The learner with this number, which was prepared before."""
        return self._actors[number]

    def _start(self, number: int, server: bool) -> None:
        engine = self._settings.engine
        options = {
            "num_cpus": 0 if server else engine.cpus_per_worker,
            "num_gpus": 0 if server else engine.gpus_per_worker,
            "max_concurrency": AT_ONCE,
            "max_restarts": 0,
        }
        node, within = divmod(number, self._node_size)
        if node < len(self._nodes) and not server:
            place = PlacementGroupSchedulingStrategy(self._nodes[node], within)
            options["scheduling_strategy"] = place
        made = ray.remote(Learner).options(**options)
        self._actors[number] = made.remote(number, self._settings)
        (self._servers.add if server else self._servers.discard)(number)

    def _reserve(self, nodes: int, size: int) -> None:
        """Let Ray keep places for the learners of so many nodes, those of a node on one machine."""
        if nodes <= len(self._nodes):
            return
        for number in self.there:  # which may have what a node needs
            if number >= len(self._nodes) * size:
                self.bury(number)
        engine = self._settings.engine
        each = {"CPU": engine.cpus_per_worker, "GPU": engine.gpus_per_worker}
        place = {name: count for name, count in each.items() if count}
        more = range(nodes - len(self._nodes))
        self._nodes += [placement_group([place] * size, "STRICT_PACK") for _ in more]
        self._node_size = size

    @property
    def there(self) -> frozenset[int]:
        """Who was started; also who has died since and was not buried."""
        return frozenset(self._actors)

    def bury(self, number: int) -> None:
        """End a learner; the next one with its number is another process."""
        if number in self._actors:
            ray.kill(self._actors.pop(number))

    def prepare(
        self, training: Training, agreed: str, numbers: Sequence[int]
    ) -> dict[int, ray.ObjectRef]:
        """Let some learners begin a training, started if they are not there yet; what tells that
        they are ready.

        `agreed` is the fingerprint of its corpus and settings.
        """
        parallel = training.settings.parallel
        learners = parallel.learners
        assert max(numbers) < learners + method_of(parallel).servers
        if parallel.method == "hierarchical" and self._settings.engine.ray_address is not None:
            self._reserve(learners // parallel.node_size, parallel.node_size)
        for number in numbers:
            server = number >= learners
            if (number in self._servers) != server:  # which has no GPU
                self.bury(number)
            if number not in self._actors:
                self._start(number, server)
        return {n: self.actor(n).prepare.remote(training, agreed) for n in numbers}

    def close(self) -> None:
        """End all learners, and Ray if it was started here."""
        for number in list(self._actors):
            self.bury(number)
        for node in self._nodes:
            remove_placement_group(node)
        joining.leave(self._ours)


def everywhere(settings: DataParallelConfig) -> DataParallelConfig:
    """The same settings for a process that runs in another folder, or on another machine."""
    corpus, test = settings.corpus, settings.test
    if corpus.path is not None:
        corpus = corpus.model_copy(update={"path": str(Path(corpus.path).absolute())})
    if isinstance(test.speakers, str) and test.speakers != "rest":  # a list of them
        test = test.model_copy(update={"speakers": str(Path(test.speakers).absolute())})
    return settings.model_copy(update={"corpus": corpus, "test": test})


def gotten(reference: ray.ObjectRef, seconds: float | None = None) -> Any:
    """What a learner answers. Raises its FedSpeechError; RayError where it died, or has not
    answered in so many seconds."""
    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FedSpeechError):
            raise error.cause from None
        raise
