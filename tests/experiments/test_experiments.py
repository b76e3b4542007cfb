"""Every experiment file is valid; TED-LIUM's runs on a miniature tree of the release's shape."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from fedspeech import config, models, rules, tensors
from fedspeech.cli import app
from fedspeech.models.description import read
from fedspeech.training.course import learning_rate
from fedspeech.training.distill.schedules import SCHEDULES
from fedspeech.training.distill.task import check

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted(path.name for path in EXPERIMENTS.glob("*.toml"))


@pytest.mark.parametrize("name", FILES)
def test_settings_and_rules_are_valid(name):
    settings = config.load(EXPERIMENTS / name)
    assert settings.name == Path(name).stem
    if settings.kind != "personalization":
        return
    for base in settings.federation.bases:
        rules.find(base, settings.rules.get(base, {}))


def test_no_experiment_of_ours_takes_all_other_speakers():
    for name, clients in (("demo.toml", 16), ("arabic-commands.toml", 8), ("an4.toml", 16)):
        settings = config.load(EXPERIMENTS / name)
        for rule in ("kbest", "dendrogram", "random"):
            assert rules.find(rule, settings.rules[rule]).largest_group() < clients - 1


def test_the_papers_figures_are_written_out():
    for name in ("tedlium3-perso1.toml", "tedlium3-perso2.toml"):
        settings = config.load(EXPERIMENTS / name)
        generic, personal = settings.generic, settings.personal
        assert (generic.learning_rate, generic.final_learning_rate) == (2.5e-4, 2.5e-5)
        assert (personal.learning_rate, personal.final_learning_rate) == (2.5e-5, 1.5e-5)
        assert (generic.batch_size, personal.batch_size, personal.epochs) == (32, 32, 3)
        for training in (generic, personal):
            probabilities = [probability for _, probability in training.dropout]
            assert probabilities == [0.0, 0.5, 0.0]
        assert {name: table["k"] for name, table in settings.rules.items()} == {
            "kbest": 10,
            "dendrogram": 50,
            "random": 50,
        }
        assert settings.rules["kbest"]["search"] == "racing"
        assert (settings.model.name, settings.features.kind) == ("tdnn", "mfcc")


def write_talk(folder: Path, talk: str, corpus: Path, speaker: str) -> None:
    """One talk out of a tone speaker's utterances: NIST SPHERE audio and its stm."""
    entries = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    waves, lines, start = [], [], 0
    for entry in entries:
        if entry["speaker"] != speaker:
            continue
        wave, rate = soundfile.read(corpus / entry["audio"], dtype="int16")
        times = f"{start / rate:.4f} {(start + len(wave)) / rate:.4f}"
        lines.append(f"{talk} 1 {talk} {times} <o,f0,male> {entry['text']}\n")
        waves.append(wave)
        start += len(wave)
    for kind in ("stm", "sph"):
        (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
    sph = folder / "data" / "sph" / f"{talk}.sph"
    soundfile.write(sph, np.concatenate(waves), rate, format="NIST", subtype="PCM_16")
    (folder / "data" / "stm" / f"{talk}.stm").write_text("".join(lines))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Run a command on one of the experiments, with other settings; the folder of the run."""

    def run(what: str, name: str, changes: dict[str, object]) -> Path:
        options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        monkeypatch.setenv("FEDSPEECH_CACHE", str(tmp_path / "cache"))
        out = tmp_path / "run"
        file = str(EXPERIMENTS / name)
        done = CliRunner().invoke(app, [what, file, *options, "--out", str(out)])
        assert done.exit_code == 0, done.output
        return out

    return run


def test_tedlium3_runs_on_a_miniature_release(tmp_path, tone_corpus, ran):
    corpus = tone_corpus(tmp_path / "tones", 6)
    release = tmp_path / "TEDLIUM_release-3"
    for number in range(6):
        write_talk(release, f"Talk{number}_2012", corpus, f"t{number:02}")
    lists = {"generic": range(3), "clients": range(3, 6)}
    for part, numbers in lists.items():
        names = [f"Talk{number}_2012" for number in numbers]
        (tmp_path / f"{part}.txt").write_text("\n".join([*names, "Missing_2012"]) + "\n")
    changes = {
        "corpus.path": release,
        "partition.generic": tmp_path / "generic.txt",
        "partition.development": 1,
        "partition.clients": tmp_path / "clients.txt",
        "partition.train": "{ seconds = 4.0 }",
        "units.size": 16,
        "model.name": "tdnn-tiny",
        "generic.epochs": 1,
        "engine.grid": "in-process",
        "rules.kbest.k": 1,
        "rules.dendrogram.k": 1,
        "rules.random.k": 1,
    }
    out = ran("run", "tedlium3-perso1.toml", changes)
    results = json.loads((out / "results.json").read_text())
    assert results["speakers"] == 3
    parts = {row["part"]: row for row in results["corpus"]}
    assert parts["generic"]["speakers"] + parts["development"]["speakers"] == 3
    assert all(seconds <= 4.0 for seconds in parts["train_s"]["seconds_per_speaker"].values())
    race = results["decodings"]["kbest"]
    assert 0 < race["used"] < race["exhaustive"]
    assert read(out / "models" / "generic.json").units.kind == "pieces"
    assert (out / "report.html").exists()


SHARES = {"sparse.prune": "[0.1, 0.5]", "sparse.compressed_prune": "[0.4, 0.7]"}
"""Of updates that are fewer than the paper's."""


def fluent_tree(folder: Path, corpus: Path) -> None:
    """Four tone speakers in the shape of the release: two train, one is valid, one tests."""
    entries = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    actions = ("activate", "deactivate", "increase", "decrease", "bring", "change language")
    of_word = dict(zip(dict.fromkeys(entry["text"] for entry in entries), actions, strict=True))
    parts = {"t00": "train", "t01": "train", "t02": "valid", "t03": "test"}
    (folder / "data").mkdir(parents=True)
    lines = {
        part: [",path,speakerId,transcription,action,object,location"] for part in parts.values()
    }
    for number, entry in enumerate(entries):
        said = f"{entry['text']},{of_word[entry['text']]},lights,none"
        path = corpus / entry["audio"]
        lines[parts[entry["speaker"]]].append(f"{number},{path},{entry['speaker']},{said}")
    for part, listed in lines.items():
        (folder / "data" / f"{part}_data.csv").write_text("\n".join(listed) + "\n")


def test_fluent_speech_commands_runs_on_a_miniature_release(tmp_path, tone_corpus, ran):
    fluent_tree(tmp_path / "fluent", tone_corpus(tmp_path / "tones", 4, rounds=1, most_words=1))
    changes = {
        "corpus.path": tmp_path / "fluent",
        "seeds": "[0]",
        "ratios": "[20.0]",
        "training.epochs": 1,
        "sparse.epochs": 1,
        "hash.epochs": 1,
        **SHARES,
        "engine.workers": 1,
    }
    out = ran("run", "neural-diff-slu-fluent.toml", changes)
    results = json.loads((out / "results.json").read_text())
    assert [one["phrases"] for one in results["generations"]] == [3, 4, 5, 6]
    assert (results["metric"], results["speakers"]) == ("error", 1)
    assert (out / "report.html").exists()


def test_diffs_are_paired_with_the_papers_settings():
    """10x for recognition, 20x and 40x for understanding, from half of the speech on."""
    asr, slu = (config.load(EXPERIMENTS / f"neural-diff-{task}.toml") for task in ("asr", "slu"))
    assert asr.recognition.shares == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert (asr.ratios, slu.ratios) == ((10.0,), (20.0, 40.0))
    assert len(asr.seeds) == len(slu.seeds) == 3
    fluent = config.load(EXPERIMENTS / "neural-diff-slu-fluent.toml").sparse
    assert fluent.prune == fluent.compressed_prune == (2000, 12_000)
    assert slu.training.dropout == ((0.0, 0.2),) and slu.hash.hold > slu.sparse.hold
    commands = [word for words in slu.understanding.domains.values() for word in words]
    assert len(set(commands)) == 40 and len(slu.understanding.domains) == 6


@pytest.mark.speech
def test_the_domains_are_the_commands_of_the_corpus():
    slu = config.load(EXPERIMENTS / "neural-diff-slu.toml")
    manifest = EXPERIMENTS.parent / slu.corpus.path / "manifest.jsonl"
    if not manifest.exists():
        pytest.skip("no real speech in ../shared/data")
    intents = {json.loads(line)["intent"] for line in manifest.read_text().splitlines()}
    assert intents == {w for words in slu.understanding.domains.values() for w in words}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("lcmr")])
def test_modules_of_teacher_and_student_match(name):
    settings = config.load(EXPERIMENTS / name)
    check(settings)
    units = 1024 if "librispeech" in name else 25
    sizes = [
        models.parameters(models.build(one.name, settings.features.dimension, units))
        for one in (settings.student, settings.teacher)
    ]
    assert 0.45 < sizes[0] / sizes[1] < 0.65


@pytest.mark.parametrize(
    ("name", "layers", "batch"), [("lcmr-librispeech", 4, 256), ("lcmr-librispeech-57m", 6, 128)]
)
def test_the_distillation_papers_figures_are_written_out(name, layers, batch):
    """Warm-up to 5e-4 in epoch 1, kept to epoch 20, from there exponentially to 1e-5 in 100."""
    settings = config.load(EXPERIMENTS / f"{name}.toml")
    training, kd = settings.training, settings.kd
    assert training.batch_size * training.accumulated == batch
    assert (training.accumulated, training.buckets) == (8, 6)
    rates = [learning_rate(training, epoch / 100) for epoch in (0, 0.5, 1, 10, 20, 60, 100)]
    wanted = [0, 2.5e-4, 5e-4, 5e-4, 5e-4, math.sqrt(5e-4 * 1e-5), 1e-5]
    assert rates == pytest.approx(wanted)
    assert (training.optimizer, training.weight_decay, kd.alpha) == ("lamb", 1e-3, 1e-3)
    assert sum(settings.modules.encoder.teacher) == layers
    ways = settings.replacing
    assert {way.phase for way in ways.values()} == {0.75}
    assert (ways["lcmr"].schedule, ways["lcmr"].base) == ("logarithmic", 40)
    assert (ways["constant"].rate, ways["strategy-1"].strategy) == (0.75, 1)
    assert len(settings.test.values) == 4


def test_the_ablations_are_the_papers():
    settings = config.load(EXPERIMENTS / "lcmr-ablations.toml")
    ways = [settings.replacing[row] for row in settings.rows if row in settings.replacing]
    assert {way.schedule for way in ways} == set(SCHEDULES)
    assert {way.strategy for way in ways} == {1, 2}
    logarithmic = [way for way in ways if way.schedule == "logarithmic" and way.strategy == 2]
    assert {way.rate for way in logarithmic} == {0.25, 0.5, 0.75}
    assert {way.base for way in logarithmic} == {math.e, 20, 40}


def test_the_diff_papers_recognizer_and_pruning_are_written_out():
    """64.1 M; steps 1k to 11k for a diff, 20k to 35k for BLC."""
    settings = config.load(EXPERIMENTS / "neural-diff-asr-librispeech.toml")
    recognition, sparse = settings.recognition, settings.sparse
    assert (settings.features.kind, settings.features.dimension) == ("log-mel", 64)
    assert (recognition.units.kind, recognition.units.size) == ("pieces", 2503)
    with torch.device("meta"):
        model = models.build(recognition.model.name, settings.features.dimension, 2501)
    assert models.parameters(model) == pytest.approx(64.1e6, rel=0.005)
    assert recognition.shares == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) and settings.ratios == (10.0,)
    assert (sparse.prune, sparse.compressed_prune) == ((1000, 11_000), (20_000, 35_000))
    fewest = settings.training.epochs * math.ceil(0.5 * 281_241 / settings.training.batch_size)
    assert fewest > 35_000  # of 281,241 utterances, half train in generation 0


def test_librispeech_gets_diffs_on_a_miniature_release(tmp_path, tone_corpus, ran):
    corpus = tone_corpus(tmp_path / "tones", ["1001", "1002", "1003"], rounds=1)
    parts = ("train-clean-100", "train-other-500", "test-clean")
    for part, speaker in zip(parts, ("1001", "1002", "1003"), strict=True):
        write_chapter(tmp_path / "LibriSpeech" / part, corpus, speaker)
    quick = {"epochs": 1, "batch_size": 4}
    changes = {
        "corpus.path": tmp_path / "LibriSpeech",
        "engine.workers": 1,
        "seeds": "[0]",
        "recognition.shares": "[0.5, 1.0]",
        "recognition.model.name": "rnnt-tiny",
        "recognition.units.size": 16,
        **SHARES,
        **{f"{s}.{k}": v for s in ("training", "sparse", "hash") for k, v in quick.items()},
    }
    out = ran("run", "neural-diff-asr-librispeech.toml", changes)
    results = json.loads((out / "results.json").read_text())
    assert results["metric"] == "WER" and results["speakers"] == 1
    sent = {(row["model"], row["method"]): row for row in results["table"] if row["ratio"]}
    assert set(sent) == {(model, way) for model in ("diff", "BLC") for way in ("sparse", "hash")}
    for row in sent.values():
        assert max(row["bytes"]) <= row["full"] / 10
    for name in ("BL", "diff-sparse-10x", "diff-hash-10x"):
        model = tensors.read(out / "models" / f"seed-0.generation-1.{name}.safetensors")
        assert model["encoder.0.weight_ih_l0"].shape[1] == 3 * 64 and "embedding.weight" in model


def test_librispeech_is_distilled_on_a_miniature_release(tmp_path, tone_corpus, ran):
    tests = ("dev-clean", "dev-other", "test-clean", "test-other")
    parts = ("train-clean-100", "train-other-500", *tests)
    speakers = [f"100{number}" for number in range(len(parts))]
    corpus = tone_corpus(tmp_path / "tones", speakers, rounds=1)
    for part, speaker in zip(parts, speakers, strict=True):
        write_chapter(tmp_path / "LibriSpeech" / part, corpus, speaker)
    changes = {
        "corpus.path": tmp_path / "LibriSpeech",
        "units.size": 16,
        "rows": '["teacher", "lcmr"]',
        "teacher.name": "rnnt-tiny-deep",
        "student.name": "rnnt-tiny-flat",
        "modules.encoder.teacher": "[3, 2]",
        "training.epochs": 1,
        "training.batch_size": 2,
        "training.accumulated": 2,
    }
    out = ran("distill", "lcmr-librispeech.toml", changes)
    results = json.loads((out / "results.json").read_text())
    assert [row["row"] for row in results["table"]] == ["teacher", "lcmr"]
    for row in results["table"]:
        assert set(row["sets"]) == {*tests}
    assert read(out / "models" / "generic.json").units.kind == "pieces"


def write_chapter(folder: Path, corpus: Path, speaker: str) -> None:
    """One speaker's utterances as a chapter of LibriSpeech."""
    entries = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    own = [entry for entry in entries if entry["speaker"] == speaker]
    chapter = folder / speaker / "1"
    chapter.mkdir(parents=True)
    lines = []
    for number, entry in enumerate(own):
        wave, rate = soundfile.read(corpus / entry["audio"])
        id = f"{speaker}-1-{number:04}"
        soundfile.write(chapter / f"{id}.flac", wave, rate)
        lines.append(f"{id} {entry['text'].upper()}\n")
    (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
