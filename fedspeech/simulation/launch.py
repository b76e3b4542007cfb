"""Start a simulated federation: a grid, and the server app on it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedspeech import apps, cluster, models, rules
from fedspeech.config import Config
from fedspeech.run_folder import RunFolder
from fedspeech.simulation import devices, sizing
from fedspeech.simulation.grid import SERVER_NODE, NodeConfig
from fedspeech.simulation.in_process import InProcessGrid

if TYPE_CHECKING:
    from fedspeech.simulation.on_ray import RayGrid


LOG = logging.getLogger(__name__)


def launch(settings: Config, folder: Path, resume: bool) -> None:
    """Run an experiment in `folder`. Raises FedSpeechError for whatever is the user's to mend.

    What Flower and Ray log is shown where this module's own information is.
    """
    server = apps.find("server").load()
    assert isinstance(server, ServerApp)
    look_over(settings)
    run = RunFolder(folder.absolute())
    settings = sizing.settle(settings, run.cohort() if resume else None)
    run.open(settings, resume)
    try:
        grid = make_grid(settings, run, apps.find("client").value)
        try:
            serve(server, grid, run)
        finally:
            grid.close()
    finally:
        run.close()


def look_over(settings: Config) -> None:
    """Say what is wrong with names before anything starts, and fold away what Flower logs."""
    if not LOG.isEnabledFor(logging.INFO):
        logging.getLogger("flwr").setLevel(logging.WARNING)
    rules.of_experiment(settings)
    models.find(settings.model.name, settings.model.sizes)


def serve(server: ServerApp, grid: Grid, run: RunFolder) -> None:
    """Let a server app do a run whose folder is open, by its settings there."""
    run_config = {"experiment": str(run.config), "out": str(run.path), "resume": True}
    server(grid, Context(1, SERVER_NODE, {}, RecordDict(), run_config))


def make_grid(settings: Config, run: RunFolder, client: str) -> "InProcessGrid | RayGrid":
    """The grid that the settings name, with one node for each device folder of the run.

    `client` is the client app, as `module:name`.
    """

    def nodes() -> list[NodeConfig]:
        threads = settings.engine.cpus_per_worker
        found = devices.folders(run.devices)
        return [{"device": str(folder), "threads": threads} for folder in found]

    if settings.engine.grid == "in-process":
        return InProcessGrid(client, nodes, settings.engine)
    # Ray is imported here and not before: by then it is settled what it looks for at its import.
    cluster.prepare(settings.engine.ray_address)
    from fedspeech.simulation.on_ray import RayGrid

    return RayGrid(client, nodes, settings.engine)
