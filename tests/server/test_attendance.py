"""The plan of a run, from files that name the corpus's speakers to the pseudonyms of the server."""

import pytest
from federations import settings

from fedspeech import corpus as corpora
from fedspeech.config.federation import FederationSettings
from fedspeech.corpus.partition import by_speaker, partition, pseudonym
from fedspeech.errors import ConfigError, RunError
from fedspeech.protocol import Member
from fedspeech.run_folder import RunFolder
from server import attendance, improve
from server.journal import Journal, Row
from strategies.outcome import Failure

CLIENTS = ("t03", "t04", "t05", "t06")
FEDAVG = {"class": "flwr.serverapp.strategy:FedAvg", "rounds": 2}


@pytest.fixture(scope="module")
def corpus(tone_corpus, tmp_path_factory):
    """t00, t01 and t02 train G; the other four are clients."""
    return tone_corpus(tmp_path_factory.mktemp("tones"), 7)


@pytest.fixture(scope="module")
def speech(corpus):
    return corpora.load(settings(corpus).corpus)


@pytest.fixture
def planned(corpus, speech):
    def plan(participation, seed=0, **federation):
        whole = {"participation": participation, **federation}
        experiment = settings(corpus, seed=seed, federation=whole, personal={"epochs": 3})
        clients = partition(speech, experiment.partition).clients
        rounds = attendance.plan(experiment, clients, set(by_speaker(speech)))
        improve.check(experiment.federation, attendance.of("improve", rounds))
        return rounds

    return plan


@pytest.fixture
def file(tmp_path):
    def write(*lines: str) -> str:
        path = tmp_path / "file.csv"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def names(seed: int, *speakers: str) -> set[str]:
    return {pseudonym(seed, speaker) for speaker in speakers}


def test_without_settings_everybody_takes_part_in_all_rounds(planned):
    go_on = {"base": "mean"}
    rounds = planned(None, seed=3, improve=FEDAVG, rounds=3, continue_from=go_on)
    assert [(one.stage, one.number) for one in rounds] == [
        *(("improve", i) for i in (1, 2)),
        *(("personalization", i) for i in (1, 2, 3)),
    ]
    assert all(set(one.answers) == names(3, *CLIENTS) for one in rounds)
    assert attendance.of("personalization", rounds) == list(rounds[2:])


def test_a_trace_is_found_again_under_the_pseudonyms(planned, file):
    path = file("speaker,from,until", "t04,1,1", "t06,1,2", "t00,1,9", "t03,2,2")
    rounds = planned({"available": path}, seed=5, rounds=2, continue_from={"base": "mean"})
    assert [set(one.asked) for one in rounds] == [names(5, "t04", "t06"), names(5, "t03", "t06")]


def test_times_are_those_of_the_speech_and_the_factors(planned, file, speech):
    path = file("speaker,factor", *(f"{s},{i}.5" for i, s in enumerate(CLIENTS)), "t00,7")
    (one,) = planned({"factors": path, "cost": 0.2, "exchange": 1.0})
    for i, speaker in enumerate(CLIENTS):
        cuts = [c for c in by_speaker(speech)[speaker] if c.supervisions[0].custom["round"] <= 3]
        seconds = sum(cut.duration for cut in cuts)
        expected = seconds * 3 * (i + 0.5) * 0.2 + 1.0
        assert one.asked[pseudonym(0, speaker)] == pytest.approx(expected, rel=1e-9)
    assert one.seconds == max(one.asked.values())


def test_a_spread_makes_devices_differ(planned):
    (alike,) = planned({"exchange": 0.0})
    (apart,) = planned({"exchange": 0.0, "spread": 1.0})
    ratios = [apart.asked[s] / alike.asked[s] for s in alike.asked]
    assert len({round(ratio, 6) for ratio in ratios}) == len(CLIENTS)


def test_a_client_without_a_factor_is_named(planned, file):
    path = file("speaker,factor", "t03,1", "t05,1")
    with pytest.raises(ConfigError, match=r"file\.csv: no factor for 2 of 4 clients \(t04, t06\)"):
        planned({"factors": path})


def test_a_speaker_that_the_corpus_lacks_is_named_with_its_line(planned, file):
    path = file("speaker,from,until", "t03,1,1", "t33,1,1")
    with pytest.raises(ConfigError, match=r"file\.csv:3: the corpus has no speaker 't33'"):
        planned({"available": path})


def test_a_round_below_the_quorum_is_told_before_anything_runs(planned, file):
    path = file("speaker,factor", "t03,1", "t04,1000", "t05,1000", "t06,1000")
    asked = {"factors": path, "deadline": 100.0}
    with pytest.raises(RunError, match=r"personalization, round 1: 1 of 4 .* at least 2 "):
        planned(asked)
    planned(asked, quorum=0.25)


def test_a_strategy_that_would_wait_for_ever_is_told_before_anything_runs(planned, file):
    path = file("speaker,from,until", "t03,1,9", "t04,1,1", "t05,2,9")
    with pytest.raises(ConfigError) as told:
        planned({"available": path}, improve={**FEDAVG, "options": {"min_available_nodes": 3}})
    assert str(told.value) == (
        "federation.improve: FedAvg wants more speakers than the 2 that are there in round 1 "
        "(min_train_nodes = 2, min_evaluate_nodes = 2, min_available_nodes = 3); set them in "
        "federation.improve.options"
    )
    planned({"available": path}, improve=FEDAVG)
    with pytest.raises(ConfigError, match="more speakers than the 4 that are there"):
        planned(None, improve={**FEDAVG, "options": {"min_train_nodes": 5}})


def test_a_speaker_that_is_not_there_after_all_is_one_less_for_a_strategy(planned):
    rounds = planned(None, improve=FEDAVG)
    improving = attendance.of("improve", rounds)
    members = [Member(s, i, 60.0, 3, "") for i, s in enumerate(sorted(names(0, "t03", "t05")))]
    federation = FederationSettings.model_validate({"improve": FEDAVG})
    improve.check(federation, attendance.among(members, improving))
    with pytest.raises(ConfigError, match="more speakers than the 1 that are there in round 1"):
        improve.check(federation, attendance.among(members[:1], improving))


def test_two_samples_of_one_round_are_refused(planned):
    options = {"options": {"fraction_train": 0.5}}
    with pytest.raises(ConfigError, match=r"fraction_train .* federation\.participation\.sample"):
        planned({}, improve={**FEDAVG, **options})
    planned(None, improve={**FEDAVG, **options})


def test_what_was_journaled_of_boxes_is_who_took_part(tmp_path):
    """G is improved by a sample; then ben is late, is away, and answers for his first round."""
    journal = Journal(tmp_path / "journal.sqlite")
    members = [
        Member(name, node, 60.0, 3, "") for node, name in enumerate(("anna", "ben", "carla"))
    ]
    answers = [("train", 1, "anna", True), ("train", 1, "carla", True)]
    answers += [
        ("train.personalize", number, name, name != "ben" or number == 3)
        for number in (1, 2, 3)
        for name in ("anna", "ben", "carla")
    ]
    for kind, number, name, answered in answers:
        row = Row(f"{kind} {number} {name}", 1, number, name, kind, 1, 1, {})
        (journal.add if answered else journal.add_unanswered)(row)
        journal.add_time(number, name, kind, 1000.0 * number, 7.0 if name == "anna" else 8.5)
    for number in (1, 2):
        journal.end_round(number, {"overdue": {"ben": 1}})
    failures = [
        Failure("ben", 1, "train.personalize", "no answer within 60 s, still at work"),
        Failure("anna", 1, "train.install", "full"),
        Failure("ben", 2, "train.personalize", "no answer within 60 s, offline"),
    ]
    improving, first, second, third = attendance.as_it_was(journal, members, failures)
    assert (improving.stage, improving.absent) == ("improve", {"ben": "not sampled"})
    assert first.absent == {"ben": "after the deadline"}
    assert second.absent == {"ben": "not available"}
    assert third.absent == {}
    found = [(one.in_time, dict(one.arrived)) for one in (improving, first, second, third)]
    both = ("anna", "carla")
    assert found == [(both, {}), (both, {}), (both, {}), (both, {"ben": 1})]
    assert [one.number for one in (first, second, third)] == [1, 2, 3]
    assert {one.seconds for one in (improving, first, second, third)} == {8.5}
    assert third.began == "1970-01-01T00:50:00+00:00"


def test_a_resumed_run_keeps_to_its_plan(planned, tmp_path):
    run = RunFolder(tmp_path)
    attendance.keep(planned({"sample": 0.5}), run)
    before = (tmp_path / "participation.json").read_bytes()
    attendance.keep(planned({"sample": 0.5}), run)
    assert (tmp_path / "participation.json").read_bytes() == before
    with pytest.raises(RunError, match="who takes part is not what this run began with"):
        attendance.keep(planned({"sample": 0.5}, seed=1), run)
    (tmp_path / "participation.json").write_text("{")
    with pytest.raises(RunError, match=r"participation\.json: damaged, cannot be resumed"):
        attendance.keep(planned({"sample": 0.5}), run)
