import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedspeech.errors import RunError
from fedspeech.training.generic import Epoch
from server.metrics import Metrics
from strategies.outcome import Outcome

FULL = """
import resource, signal, sys
from pathlib import Path
from fedspeech.errors import RunError
from fedspeech.training.generic import Epoch
from server.metrics import Metrics

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    metrics = Metrics(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    for number in range(100):
        metrics.epoch(Epoch(number, 1.0, 2.0))
except RunError as error:
    print(error)
"""


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar, as TensorBoard itself reads them."""
    read = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_losses_are_there_while_the_run_goes_on(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.epoch(Epoch(0, 4.5, 90.0))
    assert scalars(tmp_path) == {"generic/loss": [(0, 4.5)], "generic/development_wer": [(0, 90.0)]}
    metrics.epoch(Epoch(1, 2.25, 40.0))
    metrics.fine_tuning("s1", 1, [3.0, 2.0])
    metrics.fine_tuning("s1", 2, [1.5, 1.0])
    found = scalars(tmp_path)
    assert found["generic/loss"] == [(0, 4.5), (1, 2.25)]
    assert found["personal/loss/s1"] == [(0, 3.0), (1, 2.0), (2, 1.5), (3, 1.0)]
    metrics.close()


def test_the_comparison_is_pooled_over_those_that_answered_everything(tmp_path):
    words = {"s1": np.array([4, 6]), "s2": np.array([10]), "gone": np.array([50])}
    errors = {"s1": np.array([1, 2]), "s2": np.array([2]), "gone": np.array([50])}
    none = {speaker: 0 * wrong for speaker, wrong in errors.items()}
    metrics = Metrics(tmp_path)
    metrics.outcome(Outcome(("s1", "s2"), words, {("mean", 0.3): errors, ("mean", 0.0): none}))
    metrics.close()
    ((tag, found),) = scalars(tmp_path).items()
    assert tag == "wer_by_alpha/mean"
    assert found[0] == (0, 0.0)
    assert found[1][0] == 30 and math.isclose(found[1][1], 100 * 5 / 20)


def test_a_full_disk_is_told(child, tmp_path):
    done = child(FULL, tmp_path / "metrics")
    assert done.stdout.startswith(f"{tmp_path / 'metrics'}: cannot write TensorBoard events: ")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file/metrics: cannot write TensorBoard events"):
        Metrics(tmp_path / "file" / "metrics")
