"""Steps and streams are timed of what they say they are."""

import pytest

from experiments.benchmarks import distillation
from experiments.benchmarks.distillation import STEPS, STREAMS, WAYS
from experiments.benchmarks.harness import Setting
from fedspeech import models


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    plan = distillation.QUICK
    return list(distillation.rows(Setting(tmp_path_factory.mktemp("distillation")), plan))


def test_every_way_to_train_has_a_row_beside_the_teacher(rows):
    steps = [row for row in rows if row["table"] == STEPS]
    assert [row["row"] for row in steps] == list(WAYS)
    assert steps[0]["/ the teacher's"]["values"] == [1.0, 1.0]
    for row in steps:
        ours, teacher = row["ms"]["values"], steps[0]["ms"]["values"]
        assert min(ours) > 0
        wanted = [a / b for a, b in zip(ours, teacher, strict=True)]
        assert row["/ the teacher's"]["values"] == pytest.approx(wanted)


def test_a_stream_spells_about_as_often_as_speech_does(rows):
    (row,) = (row for row in rows if row["table"] == STREAMS)
    assert row["parameters"] == models.parameters(models.build("rnnt-tiny", 64, 1024))
    assert 1 <= row["units a second"] <= distillation.UNITS_PER_SECOND
    assert row["real-time factor"]["low"] > 0 and row["resident, MiB"] > 50
    panels = {
        name for panel in distillation.PANELS for name in (panel.along, panel.value, *panel.series)
    }
    assert panels <= set().union(*rows)


@pytest.mark.parametrize("strategy", [1, 2])
def test_modules_are_replaced_in_the_steps_that_are_timed(strategy):
    plan, pair = distillation.QUICK, distillation.TINY
    loop = distillation._replacing(plan, pair, strategy)
    chosen, choose = [], loop.model.choose
    loop.model.choose = lambda rate, draw: (chosen.append(rate), choose(rate, draw))
    loop.epoch(0)
    assert chosen == [distillation.RATE] * plan.minibatches
    learns = any(parameter.requires_grad for parameter in loop.model.teacher.parameters())
    assert learns == (strategy == 1)
