"""Start a run on the boxes of a deployment: this process is its server app."""

from pathlib import Path

from fedspeech.config import Config
from fedspeech.errors import ConfigError
from fedspeech.run_folder import RunFolder
from fedspeech.simulation import sizing
from fedspeech.simulation.launch import look_over, serve
from server import app as server
from server import superlink


def launch(settings: Config, folder: Path, resume: bool) -> None:
    """Run an experiment in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    if settings.engine.superlink is None:
        raise ConfigError(
            "engine.superlink: expected a connection of Flower's configuration where engine.grid "
            'is "deployment" (fedspeech run FILE --on deployment NAME)'
        )
    look_over(settings)
    run = RunFolder(folder.absolute())
    settings = sizing.with_cohort(settings, 1)
    run.open(settings, resume)
    try:
        with superlink.joined(settings.engine.superlink) as grid:
            serve(server.app, grid, run)
    finally:
        run.close()
