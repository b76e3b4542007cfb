"""Start a simulated federation: device folders, a grid, and the server app on it."""

import importlib.metadata
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedspeech import corpus
from fedspeech.config import Config
from fedspeech.corpus import partition as cutting
from fedspeech.run_folder import RunFolder
from fedspeech.simulation import devices
from fedspeech.simulation.grid import SERVER_NODE, NodeConfig
from fedspeech.simulation.in_process import InProcessGrid
from fedspeech.simulation.on_ray import RayGrid

APPS = "fedspeech.apps"


def launch(settings: Config, folder: Path, resume: bool) -> None:
    """Run an experiment in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    run = RunFolder(folder.absolute())
    run.open(settings, resume)
    try:
        speech = corpus.load(settings.corpus)
        clients = cutting.partition(speech, settings.partition).clients
        names = devices.lay_out(clients, run.devices, settings.seed)
        nodes: list[NodeConfig] = [
            {"device": str(run.devices / name), "threads": settings.engine.cpus_per_worker}
            for name in names
        ]
        run_config = {"experiment": str(run.config), "out": str(run.path), "resume": True}
        grid = make_grid(settings, nodes)
        try:
            server = importlib.metadata.entry_points(group=APPS)["server"].load()
            assert isinstance(server, ServerApp)
            server(grid, Context(1, SERVER_NODE, {}, RecordDict(), run_config))
        finally:
            grid.close()
    finally:
        run.close()


def make_grid(settings: Config, nodes: list[NodeConfig]) -> InProcessGrid | RayGrid:
    """The grid that the settings name, with one node for each configuration."""
    client = importlib.metadata.entry_points(group=APPS)["client"].value
    grid = {"in-process": InProcessGrid, "ray": RayGrid}[settings.engine.grid]
    return grid(client, nodes, {}, settings.engine)
