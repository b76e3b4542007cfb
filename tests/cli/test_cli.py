"""The command as a user types it: what it prints, how it ends, what it leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from federations import GENERIC_SPEAKERS, assert_same, results, settings

from fedspeech import cli, config, corpus, models
from fedspeech.corpus.partition import pseudonym


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSPEECH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tones(tone_corpus, tmp_path_factory) -> Path:
    return tone_corpus(tmp_path_factory.mktemp("tones"), GENERIC_SPEAKERS + 3, per_round=3)


@pytest.fixture
def experiment(tones, tmp_path) -> Path:
    """An experiment's file; one base, in one process."""
    file = tmp_path / "mine.toml"
    file.write_text(config.dump(settings(tones, federation={"bases": ["mean"]})))
    return file


def commands(group: click.Group, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        below = isinstance(command, click.Group)
        found += commands(command, (*above, name)) if below else [(*above, name)]
    return found


ALL = commands(typer.main.get_command(cli.app))


def test_the_commands_are_known():
    assert {("run",), ("demo",), ("report",), ("strategies",), ("corpus", "stats")} <= set(ALL)
    assert {("diff", name) for name in ("make", "apply", "inspect")} <= set(ALL)
    assert {("device", name) for name in ("status", "update", "rollback")} <= set(ALL)


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(fedspeech, command):
    status, out, _ = fedspeech(*command, "--help")
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", out).split())
    assert status == 0
    assert f"Example: fedspeech {' '.join(command)}" in plain


def test_nothing_to_do_shows_the_help(fedspeech):
    _, out, err = fedspeech()
    assert "Usage: fedspeech" in out + err


# A run from start to end.


def test_run_report_and_resume(fedspeech, experiment, tmp_path):
    folder = tmp_path / "runs" / "mine"
    status, out, err = fedspeech("run", experiment, "--out", folder, "--set", "seed=3")
    assert status == 0, err
    assert "Table 3: the best mix of each base" in out
    assert out.rstrip().endswith(f"report: {folder / 'report.html'}")
    assert re.search(r"^train\.personalize: 3 in \d+\.\d s", err, re.MULTILINE)
    assert results(folder)["seed"] == 3
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    status, again, _ = fedspeech("report", folder)
    assert status == 0
    assert again == out
    assert (folder / "report.html").read_bytes() == page
    # The settings in force are an experiment of their own.
    other = tmp_path / "again"
    status, _, err = fedspeech("run", folder / "config.toml", "--out", other)
    assert status == 0, err
    assert_same(folder, other)
    status, _, err = fedspeech("run", experiment, "--out", folder, "--set", "seed=3")
    assert status == 2
    assert err == (
        f"fedspeech: {folder}: there is a run already; go on with it (--resume), "
        "or choose another folder (--out)\n"
    )
    status, _, err = fedspeech("run", experiment, "--out", folder, "--resume", "--set", "seed=3")
    assert status == 0, err
    assert_same(folder, other)
    timing = json.loads((folder / "timing.json").read_text())
    stages = [stage["stage"] for stage in timing["stages"]]
    assert stages == ["corpus", "generic model", "federation", "results"]
    assert timing["worker_deaths"] == 0


@pytest.mark.parametrize("verbose", [False, True])
def test_what_flower_logs_is_shown_where_it_is_wanted(experiment, tmp_path, verbose):
    """In a process of its own: logging is set up once."""
    changes = ["federation.bases=['generic']", "federation.improve.rounds=1"]
    command = [Path(sys.executable).parent / "fedspeech", "run", experiment]
    command += ["--out", tmp_path / "run", *(part for c in changes for part in ("--set", c))]
    done = subprocess.run(
        [*command, *["--verbose"][:verbose]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert ("aggregate_train: Received 3 results" in done.stderr) == verbose
    others = [line for line in done.stderr.splitlines() if not re.search(r": \d+ in \d", line)]
    ours = "speakers are fine-tuned one by one: on a processor plain loops are faster than a stack"
    assert ours in others and bool(others[1:]) == verbose


# What a user gets wrong: one message, exit status 2, nothing left behind.


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("personal.epoch=3", "personal.epoch: unknown setting; the nearest known one is epochs"),
        ("federation.alphas=[0.0, 1.5]", "less than or equal to 1, found 1.5"),
        ("federation.bases=['mena']", "unknown rule mena; the nearest known one is mean"),
        ("rules.kbest.k=0", "rule kbest: k has to be a whole number of at least 1, found 0"),
        ("rules.kbest.n=3", "rule kbest: "),
        ("rules.mine.class='no_such:Rule'", "rule mine: cannot import no_such:Rule"),
        ("model.name='tdnn-smal'", "unknown model 'tdnn-smal'"),
        (
            "model.encoder_units=96",
            "--set model.encoder_units=96: model.encoder_units: a tdnn-tiny has width instead",
        ),
        ("corpus.path='no/such/folder'", "no/such/folder"),
        ("corpus.recipe='jsnol'", "jsnol"),
        ("partition.clients=99", "partition.clients: 99 speakers, but there are only 3 left"),
        ("federation.chosen_base='kbest'", "chosen_base: expected generic or one of bases (mean)"),
        ("federation.rounds=2", "rounds = 2: expected continue_from (base and alpha)"),
        (
            "federation.improve={class='flwr.serverapp.strategy:FedAvrg'}",
            "federation.improve.class = 'flwr.serverapp.strategy:FedAvrg': not found",
        ),
        (
            "federation.improve={class='flwr.serverapp.strategy:FedAvg',"
            " options={min_available_nodes=4}}",
            "FedAvg wants more speakers than the 3 that are there in round 1 (min_train_nodes = 2, "
            "min_evaluate_nodes = 2, min_available_nodes = 4); set them in "
            "federation.improve.options",
        ),
        ("generic.model='nowhere.safetensors'", "nowhere"),
        ("seed", "--set seed: expected section.key=value, names as in TOML"),
    ],
)
def test_a_wrong_setting_is_one_message(fedspeech, experiment, tmp_path, change, told):
    folder = tmp_path / "runs" / "mine"
    status, out, err = fedspeech("run", experiment, "--out", folder, "--set", change)
    assert (status, out) == (2, "")
    assert err.startswith("fedspeech: ")
    assert told in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "missing.toml"], "fedspeech: missing.toml: no such file\n"),
        (["corpus", "stats", "missing.toml"], "fedspeech: missing.toml: no such file\n"),
        (["report", "nowhere"], "nowhere/results.json: no such file"),
        (["report", "x" * 300], "fedspeech: [Errno 36] File name too long: 'xxx"),
    ],
)
def test_a_missing_file_is_one_message(fedspeech, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    status, out, err = fedspeech(*arguments)
    assert (status, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [[], ["--out", "elsewhere"]])
@pytest.mark.parametrize("on", [[], ["--on", "deployment", "home"]])
def test_where_no_run_has_begun_there_is_nothing_to_resume(
    fedspeech, experiment, tmp_path, monkeypatch, out, on
):
    monkeypatch.chdir(tmp_path)
    changes = ["--set", "federation.deployment.boxes=2"] if on else []
    status, said, err = fedspeech("run", experiment, "--resume", *out, *on, *changes)
    folder = "elsewhere" if out else "runs/small"
    assert (status, said) == (2, "")
    assert err == (
        f"fedspeech: {folder}: nothing to resume, no run has begun there; leave out --resume\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_folder_that_is_a_file_is_told(fedspeech, experiment, tmp_path):
    (tmp_path / "file").write_text("mine")
    status, _, err = fedspeech("run", experiment, "--out", tmp_path / "file")
    assert status == 2
    assert f"{tmp_path / 'file'}: cannot write there" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_somebody_elses_folder_stays_as_it_was(fedspeech, experiment, tmp_path):
    """A wrong setting takes away only what the run itself had made."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    fedspeech("run", experiment, "--out", folder, "--set", "corpus.path='no/such'")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_speech_that_cannot_be_used_names_every_line(fedspeech, experiment, tones, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    lines = (tones / "manifest.jsonl").read_text().splitlines()
    lines = [line.replace('"audio/', f'"{tones}/audio/') for line in lines]
    lines[1] = "{ not json"
    lines[4] = lines[4].replace(".wav", ".gone")
    (broken / "manifest.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "run"
    status, _, err = fedspeech(
        "run", experiment, "--out", folder, "--set", f"corpus.path='{broken}'"
    )
    assert status == 2
    first, second = err.splitlines()
    assert first.startswith(f"fedspeech: {broken / 'manifest.jsonl'}:2: not JSON")
    assert second.startswith(f"{broken / 'manifest.jsonl'}:5: ")
    assert not folder.exists()


@pytest.fixture
def rewritten(tones, tmp_path):
    """Another manifest of the same speech: `rewritten(change)`; entries that become None go."""

    def write(change) -> Path:
        lines = (tones / "manifest.jsonl").read_text().splitlines()
        entries = [{**e, "audio": str(tones / e["audio"])} for e in map(json.loads, lines)]
        path = tmp_path / "rewritten.jsonl"
        kept = [entry for entry in map(change, entries) if entry is not None]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        return path

    return write


def test_a_run_names_who_is_left_out_what_was_skipped_and_groups_that_are_too_large(
    fedspeech, experiment, rewritten, tmp_path, caplog
):
    """t03 has nothing to be tested on, and t04 says a word that G has never heard."""

    def change(entry):
        if entry["speaker"] == "t03" and entry["round"] == 4:
            return None
        strange = entry["id"] in ("t04-000", "t04-004")
        return {**entry, "text": "zebra"} if strange else entry

    changes = [f"corpus.path='{rewritten(change)}'", "federation.bases=['random']"]
    options = [part for one in changes for part in ("--set", one)]
    status, _, err = fedspeech("run", experiment, "--out", tmp_path / "run", *options)
    assert status == 0, err
    assert caplog.messages == [
        "speaker t03 is left out: test_s has no utterance",
        "rules.random: k = 2 takes all 1 other speakers: M_s is that of `mean`",
        f"speaker {pseudonym(0, 't04')}: 2 utterances of train_s were skipped; the vocabulary of "
        "G does not spell them, or with too many units for their length",
    ]
    status, out, _ = fedspeech("corpus", "stats", experiment, *options)
    assert (status, out.splitlines()[-1]) == (0, "left out: t03: test_s has no utterance")


def test_too_few_speakers_left_ends_the_run_with_the_reasons(
    fedspeech, experiment, rewritten, tmp_path
):
    """Two of three clients say only words that G has never heard."""
    other = rewritten(lambda e: {**e, "text": "zebra"} if e["speaker"] in ("t04", "t05") else e)
    folder = tmp_path / "run"
    status, _, err = fedspeech(
        "run", experiment, "--out", folder, "--set", f"corpus.path='{other}'"
    )
    assert status == 2
    said = err[err.index("fedspeech: ") :].splitlines()
    assert said[0] == (
        "fedspeech: round 1, train.personalize: 1 of 3 speakers left, expected at least 1.5 "
        "(federation.quorum)"
    )
    assert len(said) == 3
    assert all(
        line.endswith("CorpusError on the device; its errors.log says more") for line in said[1:]
    )
    logs = sorted(folder.glob("devices/*/errors.log"))
    assert len(logs) == 2
    assert "the vocabulary spells none of this speaker's utterances" in logs[0].read_text()


def test_ctrl_c_before_the_corpus_is_read_leaves_nothing(
    fedspeech, experiment, tmp_path, monkeypatch
):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "load", interrupted)
    status, out, err = fedspeech("run", experiment, "--out", tmp_path / "run")
    assert (status, out) == (130, "")
    assert err == "stopped before anything was finished\n"
    assert not (tmp_path / "run").exists()


# The small commands.


def test_models_are_listed_with_their_sizes(fedspeech):
    _, out, _ = fedspeech("models")
    for name in models.MODELS:
        count = models.parameters(models.build(name, 40, 500))
        assert re.search(rf"{name} .* {count:,} ", out)
    assert re.search(r"\brnnt-tiny-flat .*encoder_layers 2,", out)


def test_rules_are_listed_with_where_they_come_from(fedspeech, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = fedspeech("strategies")
    for name in ("generic", "mean", "kbest", "dendrogram", "random"):
        assert re.search(rf"{name} .*fedspeech, strategies\.{name}:", out)


def test_a_narrow_terminal_cuts_no_name_of_a_class_off(fedspeech, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = fedspeech("strategies")
    column = [line.split("│")[2].strip() for line in out.splitlines() if line.count("│") == 4]
    assert "strategies.dendrogram:Dendrogram" in "".join(column)


def test_corpus_stats(fedspeech, experiment, tones):
    status, out, _ = fedspeech("corpus", "stats", experiment)
    assert status == 0
    rows = {line.split("│")[1].strip(): line.split("│") for line in out.splitlines() if "│" in line}
    utterances = {part: int(row[3]) for part, row in rows.items()}
    assert utterances == {"generic": 24, "development": 12, "train_s": 27, "test_s": 9}


def test_the_version(fedspeech):
    from fedspeech import __version__

    assert fedspeech("version") == (0, f"{__version__}\n", "")
