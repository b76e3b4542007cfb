"""Where G comes from: the run's own folder, a file that the settings name, or training."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedspeech import progress, tensors
from fedspeech.config import Config
from fedspeech.corpus.partition import Partition
from fedspeech.errors import ModelError
from fedspeech.models import description as descriptions
from fedspeech.models.description import ModelDescription
from fedspeech.run_folder import RunFolder
from fedspeech.tensors import Tensors, check_like, state, write_whole
from fedspeech.training import generic
from fedspeech.training.generic import Epoch

TRAINED = "trained"
TRAINING = ".epochs.json"
"""Beside a model, its hash and the epochs of its training."""


@dataclass(frozen=True)
class Generic:
    """G, what goes with it, and its training as far as there was one."""

    model: Tensors
    description: ModelDescription
    epochs: list[Epoch]


def check(settings: Config) -> None:
    """Raise where the settings name a model as G: ModelError where it is none or is damaged,
    ConfigError where the settings speak of another one.
    """
    if settings.generic.model is None:
        return
    path = Path(settings.generic.model)
    about = _read(path).description
    descriptions.check_as_set(
        "generic.model", path, about, "model", settings.model, settings.features, settings.units
    )


def obtain(
    partition: Partition,
    settings: Config,
    run: RunFolder,
    features: Path,
    report: Callable[[Epoch], None],
) -> Generic:
    """G for this run; `report` hears of each epoch where it is trained. Raises as `check` does."""
    path = run.models / f"{TRAINED}.safetensors"
    if path.exists():
        return _read_own(path)
    if settings.generic.model is not None:
        found = _read(Path(settings.generic.model))
    else:
        with _shown(settings.generic.epochs, report) as show:
            trained = generic.train(partition, settings, features, run.checkpoint, show)
        found = Generic(trained.model, trained.description, trained.epochs)
    found.description.write(path.with_suffix(".json"))
    _write_training(path.with_suffix(TRAINING), found)
    tensors.write(path, found.model)
    run.checkpoint.unlink(missing_ok=True)
    return found


@contextmanager
def _shown(epochs: int, report: Callable[[Epoch], None]) -> Iterator[Callable[[Epoch], None]]:
    with progress.stage(epochs) as stage:
        stage.start("train G")

        def tell(epoch: Epoch) -> None:
            report(epoch)
            rate = epoch.word_error_rate
            stage.advance(f"loss {epoch.loss:.2f}, development WER {rate:.1f} %")

        yield tell


def _read_own(path: Path) -> Generic:
    """What this run obtained before. Its training gives the same bytes again."""
    try:
        return _read(path)
    except ModelError as error:
        raise ModelError(
            f"{error}\nWithout {path} and its .json files --resume obtains G anew; what the "
            "devices have finished is kept"
        ) from None


def _read(path: Path) -> Generic:
    description = descriptions.read(path.with_suffix(".json"))
    model = tensors.read(path)
    try:
        check_like(model, state(description.empty()))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    expected, epochs = _read_training(path.with_suffix(TRAINING))
    if expected is not None and tensors.sha256(model) != expected:
        raise ModelError(f"{path}: damaged: its hash is not the one in {path.stem}{TRAINING}")
    return Generic(model, description, epochs)


def _read_training(path: Path) -> tuple[str | None, list[Epoch]]:
    """The hash of the model that the file lies beside, and its epochs; nothing without the file."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return str(said["sha256"]), [Epoch(*row) for row in said["epochs"]]
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the epochs of a training: {error}") from None


def _write_training(path: Path, found: Generic) -> None:
    rows = [(epoch.number, epoch.loss, epoch.word_error_rate) for epoch in found.epochs]
    said = json.dumps({"sha256": tensors.sha256(found.model), "epochs": rows}) + "\n"
    write_whole(path, lambda part: part.write_text(said, encoding="utf-8"))
