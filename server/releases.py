"""The line of G's generations: what this run's G is released as."""

import logging
from pathlib import Path

from fedspeech import key_files, signed_line, tensors
from fedspeech.config import Config
from fedspeech.device.lock import locked
from fedspeech.diff.budget import make, parse
from fedspeech.diff.methods import METHODS
from fedspeech.errors import DiffError, ModelError
from fedspeech.models.description import ModelDescription
from fedspeech.population import Population
from fedspeech.releases import Releases
from fedspeech.tensors import Tensors, check_like, sha256, size

log = logging.getLogger("fedspeech")
FIRST = "0000.safetensors"


def release(
    settings: Config, model: Tensors, description: ModelDescription, population: Population
) -> Releases:
    """Make G the last release of its line, and write it as the population's G.

    Without `generic.releases` the line is the run's own and begins with G. In a line that other
    runs began G follows the last release as a diff within `budget.generic`: then the run goes on
    with what that diff gives, which is what devices will hold. Raises DiffError where the budget is
    too small, ModelError where the line is of another model or its description was another one.
    """
    if settings.generic.releases is None:
        _write(population.generic_path, model)
        line = Releases(population.folder / "releases")
        line.describe(line.begin(population.generic_path), description.to_json())
        return line
    line = Releases(Path(settings.generic.releases).absolute())
    with locked(line.folder):
        found = _released(settings, model, line)
        line.describe(sha256(found), description.to_json())
        _write(population.generic_path, found)
        if settings.generic.signing_key is not None:
            signed_line.sign(line, key_files.read_private(Path(settings.generic.signing_key)))
    return line


def _write(path: Path, model: Tensors) -> None:
    if path.exists() and not tensors.intact(path, sha256(model)):
        log.warning("%s: damaged, or another G; it is written anew", path)
    tensors.write(path, model)


def _released(settings: Config, model: Tensors, line: Releases) -> Tensors:
    name = sha256(model)
    if not line.names:
        tensors.write(line.folder / FIRST, model)
        line.begin(line.folder / FIRST)
        return model
    text = settings.budget.generic
    budget = None if text is None else parse(text, size(model))
    if (done := line.made_of(name)) is not None:
        if budget is not None and line.size(done) > budget:
            raise DiffError(
                f"budget.generic: {budget} bytes, and {line.folder} has a release of this G of "
                f"{line.size(done)} bytes, made within a larger one; name another folder"
            )
        return line.model(done)
    last = line.names[-1]
    before = line.model(last)
    try:
        check_like(model, before)
    except ModelError as error:
        raise ModelError(
            f"generic.releases: {line.folder} is a line of another model: {error}"
        ) from None
    try:
        made = make(before, model, budget, METHODS[settings.budget.method](last))
    except DiffError as error:
        raise DiffError(f"budget.generic: {error}") from None
    line.add(last, sha256(made.result), made.data, of=name)
    return made.result
