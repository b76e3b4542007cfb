"""The `fedspeech` command; thin."""

import json
import logging
import os
import shlex
from errno import EACCES, EDQUOT, EIO, ENAMETOOLONG, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from fedspeech import __version__, apps, interrupts
from fedspeech.cli import box, corpus, device, diff, doctor, keys, transcribe
from fedspeech.cli.experiment import File, Overrides
from fedspeech.errors import ConfigError, FedSpeechError, RunError

if TYPE_CHECKING:
    from fedspeech.config import Experiment

# Threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated personalization of speech models.",
    rich_markup_mode="markdown",
)
app.add_typer(corpus.app, name="corpus")
app.add_typer(diff.app, name="diff")
app.add_typer(device.app, name="device")
app.add_typer(keys.app, name="keys")
app.command()(transcribe.transcribe)
app.command()(doctor.doctor)
app.command()(box.box)

Verbose = Annotated[bool, typer.Option("--verbose", help="Show what Flower and Ray log.")]
DEMO = Path("experiments/demo.toml")
REFUSALS = {EACCES, EDQUOT, EIO, ENAMETOOLONG, ENOSPC, EPERM, EROFS}
"""What a file system refuses: the user's to mend, wherever it comes up."""


@app.command()
def run(
    file: File,
    overrides: Overrides = [],  # noqa: B006  (Typer copies it)
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
    on: Annotated[
        tuple[str, str] | None,
        typer.Option("--on", metavar="deployment NAME", help="On the boxes of a SuperLink."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run an experiment, simulated or on the boxes of a deployment.

    NAME is a connection of Flower's configuration. Example: `fedspeech run experiments/an4.toml
    --set seed=1`, or on boxes `fedspeech run experiments/boxes.toml --on deployment home`
    """
    from fedspeech import config

    _show_logs(verbose)
    overrides = [*overrides, *_place(on)]
    settings = config.load(file, overrides)
    with config.located(settings, file, overrides):
        _nothing_in_vain(settings, overrides)
        _run(settings, out, resume)


def _nothing_in_vain(settings: "Experiment", overrides: list[str]) -> None:
    """Raise ConfigError where a setting of the command line changes nothing."""
    from fedspeech.config.data_parallel import DataParallelConfig

    asked = {override.partition("=")[0].strip() for override in overrides}
    if isinstance(settings, DataParallelConfig) and (wrong := settings.in_vain(asked)):
        raise ConfigError(wrong)


def _place(on: tuple[str, str] | None) -> list[str]:
    """`--on` as settings."""
    if on is None:
        return []
    if on[0] != "deployment":
        raise ConfigError(f"--on: expected deployment NAME, found {' '.join(on)}")
    return ['engine.grid="deployment"', f"engine.superlink={json.dumps(on[1])}"]


@app.command()
def distill(
    file: File,
    overrides: Overrides = [],  # noqa: B006  (Typer copies it)
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
    verbose: Verbose = False,
) -> None:
    """Make a small RNN-T out of a large one. Example: `fedspeech distill experiments/lcmr.toml`.

    The teacher is trained if the settings give none, then everything that they ask for. The student
    is written as models/generic.safetensors, which `generic.model` of a personalization takes.
    """
    from fedspeech import config
    from fedspeech.config.distillation import DistillationConfig

    _show_logs(verbose)
    settings = config.load(file, overrides)
    if not isinstance(settings, DistillationConfig):
        raise ConfigError(f"{file}: kind = {settings.kind}, expected distillation")
    with config.located(settings, file, overrides):
        _run(settings, out, resume)


@app.command()
def train(
    file: File,
    overrides: Overrides = [],  # noqa: B006  (Typer copies it)
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
    verbose: Verbose = False,
) -> None:
    """Train G data-parallel, with the first of the seeds. Example: `fedspeech train
    experiments/data-parallel.toml --set parallel.method=ad-psgd --set parallel.learners=4`.

    The model is written as models/generic.safetensors, which `generic.model` of a personalization
    takes.
    """
    from fedspeech import config
    from fedspeech.config.data_parallel import DataParallelConfig

    _show_logs(verbose)
    settings = config.load(file, overrides, without=["comparison"])
    if not isinstance(settings, DataParallelConfig):
        raise ConfigError(f"{file}: kind = {settings.kind}, expected data-parallel")
    with config.located(settings, file, overrides):
        _nothing_in_vain(settings, overrides)
        _run(settings.model_copy(update={"seeds": settings.seeds[:1]}), out, resume)


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/demo.")] = None,
    verbose: Verbose = False,
) -> None:
    """Synthesize a small corpus and personalize it. Example: `fedspeech demo --out /tmp/demo`."""
    from fedspeech import config

    _show_logs(verbose)
    settings = config.load(DEMO)
    folder = out or Path("runs") / settings.name
    _run(settings, folder, resume=folder.joinpath("config.toml").exists())


def _show_logs(verbose: bool) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


def _run(settings: "Experiment", out: Path | None, resume: bool) -> None:
    folder = out or Path("runs") / settings.name
    if resume and not (folder / "config.toml").exists():
        raise RunError(f"{folder}: nothing to resume, no run has begun there; leave out --resume")
    try:
        with interrupts.told_apart():
            interrupts.check()  # while all was being imported
            _launch(settings, folder, resume)
    except KeyboardInterrupt:
        _say_how_to_go_on(folder)
        raise typer.Exit(interrupts.STATUS) from None
    _show(folder)


def _launch(settings: "Experiment", folder: Path, resume: bool) -> None:
    from fedspeech.config import Config
    from fedspeech.config.data_parallel import DataParallelConfig
    from fedspeech.config.neural_diff import NeuralDiffConfig

    if isinstance(settings, Config) and settings.deployment is not None:
        apps.find("deployment").load()(settings, folder, resume)
        return
    if isinstance(settings, Config):
        from fedspeech.simulation.launch import launch

        launch(settings, folder, resume)
        return
    if isinstance(settings, NeuralDiffConfig):
        from fedspeech.training.neural_diff.launch import launch as launch_neural_diff

        launch_neural_diff(settings, folder, resume)
    elif isinstance(settings, DataParallelConfig):
        from fedspeech.training.parallel.launch import launch as launch_data_parallel

        launch_data_parallel(settings, folder, resume)
    else:
        from fedspeech.training.distill.launch import launch as launch_distillation

        launch_distillation(settings, folder, resume)
    from fedspeech import report

    report.write(folder)


def _say_how_to_go_on(folder: Path) -> None:
    file = folder / "config.toml"
    said = "stopped before anything was finished"
    if file.exists():
        command = shlex.join(["fedspeech", "run", str(file), "--out", str(folder), "--resume"])
        said = f"stopped; what is finished is kept. Go on with:\n{command}"
    Console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)


@app.command("report")
def report_(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
) -> None:
    """Show the tables of a run and write its page anew. Example: `fedspeech report runs/demo`."""
    from fedspeech import report

    report.write(folder)
    _show(folder)


def _show(folder: Path) -> None:
    from fedspeech import report

    console = Console()
    found, timing = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for path in (folder / "results.json", folder / "timing.json")
    )
    report.show(found, console, timing)
    console.print(f"\nreport: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def strategies() -> None:
    """List the aggregation rules that are installed. Example: `fedspeech strategies`."""
    from fedspeech import rules

    table = Table(*(Column(name, overflow="fold") for name in ("rule", "from", "what it does")))
    for name, source, summary in rules.available():
        table.add_row(name, source, summary)
    Console().print(table)


@app.command("models")
def models_() -> None:
    """List the acoustic models, and their sizes by the settings that change them. Example:
    `fedspeech models`.
    """
    from fedspeech import models

    table = Table(
        Column("model", no_wrap=True),
        Column("trained values (40 features, 500 units)", min_width=10),
        Column("sizes", overflow="fold"),
    )
    for name, model in models.MODELS.items():
        count = models.parameters(model.build(40, 500))
        sizes = (f"{size} {str(value).lower()}" for size, value in models.sized(model).items())
        table.add_row(name, f"{count:,}", ", ".join(sizes))
    Console().print(table)


@app.command()
def version() -> None:
    """The version. Example: `fedspeech version`."""
    Console().print(__version__, highlight=False)


def main() -> None:
    """The console script: one message and status 2 for whatever is the user's to mend."""
    interrupts.watch()
    try:
        with interrupts.told_apart():
            app(prog_name="fedspeech")
    except KeyboardInterrupt:
        raise SystemExit(interrupts.STATUS) from None
    except (FedSpeechError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in REFUSALS:
            raise
        said = f"fedspeech: {error}"
        Console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(2) from None
