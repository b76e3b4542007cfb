"""Start a run on the boxes of a deployment: this process is its server app."""

import logging
from pathlib import Path

from flwr.app import Context, RecordDict

from fedspeech import models, rules
from fedspeech.config import Config
from fedspeech.errors import ConfigError
from fedspeech.run_folder import RunFolder
from fedspeech.simulation import sizing
from server import app as server
from server import superlink

log = logging.getLogger(__name__)


def launch(settings: Config, folder: Path, resume: bool) -> None:
    """Run an experiment in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    if settings.engine.superlink is None:
        raise ConfigError(
            "engine.superlink: expected a connection of Flower's configuration where engine.grid "
            'is "deployment" (fedspeech run FILE --on deployment NAME)'
        )
    if not log.isEnabledFor(logging.INFO):
        logging.getLogger("flwr").setLevel(logging.WARNING)
    # Names that are wrong are said before anything starts.
    rules.of_experiment(settings)
    models.find(settings.model.name)
    run = RunFolder(folder.absolute())
    settings = sizing.with_cohort(settings, 1)
    run.open(settings, resume)
    try:
        with superlink.joined(settings.engine.superlink) as grid:
            asked = {"experiment": str(run.config), "out": str(run.path), "resume": True}
            server.app(grid, Context(1, 1, {}, RecordDict(), asked))
    finally:
        run.close()
