"""Runs whose models travel as diffs: what is sent, how large it is, and what comes of it."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from federations import (
    CLIENT,
    Around,
    assert_same,
    journaled,
    ledger,
    made,
    results,
    settings,
    simulate,
)
from flwr.app import Message
from slow import slow

from clients.speaker import Speaker
from fedspeech import protocol, tensors
from fedspeech.corpus.partition import pseudonym
from fedspeech.diff import wire
from fedspeech.diff.apply import apply
from fedspeech.errors import ConfigError, DiffError
from fedspeech.population import Population
from fedspeech.releases import Releases
from fedspeech.simulation import devices
from fedspeech.tensors import sha256, size

CLIENTS = 4
FEDERATION = {
    "bases": ["kbest", "quick"],
    "rounds": 2,
    "continue_from": {"base": "kbest", "alpha": 0.5},
}
BUDGET = {"base": "20x", "personal": "10x", "compare": ["100x"]}


class Diffs(Around):
    """Keeps the diffs of all messages and of the answers to them, with what was asked."""

    def __init__(self, grid) -> None:
        super().__init__(grid)
        self.kept: list[tuple[str, dict, bytes]] = []
        self._last: dict[int, Message] = {}

    def sent(self, message):
        self._last[message.metadata.dst_node_id] = message
        self._keep(message, message)

    def received(self, reply):
        asked = self._last[reply.metadata.src_node_id]
        if not reply.has_error() and asked.metadata.message_type == protocol.PERSONALIZE:
            self._keep(reply, asked)
        return reply

    def _keep(self, message, asked):
        kind, text = asked.metadata.message_type, protocol.text(asked.content)
        for record in message.content.array_records.values():
            if protocol.holds_diffs(record):
                self.kept += [(kind, text, data) for data in protocol.unpack_diffs(record)]

    def of(self, kind):
        return [(text, data) for asked, text, data in self.kept if asked == kind]


def recorded(experiment, folder, client=CLIENT):
    grids = []
    simulate(experiment, folder, client, around=lambda grid: grids.append(Diffs(grid)) or grids[0])
    return folder, grids[0]


@pytest.fixture(scope="module")
def experiment(corpus, tmp_path_factory):
    lines = tmp_path_factory.mktemp("budgets") / "speakers.csv"
    lines.write_text("speaker,generic,base,personal\nt03,,30kB,\nt04,,,25kB\n")
    return settings(corpus, federation=FEDERATION, budget={**BUDGET, "speakers": str(lines)})


@pytest.fixture(scope="module")
def budgeted(experiment, tmp_path_factory):
    return recorded(experiment, tmp_path_factory.mktemp("budgeted") / "run")


def full(folder) -> int:
    return size(dict(Population(folder / "models").generic()))


def test_no_diff_is_larger_than_any_budget_that_speaks_of_it(budgeted):
    folder, diffs = budgeted
    whole = full(folder)
    judged = diffs.of(protocol.EVALUATE)
    most = {
        base: max(len(data) for text, data in judged if text["base"] == base)
        for base in {text["base"] for text, _ in judged}
    }
    assert set(most) == {b + at for b in FEDERATION["bases"] for at in ("", " at 100x")}
    for base, bytes in most.items():
        ratio = 100 if base.endswith(" at 100x") else 20
        assert 0.9 * whole / ratio < bytes <= whole / ratio
    up = [len(data) for _, data in diffs.of(protocol.PERSONALIZE)]
    assert len(up) == 2 * CLIENTS
    assert max(up) <= whole // 10
    assert sum(bytes <= 25_000 for bytes in up) == 2  # t04, twice
    installed = [len(data) for _, data in diffs.of(protocol.INSTALL)]
    assert len(installed) == CLIENTS
    assert sum(bytes <= 30_000 for bytes in installed) == 1  # t03
    assert max(installed) <= whole // 20


def test_what_the_server_keeps_is_what_the_diffs_say(budgeted):
    folder, diffs = budgeted
    population = Population(folder / "models")
    generic = dict(population.generic())
    came = {sha256(apply(generic, data)) for _, data in diffs.of(protocol.PERSONALIZE)}
    for path in devices.folders(folder / "devices"):
        here = dict(population.personal(path.name))
        assert sha256(here) in came
        # The device uses its own P_s as it is, of which the diff is the nearest that fits.
        there = Speaker(path).personal()
        assert sha256(there) != sha256(here)
        assert tensors.distance(there, here) < tensors.distance(there, generic)


def test_the_installed_m_follows_the_line_that_the_server_remembers(budgeted):
    folder, _diffs = budgeted
    population = Population(folder / "models")
    for path in devices.folders(folder / "devices"):
        line = Releases(population.pushed(path.name))
        assert line.names[0] == sha256(dict(population.generic()))
        assert Speaker(path).store.hash("base") == line.names[-1]
        assert sha256(line.model(line.names[-1])) == sha256(Speaker(path).store.get("base"))


def test_candidates_go_out_as_the_diffs_that_came(budgeted):
    folder, diffs = budgeted
    came = Counter(sha256_of(data) for _, data in diffs.of(protocol.PERSONALIZE))
    sent = {sha256_of(data) for _, data in diffs.of(protocol.WORD_ERRORS)}
    assert sent
    assert sent <= set(came)
    asked = [row for row in ledger(folder) if row["kind"] == protocol.WORD_ERRORS]
    assert max(int(row["bytes"]) for row in asked) < CLIENTS * (full(folder) // 10 + 1000)


def sha256_of(data: bytes) -> str:
    return wire.decode(data).result


def test_the_ledger_counts_what_was_sent(budgeted):
    folder, diffs = budgeted
    rows = [row for row in ledger(folder) if row["direction"] == "down"]
    judged = sum(int(row["bytes"]) for row in rows if row["kind"] == protocol.EVALUATE)
    carried = sum(len(data) for _, data in diffs.of(protocol.EVALUATE))
    messages = sum(row["kind"] == protocol.EVALUATE for row in rows)
    assert carried < judged < carried + 1200 * messages


def test_results_say_what_each_budget_took_and_cost(budgeted):
    folder, diffs = budgeted
    found = results(folder)
    rows = {(row["base"], row["budget"]): row for row in found["budgets"]}
    assert list(rows) == [(b, at) for b in FEDERATION["bases"] for at in ("20x", "100x")]
    sent = {}
    for text, data in diffs.of(protocol.EVALUATE):
        sent.setdefault(text["base"], []).append(len(data))
    for (base, budget), row in rows.items():
        name = base if budget == "20x" else f"{base} at {budget}"
        assert row["bytes"] == pytest.approx(sum(sent[name]) / CLIENTS)
        assert row["most_bytes"] == max(sent[name])
    for base in FEDERATION["bases"]:
        assert 0 < rows[base, "20x"]["lost"] < rows[base, "100x"]["lost"] < 1
        first, other = (rows[base, budget]["table"] for budget in ("20x", "100x"))
        shown = [row for row in found["table"] if row["base"] == base]
        for cell, row in zip(first, shown, strict=True):
            assert {**cell, "base": base} == {**row, "change": {"mean": 0, "low": 0, "high": 0}}
        for cell, before in zip(other, first, strict=True):
            change = cell["mean"] - before["mean"]
            assert cell["change"]["mean"] == pytest.approx(change, abs=1e-5)


def test_a_run_that_is_interrupted_sends_the_same(experiment, budgeted, tmp_path):
    class Broken(Exception):
        pass

    class Breaks(Around):
        count = 0

        def received(self, reply):
            Breaks.count += 1
            if Breaks.count in (9, 25, 38):
                raise Broken
            return reply

    for _ in range(3):
        with pytest.raises(Broken):
            simulate(experiment, tmp_path / "run", around=Breaks)
    simulate(experiment, tmp_path / "run", around=Breaks)
    assert_same(budgeted[0], tmp_path / "run")
    assert len(journaled(tmp_path / "run")) == len(journaled(budgeted[0]))


def test_a_damaged_diff_of_a_personal_model_is_named_and_asked_for_again(
    experiment, budgeted, tmp_path, caplog
):
    folder = Path(shutil.copytree(budgeted[0], tmp_path / "run"))
    (folder / "results.json").unlink()
    speaker = pseudonym(0, "t03")
    path = Population(folder / "models").diff_path(speaker)
    path.write_bytes(path.read_bytes()[:-1])
    simulate(experiment, folder)
    assert f"{path}: missing or damaged; speaker {speaker} is asked again" in caplog.messages
    assert_same(folder, budgeted[0])


@slow
def test_where_the_server_mixes_the_mix_is_pushed(corpus, tmp_path):
    asked = settings(
        corpus,
        federation={"bases": ["mean"], "mix_on": "server", "alphas": [0.5, 1.0]},
        budget={"compare": ["40x"], "method": "hash"},
    )
    folder, diffs = recorded(asked, tmp_path / "run")
    judged = diffs.of(protocol.EVALUATE)
    assert len(judged) == CLIENTS  # at alpha 0.5; alpha 1 is P_s
    assert {wire.decode(data).hashes for _, data in judged} == {3}
    assert max(len(data) for _, data in judged) <= full(folder) // 40
    rows = {row["budget"]: row for row in results(folder)["budgets"] if row["base"] == "mean"}
    assert rows[None]["bytes"] == full(folder)
    assert rows["40x"]["bytes"] == pytest.approx(sum(len(d) for _, d in judged) / CLIENTS)


def test_a_device_is_within_the_budget_that_it_reports(corpus, tmp_path):
    asked = settings(corpus, federation={"bases": ["mean"]}, budget={"base": "20x"})
    whole = simulate(asked, tmp_path / "all")
    about = devices.folders(whole / "devices")[0] / "device.json"
    told = {**json.loads(about.read_text()), "budgets": {"base": "9 kB"}}
    other = tmp_path / "own" / "devices" / about.parent.name
    other.mkdir(parents=True)
    for part in ("train.jsonl", "test.jsonl"):
        (other / part).write_bytes((about.parent / part).read_bytes())
    (other / "device.json").write_text(json.dumps(told))
    _, diffs = recorded(asked, tmp_path / "own")
    sizes = sorted(len(data) for _, data in diffs.of(protocol.EVALUATE))
    assert sizes[0] <= 9000 < sizes[1]


# Generations of G.


@pytest.fixture(scope="module")
def line(corpus, tmp_path_factory):
    """Three runs whose G are released in one line, as diffs of at most a third."""
    runs, folder = [], tmp_path_factory.mktemp("generations")
    for seed in range(3):
        asked = settings(
            corpus,
            seed=seed,
            federation={"bases": ["mean"]},
            generic={"releases": str(folder / "line")},
            budget={"generic": "3x"} if seed else {},
        )
        runs.append((asked, simulate(asked, folder / f"run-{seed}")))
    return Releases(folder / "line"), runs


def test_each_run_adds_a_generation_and_goes_on_with_what_is_released(line):
    line, runs = line
    assert len(line.names) == 3
    for name, (_, folder) in zip(line.names, runs, strict=True):
        assert sha256(tensors.read(folder / "models" / "generic.safetensors")) == name
    whole = full(runs[0][1])
    for place in (1, 2):
        assert len((line.folder / f"{place:04}.diff").read_bytes()) <= whole // 3
    asked, folder = runs[2]
    before = made(folder)
    (folder / "results.json").unlink()
    simulate(asked, folder)
    assert made(folder) == before
    assert len(line.names) == 3


def hold(folder, asked, corpus_folders, model) -> None:
    """Lay out the devices of a run that has not begun; the first of them holds an earlier G."""
    first = corpus_folders[0]
    device = folder / "devices" / first.name
    device.mkdir(parents=True)
    for part in ("train.jsonl", "test.jsonl", "device.json"):
        (device / part).write_bytes((first / part).read_bytes())
    Speaker(device).store.put("generic", model)


def test_a_device_behind_is_sent_what_leads_to_the_last_generation(line, corpus, tmp_path):
    line, runs = line
    asked, before = runs[2]
    oldest = line.model(line.names[0])
    hold(tmp_path / "behind", asked, devices.folders(before / "devices"), oldest)
    behind, diffs = recorded(asked, tmp_path / "behind")
    (first, *_) = devices.folders(behind / "devices")
    expected = line.deliver(line.names[0], None, line.names[-1])
    got = [data for text, data in diffs.of(protocol.PERSONALIZE)]
    assert got == list(expected)
    assert Speaker(first).store.hash("generic") == line.names[-1]
    down = {
        row["speaker"]: int(row["bytes"])
        for row in ledger(behind)
        if (row["kind"], row["direction"]) == (protocol.PERSONALIZE, "down")
    }
    assert (
        down[first.name]
        < sum(map(len, expected)) + 4000
        < min(bytes for name, bytes in down.items() if name != first.name)
    )
    assert results(behind)["table"] == results(before)["table"]


def test_whose_budget_allows_neither_diff_nor_whole_is_refused_with_the_reason(corpus, tmp_path):
    lines = tmp_path / "speakers.csv"
    lines.write_text("speaker,generic,base,personal\nt04,10kB,,\n")
    asked = settings(corpus, federation={"bases": ["mean"]}, budget={"speakers": str(lines)})
    found = results(simulate(asked, tmp_path / "run"))
    (failure,) = found["failures"]
    assert failure["speaker"] == pseudonym(0, "t04")
    assert failure["message"] == protocol.PERSONALIZE
    whole = full(tmp_path / "run")
    assert failure["reason"].startswith("it holds no generation; what leads from there to ")
    assert failure["reason"].endswith(f" has {whole} bytes, and its budget is 10000 bytes")
    assert found["speakers"] == CLIENTS - 1


def test_whose_own_budget_nothing_fits_drops_out_alone(corpus, tmp_path):
    lines = tmp_path / "speakers.csv"
    lines.write_text("speaker,generic,base,personal\nt04,,20B,\nt05,,,30B\n")
    asked = settings(
        corpus,
        federation={"bases": ["mean"], "quorum": 0.1},
        budget={"speakers": str(lines), "base": "4x"},
    )
    found = results(simulate(asked, tmp_path / "run"))
    failures = {one["speaker"]: (one["message"], one["reason"]) for one in found["failures"]}
    assert failures.keys() == {pseudonym(0, "t04"), pseudonym(0, "t05")}
    for speaker, kind, what, most in (
        ("t04", protocol.EVALUATE, "M_s", 20),
        ("t05", protocol.PERSONALIZE, "P_s", 30),
    ):
        message, reason = failures[pseudonym(0, speaker)]
        told = rf"{what}: a budget of {most} bytes is too small: the least is \d+ bytes"
        assert message == kind and re.fullmatch(told, reason)
    assert found["speakers"] == CLIENTS - 2


def test_a_release_that_was_made_within_a_larger_budget_is_not_taken(line, corpus, tmp_path):
    line, _runs = line
    asked = settings(
        corpus,
        seed=1,
        federation={"bases": ["mean"]},
        generic={"releases": str(line.folder)},
        budget={"generic": "600B"},
    )
    told = r"budget\.generic: 600 bytes, and .* has a release of this G of \d+ bytes, made within"
    with pytest.raises(DiffError, match=told):
        simulate(asked, tmp_path / "again")


def test_a_budget_too_small_for_the_next_generation_is_told(line, corpus, tmp_path):
    line, _ = line
    asked = settings(
        corpus,
        seed=9,
        federation={"bases": ["mean"]},
        generic={"releases": str(line.folder)},
        budget={"generic": "20B"},
    )
    with pytest.raises(DiffError, match=r"budget\.generic: .* the least is \d+ bytes"):
        simulate(asked, tmp_path / "run-9")


def test_a_budget_too_small_for_any_m_names_the_speaker_and_the_least(corpus, tmp_path):
    asked = settings(corpus, federation={"bases": ["mean"]}, budget={"base": "20B"})
    told = r"budget of M_s for s\w+: a budget of 20 bytes is too small: the least is \d+ bytes"
    with pytest.raises(DiffError, match=told):
        simulate(asked, tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("speaker,base\n", "speakers.csv:1: expected the header speaker,generic,base,personal"),
        ("speaker,generic,base,personal\nnobody,,,\n", "speakers.csv:2: the corpus has no speaker"),
        (
            "speaker,generic,base,personal\nt04,,ten,\n",
            "speakers.csv:2: base: budget: expected bytes .* found 'ten'",
        ),
        (
            "speaker,generic,base,personal\nt04,,1kB,\nt04,,1kB,\n",
            "speakers.csv:3: speaker t04 has budgets already",
        ),
    ],
)
def test_a_file_of_budgets_that_cannot_be_used_is_told_before_g_is_trained(
    corpus, tmp_path, text, told
):
    lines = tmp_path / "speakers.csv"
    lines.write_text(text)
    with pytest.raises(ConfigError, match=told):
        simulate(settings(corpus, budget={"speakers": str(lines)}), tmp_path / "run")
    assert not (tmp_path / "run" / "models").exists()
