"""One cell: who learns, who does not, and that nothing depends on interruptions."""

import json
from dataclasses import replace

import jiwer
import pytest
import torch

from fedspeech import features, seeding
from fedspeech.decoding import beam
from fedspeech.errors import ConfigError, CorpusError, ModelError, RunError
from fedspeech.tensors import sha256, state, write
from fedspeech.training import checkpoint
from fedspeech.training.criteria import rnnt
from fedspeech.training.distill import lattice, learner, schedules
from fedspeech.training.distill.cells import Cell
from fedspeech.training.distill.hybrid import Hybrid
from fedspeech.training.distill.task import check
from fedspeech.training.loop import Loop
from fedspeech.units import Units

TEACHER = Cell(0, "teacher", False)
WAYS = {"lcmr": {}, "together": {"strategy": 1}, "always": {"schedule": "constant", "rate": 1.0}}
ROWS = ["teacher", "student", "kd", *WAYS]
TAUGHT = {"kd", "lcmr", "always"}


@pytest.fixture
def config(settings):
    return settings(rows=ROWS, replacing=WAYS)


@pytest.fixture
def found(task, config):
    return task(config)


@pytest.fixture
def teacher(found, config, tmp_path):
    return state(learner.learn(found, config, TEACHER, None, tmp_path / "teacher").model)


def cell(row: str) -> Cell:
    return Cell(0, row, row in TAUGHT)


def learn(found, config, row, teacher, path):
    base = teacher if row in TAUGHT else None
    return learner.learn(found, config, cell(row), base, path / f"{row}.checkpoint")


@pytest.fixture
def loops(monkeypatch) -> list[Loop]:
    """Every loop that is made, as it is after its last epoch."""
    made: list[Loop] = []
    before = learner._loop

    def watched(*arguments) -> Loop:
        made.append(before(*arguments))
        return made[-1]

    monkeypatch.setattr(learner, "_loop", watched)
    return made


@pytest.mark.parametrize("row", ["lcmr", "kd"])
def test_a_teacher_that_was_trained_before_does_not_change(
    found, config, teacher, loops, tmp_path, row
):
    learned = learn(found, config, row, teacher, tmp_path)
    (loop,) = loops
    its = loop.model.teacher if row == "lcmr" else loop._teacher
    assert sha256(state(its)) == sha256(teacher)
    begin = state(found.model(row, 0))
    for name, tensor in state(learned.model).items():
        assert not torch.equal(tensor, begin[name]), name


def test_one_that_learns_together_with_its_student_does(found, config, loops, tmp_path):
    learn(found, config, "together", None, tmp_path)
    (loop,) = loops
    begin, end = state(found.model("teacher", 0)), state(loop.model.teacher)
    moved = {name for name in begin if not torch.equal(begin[name], end[name])}
    layers = {name for name in begin if name.startswith(("encoder", "prediction"))}
    assert moved == layers  # the rest is the student's


def test_a_rate_of_one_is_a_student_that_starts_with_the_teachers_joint_network(
    found, config, teacher, tmp_path
):
    """No module is ever the teacher's: the plain loop on the same student gives the same bits."""
    learned = learn(found, config, "always", teacher, tmp_path)
    student = found.model("student", 0)
    taught = found.model("teacher", 0)
    taught.load_state_dict(teacher)
    for name in ("embedding", "encoded", "predicted", "output"):
        getattr(student, name).load_state_dict(getattr(taught, name).state_dict())
    loop = Loop(student, found.course(0))
    losses = [loop.epoch(number) for number in range(config.training.epochs)]
    assert losses == learned.losses
    assert sha256(state(student)) == sha256(state(learned.model))


def test_modules_follow_the_schedule_minibatch_by_minibatch(
    found, config, teacher, tmp_path, monkeypatch
):
    rates = []
    choose = Hybrid.choose
    monkeypatch.setattr(
        Hybrid, "choose", lambda self, rate, draw: (rates.append(rate), choose(self, rate, draw))
    )
    learn(found, config, "lcmr", teacher, tmp_path)
    updates = 5 * config.training.epochs  # 36 utterances, 8 in a minibatch
    wanted = [schedules.rate(config.replacing["lcmr"], n / updates) for n in range(updates)]
    assert rates == pytest.approx(wanted)
    assert rates[0] == 0.5 and rates[-4:] != [1.0] * 4 and rates[-3:] == [1.0] * 3


def test_minibatches_come_out_of_buckets_where_these_are_asked_for(settings, task):
    """One bucket has any lengths; the pool of twenty minibatches has all speech, by length."""

    def by_minibatch(**more: int) -> list[int]:
        training = settings().training.model_dump(mode="json", exclude_none=True) | more
        course = task(settings(training=training)).course(0)
        with course.draws(0).taken_up():
            batches = course.batches()
        lengths = [[len(course.utterances[i].log_mel[1.0]) for i in batch] for batch in batches]
        return [length for batch in sorted(map(sorted, lengths)) for length in batch]

    assert by_minibatch() == sorted(by_minibatch())
    assert by_minibatch(buckets=1) != sorted(by_minibatch())


def test_students_begin_alike(found):
    assert sha256(state(found.model("kd", 0))) == sha256(state(found.model("lcmr", 0)))
    assert sha256(state(found.model("kd", 1))) != sha256(state(found.model("kd", 0)))


@pytest.mark.parametrize(
    ("row", "more"),
    [*((row, {}) for row in ROWS), ("lcmr", {"optimizer": "lamb", "accumulated": 2})],
)
def test_a_training_goes_on_where_it_was_interrupted(
    task, config, teacher, tmp_path, monkeypatch, row, more
):
    training = config.training.model_copy(update=more)
    config = config.model_copy(update={"training": training})
    found = task(config)
    whole = learn(found, config, row, teacher, tmp_path / "whole")
    epoch = Loop.epoch

    def interrupted(self, number: int) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number)

    monkeypatch.setattr(Loop, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(found, config, row, teacher, tmp_path / "parted")
    epochs = []
    monkeypatch.setattr(
        Loop, "epoch", lambda self, number: (epochs.append(number), epoch(self, number))[1]
    )
    again = learn(found, config, row, teacher, tmp_path / "parted")
    assert epochs == [2]
    assert again.losses == whole.losses
    assert sha256(state(again.model)) == sha256(state(whole.model))


@pytest.mark.parametrize("row", ["teacher", "student", "kd", "lcmr"])
@pytest.mark.parametrize(
    ("optimizer", "accumulated", "kind", "steps"),
    [("adamw", 1, "AdamW", 5), ("lamb", 2, "Lamb", 3)],
)
def test_all_rows_learn_by_the_optimizer_and_in_the_steps_that_are_asked_for(
    task, config, teacher, loops, tmp_path, row, optimizer, accumulated, kind, steps
):
    """36 utterances are five minibatches."""
    asked = {"optimizer": optimizer, "accumulated": accumulated, "epochs": 1}
    training = config.training.model_copy(update=asked)
    config = config.model_copy(update={"training": training})
    learn(task(config), config, row, teacher, tmp_path)
    (loop,) = loops
    assert type(loop.optimizer).__name__ == kind
    taken: list[int] = []
    loop.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    loop.epoch(0)
    assert len(taken) == steps


def test_rows_and_seeds_differ(found, config, teacher, tmp_path):
    models = {row: learn(found, config, row, teacher, tmp_path).model for row in ROWS}
    other = learner.learn(found, config, Cell(1, "lcmr", True), teacher, tmp_path / "other")
    hashes = {sha256(state(model)) for model in [*models.values(), other.model]}
    assert len(hashes) == len(ROWS) + 1


def test_kd_has_the_teacher_hear_the_speech_itself(found, config, teacher, loops, tmp_path):
    kd = config.model_copy(update={"kd": config.kd.model_copy(update={"alpha": 1.0})})
    student = learn(found, kd, "kd", teacher, tmp_path).model.eval()
    (loop,) = loops
    taught = found.model("teacher", 0)
    taught.load_state_dict(teacher)
    update = found.course(0).update([0, 1, 2], 0)
    speech = update.batch.features, update.batch.lengths
    (mine, lengths), (its, _) = student(*speech), taught.eval()(*speech)
    own, every = rnnt.loss(student, mine, lengths, update.references), []
    for heard in (its, mine):
        told = lattice.loss(student, taught, 1.0, (mine, heard), lengths, update.references)
        every.append(told - own)
    torch.testing.assert_close(loop.losses(update) - own, every[0])
    assert (every[0] - every[1]).abs().min() > 1e-4


def test_modules_are_chosen_anew_in_each_epoch_with_each_seed_and_for_each_row(
    settings, task, teacher, tmp_path, monkeypatch
):
    half = {"schedule": "constant", "rate": 0.5, "phase": 0.9}
    config = settings(rows=["teacher", "one", "other"], replacing={"one": half, "other": half})
    found, choose, chosen = task(config), Hybrid.choose, []

    def watched(self, rate, draw):
        choose(self, rate, draw)
        chosen.append([ours for some in self._ours.values() for ours in some])

    monkeypatch.setattr(Hybrid, "choose", watched)
    for one in (Cell(0, "one", True), Cell(1, "one", True), Cell(0, "other", True)):
        learner.learn(found, config, one, teacher, tmp_path / one.name)
    # Five minibatches of three modules; the last epoch ends with the student alone.
    epochs = [str(chosen[first : first + 5]) for first in range(0, len(chosen), 5)]
    assert len(epochs) == 9 and len(set(epochs)) == 9
    assert {len(each) for each in chosen} == {3}


def test_a_model_is_judged_by_the_beam_that_is_asked_for(settings, task):
    """Each utterance searched by itself, its errors counted by jiwer."""
    found = task(settings(beam=4))
    about = found.student
    with seeding.scoped(0, 0, "", "talkative"):
        model = about.empty().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    wanted = []
    for utterance in found._test:
        batch = features.batch([utterance], about.features)
        (text,) = beam.decode(model, *model(batch.features, batch.lengths), about.units, width=4)
        told = jiwer.process_words(utterance.text, text)
        wanted.append(told.substitutions + told.deletions + told.insertions)
    (counts,) = found.errors(model).values()
    assert counts.errors.tolist() == wanted
    (greedy,) = task(settings()).errors(model).values()
    assert greedy.errors.tolist() != wanted


def test_a_training_that_diverges_says_whose_it_is(found, config, teacher, tmp_path):
    teacher["encoder.1.weight_hh_l0"].fill_(torch.nan)
    with pytest.raises(RunError, match=r"seed-0\.lcmr: training diverged in epoch 1 \(loss nan\)"):
        learn(found, config, "lcmr", teacher, tmp_path)


def test_a_damaged_checkpoint_is_told(found, config, tmp_path):
    (tmp_path / "student.checkpoint").write_bytes(b"noise")
    with pytest.raises(RunError, match=r"student\.checkpoint: damaged; without it"):
        learn(found, config, "student", None, tmp_path)


def test_a_checkpoint_of_another_model_is_told(found, config, tmp_path):
    loop = Loop(found.model("teacher", 0), found.course(0))
    checkpoint.save(tmp_path / "student.checkpoint", loop, losses=[1.0])
    with pytest.raises(RunError, match="not a checkpoint of this training"):
        learn(found, config, "student", None, tmp_path)


# What does not fit.


@pytest.fixture
def given(found, teacher, tmp_path):
    """A teacher's file with its description."""
    path = tmp_path / "given.safetensors"
    write(path, teacher)
    found.teacher.write(path.with_suffix(".json"))
    return path


def test_a_given_teacher_is_taken_and_not_trained(settings, task, teacher, given, tmp_path):
    config = settings(teacher={"name": "deep", "file": str(given)})
    check(config)
    learned = learner.learn(task(config), config, TEACHER, None, tmp_path / "kept")
    assert learned.losses == [] and sha256(state(learned.model)) == sha256(teacher)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"features": {"kind": "mfcc", "dimension": 16}},
            r"has features = \{'kind': 'log-mel', .*, the settings say \{'kind': 'mfcc', ",
        ),
        (
            {"units": {"kind": "characters"}},
            "has units.kind = words, the settings say characters",
        ),
        ({"teacher": {"name": "flat"}}, "has teacher.name = deep, the settings say flat"),
    ],
)
def test_a_teacher_of_another_kind_is_told_before_anything_is_read(settings, given, changed, told):
    changed["teacher"] = {"name": "deep"} | changed.get("teacher", {}) | {"file": str(given)}
    rows = ["teacher", "student"]
    with pytest.raises(ConfigError, match=told):
        check(settings(rows=rows, **changed))


def test_a_teacher_that_cannot_spell_the_training_speech_is_told(settings, task, given, found):
    units = Units("words", found.teacher.units.vocabulary[:-1])
    replace(found.teacher, units=units).write(given.with_suffix(".json"))
    told = (
        r"given\.json spells with 5 units \(ba di gu ke lo\); of the training speech it lacks 1 "
        r"unit \(mi\)$"
    )
    with pytest.raises(ConfigError, match=told):
        task(settings(teacher={"name": "deep", "file": str(given)}))


def test_models_spell_as_the_given_teacher_does(settings, task, given, found):
    """Whatever speech its units were learned from."""
    blank, first, *rest = found.teacher.units.vocabulary
    units = Units("words", [blank, "zu", *rest, first])
    replace(found.teacher, units=units).write(given.with_suffix(".json"))
    other = task(settings(teacher={"name": "deep", "file": str(given)}))
    assert other.student.units.to_json() == other.teacher.units.to_json() == units.to_json()
    (word,) = other.student.units.encode(first)
    assert word == len(rest) + 2


def test_a_schedule_that_ends_after_the_last_update_is_told(settings, task):
    """36 utterances are five updates in an epoch; the last of them begins at four fifths."""
    training = settings().training.model_dump(mode="json") | {"epochs": 1}
    assert task(settings(training=training, replacing={"lcmr": {"phase": 0.8}}))
    late = settings(training=training, replacing={"lcmr": {"phase": 0.81}})
    told = (
        r"replacing\.lcmr: with 5 updates a logarithmic schedule over 0\.81 of them never reaches 1"
    )
    with pytest.raises(ConfigError, match=told):
        task(late)


def test_a_teacher_that_is_none_or_damaged_is_told(settings, given, teacher):
    config = settings(teacher={"name": "deep", "file": str(given)})
    teacher.pop("output.bias")
    write(given, teacher)
    with pytest.raises(ModelError, match=r"tensor output\.bias is missing"):
        check(config)
    given.unlink()
    with pytest.raises(ModelError, match="given"):
        check(config)
    with pytest.raises(ModelError, match=r"nowhere\.json: not a description of a model"):
        check(settings(teacher={"name": "deep", "file": "nowhere.safetensors"}))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"teacher": {"name": "deep", "file": ""}}, r"teacher\.file: expected a safetensors file"),
        ({"student": {"name": "tdnn-tiny"}}, r"student\.name: tdnn-tiny is no RNN-T"),
        (
            {"teacher": {"name": "rnnt-tin"}},
            r"^teacher\.name: unknown model 'rnnt-tin'.*the nearest is rnnt-tiny",
        ),
        (
            {"student": {"name": "flat", "encoder_units": 8}},
            r"modules\.encoder: module 1 of 2 takes 48 values and gives 16 in the teacher, "
            "takes 48 and gives 8",
        ),
        ({"student": {"name": "flat", "projection": 16}}, r"^student\.projection: expected less"),
        (
            {"teacher": {"name": "rnnt-tiny"}},
            "modules: embedding is 24 in the teacher, 8 in the student",
        ),
    ],
)
def test_models_that_do_not_fit_are_told_before_anything_is_read(settings, changed, told):
    with pytest.raises(ConfigError, match=told):
        check(settings(**changed))


def test_an_utterance_with_more_units_than_frames_is_skipped_and_counted(
    settings, task, tones, tmp_path
):
    lines = (tones / "manifest.jsonl").read_text().splitlines()
    talk = ' "text": "' + "ba " * 400
    chatty = [lines[0].replace(' "text": "', talk), *lines[1:]]
    manifest = tones / "chatty.jsonl"
    manifest.write_text("\n".join(chatty) + "\n")
    found = task(settings(corpus={"path": str(manifest)}))
    assert found.skipped == 1 and len(found.course(0).utterances) == 35
    every = [line.replace(' "text": "', talk) for line in lines]
    manifest.write_text("\n".join(every) + "\n")
    with pytest.raises(CorpusError, match="all training utterances have too many units"):
        task(settings(corpus={"path": str(manifest)}))


def test_more_units_than_either_model_has_steps_are_learned(settings, task, tones):
    first = task(settings()).course(0).utterances[0]
    steps = -(-len(first.log_mel[1.0]) // 6)
    lines = (tones / "manifest.jsonl").read_text().splitlines()
    text = " ".join(["ba"] * (steps + 1))
    manifest = tones / "dense.jsonl"
    manifest.write_text(
        "\n".join(
            json.dumps(json.loads(line) | ({"text": text} if first.id in line else {}))
            for line in lines
        )
    )
    asked = {"corpus": {"path": str(manifest)}, "rows": ["teacher", "student"]}
    assert task(settings(**asked)).skipped == 0
    coarse = {"name": "deep", "subsampling": 12}
    assert task(settings(teacher=coarse, **asked)).skipped == 0
    assert task(settings(student=coarse, **asked)).skipped == 0


def test_an_empty_transcript_is_told_with_its_line(settings, task, tones):
    lines = (tones / "manifest.jsonl").read_text().splitlines()
    lines[3] = lines[3].partition(', "text": ')[0] + ', "text": " ", "round": 1}'
    manifest = tones / "silent.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorpusError, match=r"silent\.jsonl:4: utterance .*: empty transcript"):
        task(settings(corpus={"path": str(manifest)}))


def test_sets_are_told_apart_by_the_field_that_chooses_them(settings, task, tones):
    lines = (tones / "manifest.jsonl").read_text().splitlines()
    parts = {"t00": "train", "t01": "train", "t02": "clean", "t03": "other"}
    marked = [line.replace("{", f'{{"part": "{parts[line[8:11]]}", ', 1) for line in lines]
    manifest = tones / "parts.jsonl"
    manifest.write_text("\n".join(marked) + "\n")
    test = {"field": "part", "values": ["clean", "other"]}
    found = task(settings(corpus={"path": str(manifest)}, test=test))
    assert found.sets == {"clean": {"t02"}, "other": {"t03"}}
    assert task(settings()).sets == {}
    mixed = [line.replace('"part": "clean"', '"part": "other"') for line in marked[:-1]]
    clean = marked[-1].replace('"part": "other"', '"part": "clean"')
    manifest.write_text("\n".join([*mixed, clean]) + "\n")
    with pytest.raises(CorpusError, match="speaker t03 is in the test sets clean and other"):
        task(settings(corpus={"path": str(manifest)}, test=test))
