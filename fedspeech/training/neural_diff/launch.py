"""Run an experiment on diffs: every cell once, on some processes, and the results."""

from functools import partial
from pathlib import Path

from fedspeech import corpus, models
from fedspeech.config.neural_diff import NeuralDiffConfig
from fedspeech.corpus import statistics
from fedspeech.run_folder import RunFolder, cache_folder
from fedspeech.training.neural_diff import results, tasks
from fedspeech.training.neural_diff.cells import plan
from fedspeech.training.neural_diff.learner import pruning
from fedspeech.training.neural_diff.task import Task
from fedspeech.training.neural_diff.worker import bench
from fedspeech.training.pool import opened


def launch(settings: NeuralDiffConfig, folder: Path, resume: bool) -> None:
    """Run an experiment in `folder`. Raises FedSpeechError for whatever is the user's to mend."""
    if settings.recognition is not None:
        model = settings.recognition.model
        models.find(model.name, model.sizes, "recognition.model")
    with opened(settings, folder, resume) as trainings:
        run = trainings.run
        with trainings.timed("corpus and features"):
            task = _task(settings, run)
        cells = plan(settings, len(task.generations))
        for cell in cells:
            if cell.method == "sparse":
                pruning(task, settings, cell)  # what cannot be is told before anything is trained
        figures = trainings.finish(cells, partial(bench, settings, run.path))
        run.write_json("results.json", results.assemble(settings, task, figures))


def _task(settings: NeuralDiffConfig, run: RunFolder) -> Task:
    """Features are computed here, so that workers only read them."""
    speech = corpus.load(settings.corpus)
    task = tasks.task(settings, speech, cache_folder() / "features")
    run.write_environment(settings.seed, statistics.fingerprint(speech))
    return task
