"""Run a distillation: every cell once, on some processes; the results, and the new generation 0."""

import logging
from functools import partial
from pathlib import Path

from fedspeech import corpus, tensors
from fedspeech.config.distillation import TEACHER, DistillationConfig
from fedspeech.corpus import statistics
from fedspeech.errors import DivergedError, RunError
from fedspeech.run_folder import RunFolder, cache_folder, read_json
from fedspeech.tensors import sha256_of_file, write_whole
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

    Raises RunError where that one is missing or damaged.
    """
    own, known = _kept(folder), _known(folder)
    if settings.teacher.file is None or not (own.exists() or known.exists()):
        return settings
    if known.exists() and not (own.exists() and sha256_of_file(own) == known.read_text()):
        raise RunError(
            f"{own}: missing or damaged, and what is finished has learned from it; put a copy of "
            "the teacher there again, or choose another folder (--out)"
        )
    return _taught_by(settings, own)


def _taught_by(settings: DistillationConfig, file: Path) -> DistillationConfig:
    teacher = settings.teacher.model_copy(update={"file": str(file)})
    return settings.model_copy(update={"teacher": teacher})


def _kept(folder: Path) -> Path:
    """The teacher that a run was given; its description lies beside it."""
    return folder.absolute() / "models" / f"{TEACHER}.safetensors"


def _known(folder: Path) -> Path:
    """The SHA-256 of that teacher."""
    return _kept(folder).with_suffix(".sha256")


def _with_teacher(settings: DistillationConfig, task: Task, run: RunFolder) -> DistillationConfig:
    """Keep a given teacher in the run's folder; the settings with that one."""
    path, known = _kept(run.path), _known(run.path)
    if settings.teacher.file is None:
        return settings
    if settings.teacher.file != str(path):
        found = given(settings)
        task.teacher.write(path.with_suffix(".json"))
        tensors.write(path, found)
    if not known.exists():
        write_whole(known, partial(Path.write_text, data=sha256_of_file(path)))
    return _taught_by(settings, path)


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
