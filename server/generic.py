"""Where G comes from: the run's own folder, a file that the settings name, or training."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedspeech import progress, tensors
from fedspeech.config import Config
from fedspeech.corpus.partition import Partition
from fedspeech.models import description as descriptions
from fedspeech.models.description import ModelDescription
from fedspeech.run_folder import RunFolder
from fedspeech.tensors import Tensors, check_like, state, write_whole
from fedspeech.training import generic
from fedspeech.training.generic import Epoch

TRAINED = "trained"


@dataclass(frozen=True)
class Generic:
    """G, what goes with it, and its training as far as there was one."""

    model: Tensors
    description: ModelDescription
    epochs: list[Epoch]


def check(settings: Config) -> None:
    """Raise ModelError where the settings name a file that is not a model that fits."""
    if settings.generic.model is not None:
        _read(Path(settings.generic.model))


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
        return _read(path)
    if settings.generic.model is not None:
        found = _read(Path(settings.generic.model))
    else:
        with _shown(settings.generic.epochs, report) as show:
            trained = generic.train(partition, settings, features, run.checkpoint, show)
        found = Generic(trained.model, trained.description, trained.epochs)
    found.description.write(path.with_suffix(".json"))
    _write_epochs(path.with_suffix(".epochs.json"), found.epochs)
    tensors.write(path, found.model)
    run.checkpoint.unlink(missing_ok=True)
    return found


@contextmanager
def _shown(epochs: int, report: Callable[[Epoch], None]) -> Iterator[Callable[[Epoch], None]]:
    with progress.stage(epochs) as stage:
        stage.start("train G", epochs)

        def tell(epoch: Epoch) -> None:
            report(epoch)
            rate = epoch.word_error_rate
            stage.advance(f"loss {epoch.loss:.2f}, development WER {rate:.1f} %")

        yield tell


def _read(path: Path) -> Generic:
    description = descriptions.read(path.with_suffix(".json"))
    model = tensors.read(path)
    check_like(model, state(description.empty()))
    epochs = path.with_suffix(".epochs.json")
    rows = json.loads(epochs.read_text(encoding="utf-8")) if epochs.exists() else []
    return Generic(model, description, [Epoch(*row) for row in rows])


def _write_epochs(path: Path, epochs: list[Epoch]) -> None:
    rows = [(epoch.number, epoch.loss, epoch.word_error_rate) for epoch in epochs]
    write_whole(path, lambda part: part.write_text(json.dumps(rows) + "\n", encoding="utf-8"))
