"""Run a distillation: every cell once, on some processes; the results, and the new generation 0."""

import logging
from functools import partial
from pathlib import Path

from fedspeech import corpus, tensors
from fedspeech.config.distillation import TEACHER, DistillationConfig
from fedspeech.corpus import statistics
from fedspeech.errors import DivergedError, RunError
from fedspeech.run_folder import RunFolder, cache_folder, read_json
from fedspeech.training.distill import results
from fedspeech.training.distill.cells import plan, shipped
from fedspeech.training.distill.task import Task, check, given
from fedspeech.training.distill.worker import bench, file
from fedspeech.training.pool import opened

log = logging.getLogger("fedspeech")


def launch(asked: DistillationConfig, folder: Path, resume: bool) -> None:
    """Run a distillation in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    settings = _begun(asked, folder)
    check(settings)
    with opened(asked, folder, resume) as trainings:
        run = trainings.run
        with trainings.timed("corpus and features"):
            task = _task(settings, run)
            settings = _with_teacher(settings, task, run)
        try:
            figures = trainings.finish(plan(settings), partial(bench, settings, run.path))
        except DivergedError as error:
            raise RunError(
                f"{error}; for the table of the other rows go on with --resume, and without this "
                "one, and those that learn from it, in `rows`"
            ) from None
        _ship(settings, task, run)
        run.write_json("results.json", results.assemble(settings, task, figures))


def _begun(settings: DistillationConfig, folder: Path) -> DistillationConfig:
    """The settings with the teacher that a run in the folder has begun with, if it was given one:
    whatever becomes of its file, all seeds have the same.
    """
    own = _kept(folder)
    if settings.teacher.file is None or not own.exists():
        return settings
    teacher = settings.teacher.model_copy(update={"file": str(own)})
    return settings.model_copy(update={"teacher": teacher})


def _kept(folder: Path) -> Path:
    """The teacher that a run was given; its description lies beside it."""
    return folder.absolute() / "models" / f"{TEACHER}.safetensors"


def _with_teacher(settings: DistillationConfig, task: Task, run: RunFolder) -> DistillationConfig:
    """Keep a given teacher in the run's folder; the settings with that one."""
    path = _kept(run.path)
    if settings.teacher.file in (None, str(path)):
        return settings
    found = given(settings)
    task.teacher.write(path.with_suffix(".json"))
    tensors.write(path, found)
    return _begun(settings, run.path)


def _task(settings: DistillationConfig, run: RunFolder) -> Task:
    """Features are computed here, so that workers only read them."""
    speech = corpus.load(settings.corpus)
    task = Task(settings, speech, cache_folder() / "features")
    run.write_environment(settings.seed, statistics.fingerprint(speech))
    return task


def _ship(settings: DistillationConfig, task: Task, run: RunFolder) -> None:
    """Write the student as a generation 0, as every run of a federation takes it; say so where it
    is not the one that was there, by other rows.
    """
    path, cell = run.models / "generic.safetensors", shipped(settings)
    before = read_json(run.results)["shipped"] if run.results.exists() else None
    if cell is None:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    else:
        task.student.write(path.with_suffix(".json"))
        tensors.write(path, tensors.read(file(run.path, cell)))
    now = None if cell is None else cell.row
    if before not in (None, now):
        became = "is removed: no student is in rows" if now is None else f"is now that of {now}"
        log.warning("%s was the student of %s, and %s", path, before, became)
