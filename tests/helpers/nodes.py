"""Ray nodes on this machine, as if each were another one."""

from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import NamedTuple

from ray.cluster_utils import Cluster


class Node(NamedTuple):
    """Where its workers run, and what their environment has besides this one's."""

    folder: Path = Path()
    environment: Mapping[str, str] = {}
    processors: int = 1


@contextmanager
def cluster(*each: Node) -> Iterator[Cluster]:
    """Nodes of one Ray; nothing else of Ray is touched."""
    found = Cluster()
    try:
        for node in each:
            with chdir(node.folder):
                variables = dict(node.environment)
                found.add_node(
                    num_cpus=node.processors, include_dashboard=False, env_vars=variables
                )
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()
