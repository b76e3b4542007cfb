"""Where Ray places learners."""

from types import SimpleNamespace

import pytest
import ray
from nodes import Node, cluster
from ray.util import placement_group_table

from fedspeech.config.data_parallel import DataParallelConfig, ParallelSettings
from fedspeech.errors import RunError
from fedspeech.training.parallel import crew as crews
from fedspeech.training.parallel.crew import Crew, gotten, look


def test_learners_of_a_node_are_on_one_machine_also_who_takes_the_place_of_another(monkeypatch):
    """With learners of other methods before, which lie anywhere.

    What is sent to them is of Python's own classes: to import ours takes them long.
    """

    class Somewhere:
        """In a learner's place; says on which machine it is."""

        def __init__(self, number, settings): ...

        def prepare(self, training, agreed):
            return ray.get_runtime_context().get_node_id()

    def training(method: str, learners: int) -> SimpleNamespace:
        parallel = {"method": method, "partner": "ring", "learners": learners, "node_size": 2}
        return SimpleNamespace(settings=SimpleNamespace(parallel=SimpleNamespace(**parallel)))

    def machines(training: SimpleNamespace, *numbers: int) -> list[str]:
        return [gotten(each, 100) for each in crew.prepare(training, "", numbers).values()]

    monkeypatch.setattr(crews, "Learner", Somewhere)

    def nodes_of(size: int, learners: int) -> ParallelSettings:
        return ParallelSettings(method="hierarchical", learners=learners, node_size=size)

    with cluster(Node(processors=2), Node(processors=2)) as nodes:
        engine = {"ray_address": nodes.address}
        settings = DataParallelConfig.model_validate({"engine": engine})
        look(settings, [ParallelSettings(learners=4), nodes_of(2, 4)])
        told = r"^parallel\.node_size: 1 nodes of 3 learners each, Ray has room for 0: "
        with pytest.raises(RunError, match=told):
            look(settings, [ParallelSettings(learners=4), nodes_of(3, 3)])
        assert not ray.is_initialized()
        ray.init(address=nodes.address, log_to_driver=False)
        crew = Crew(settings, 4)
        crew._settings = SimpleNamespace(engine=SimpleNamespace(**settings.engine.model_dump()))
        try:
            anywhere = machines(training("ring", 4), 0, 1, 2, 3)
            assert len(set(anywhere)) == 2
            assert len(set(machines(training("hierarchical", 2), 0, 1))) == 1
            # The next node leaves the first one as it is.
            first = crew.actor(0)
            here, there = (set(machines(training("hierarchical", 4), *n)) for n in ((0, 1), (2, 3)))
            assert len(here) == len(there) == 1 and here != there
            assert crew.actor(0) is first
            crew.bury(1)
            assert set(machines(training("hierarchical", 4), 1)) == here
            # Their places are kept for them, whatever the method.
            crew.bury(3)
            assert set(machines(training("ring", 4), 3)) == there
            crew.close()
            states = {each["state"] for each in placement_group_table().values()}
            assert states == {"REMOVED"}
        finally:
            ray.shutdown()
