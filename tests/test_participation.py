"""Who takes part: frequencies against their laws, rounds against a clock, hand-made cases."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedspeech import participation, seeding
from fedspeech.config import load
from fedspeech.config.federation import ParticipationSettings
from fedspeech.errors import ConfigError, RunError
from fedspeech.participation import IMPROVE, PERSONALIZATION, Round

SPEAKERS = tuple(f"s{i:02}" for i in range(10))
LAST = "next-round"
ALIKE = dict.fromkeys(SPEAKERS, 1.0)


def settings(**values) -> ParticipationSettings:
    return ParticipationSettings.model_validate(values)


def planned(asked, rounds, work=ALIKE, seed=0, improve=0, trace=None):
    stages = {IMPROVE: improve, PERSONALIZATION: rounds}
    return participation.plan(asked, seed, stages, work, trace)


def who(rounds: tuple[Round, ...]) -> list[list[str]]:
    return [list(one.asked) for one in rounds]


# Sampling.


def test_by_default_everybody_takes_part_in_every_round():
    rounds = planned(settings(), 3, improve=2)
    assert [(r.stage, r.number) for r in rounds] == [
        (IMPROVE, 1),
        (IMPROVE, 2),
        (PERSONALIZATION, 1),
        (PERSONALIZATION, 2),
        (PERSONALIZATION, 3),
    ]
    for one in rounds:
        assert one.answers == dict.fromkeys(SPEAKERS, one.number)
        assert one.absent == {}


@pytest.mark.parametrize(
    ("wanted", "there", "size"),
    [(0.5, 10, 5), (0.25, 10, 2), (0.01, 10, 1), (1.0, 10, 10), (1, 10, 1), (7, 10, 7), (7, 4, 4)],
)
def test_how_many_are_sampled(wanted, there, size):
    found = participation.sample(wanted, SPEAKERS[:there], np.random.default_rng(0))
    assert len(set(found)) == size
    assert found == sorted(found)
    assert set(found) <= set(SPEAKERS[:there])


def test_sampling_follows_the_hypergeometric_law():
    """Of 4 out of 10, how many belong to a group of 3; and each speaker as often as any other."""
    draws, group = 2000, set(SPEAKERS[2:5])
    rounds = who(planned(settings(sample=4), draws))
    found = Counter(len(group.intersection(asked)) for asked in rounds)
    expected = draws * stats.hypergeom(10, 3, 4).pmf(range(4))
    assert stats.chisquare([found[i] for i in range(4)], expected).pvalue > 0.01
    each = Counter(itertools.chain(*rounds))
    for speaker in SPEAKERS:
        assert stats.binomtest(each[speaker], draws, 0.4).pvalue > 0.001


def test_availability_follows_the_binomial_law_for_each_speaker_and_each_round():
    draws, rate = 2000, 0.3
    there = np.zeros((draws, len(SPEAKERS)), dtype=int)
    for i, asked in enumerate(who(planned(settings(available=rate), draws))):
        there[i] = [speaker in asked for speaker in SPEAKERS]
    for column in there.T:
        assert stats.binomtest(int(column.sum()), draws, rate).pvalue > 0.001
    counts = np.bincount(there.sum(axis=1), minlength=11)
    expected = draws * stats.binom(10, rate).pmf(range(11))
    tail = slice(7, None)  # too few for the test
    found, law = [*counts[:7], counts[tail].sum()], [*expected[:7], expected[tail].sum()]
    assert stats.chisquare(found, law).pvalue > 0.01


def test_who_is_sampled_is_among_those_that_are_available():
    trace = {"s01": [range(1, 2)], "s02": [range(1, 3)], "s07": [range(2, 3), range(4, 9)]}
    rounds = planned(settings(sample=0.5), 4, trace=trace)
    assert [len(one.asked) for one in rounds] == [1, 1, 0, 1]
    for one, there in zip(rounds, ({"s01", "s02"}, {"s02", "s07"}, set(), {"s07"}), strict=True):
        assert set(one.asked) <= there
        assert {s for s, why in one.absent.items() if why == "not sampled"} == there - set(
            one.asked
        )
        unavailable = {s for s, why in one.absent.items() if why == "not available"}
        assert unavailable == set(SPEAKERS) - there


def test_a_trace_counts_the_rounds_of_all_stages():
    trace = {"s01": [range(1, 3)], "s02": [range(3, 4)]}
    assert who(planned(settings(), 1, improve=2, trace=trace)) == [["s01"], ["s01"], ["s02"]]


def test_a_plan_follows_from_seed_and_round_alone():
    asked = settings(sample=0.4, available=0.7)
    rounds = planned(asked, 20)
    assert planned(asked, 20) == rounds
    assert planned(asked, 20, work=dict.fromkeys(SPEAKERS[::-1], 1.0)) == rounds
    assert planned(asked, 30)[:20] == rounds
    assert who(planned(asked, 15, improve=5)) == who(rounds)
    assert who(planned(asked, 20, seed=1)) != who(rounds)
    assert len({tuple(one) for one in who(rounds)}) > 10


# Time.


def test_work_is_speech_by_epochs_by_factor_by_cost_and_the_exchange():
    asked = settings(cost=0.5, exchange=4.0)
    found = participation.work(asked, 3, {"a": 60.0, "b": 10.0}, {"a": 1.0, "b": 2.5})
    assert found == {"a": 60 * 3 * 0.5 + 4, "b": 10 * 3 * 2.5 * 0.5 + 4}


def test_factors_are_log_normal():
    names = [f"s{i}" for i in range(2000)]
    found = participation.draw_factors(0.7, 3, names)
    logs = np.log(list(found.values())) / 0.7
    assert stats.kstest(logs, "norm").pvalue > 0.01
    assert participation.draw_factors(0.7, 3, names[::-1][:5]).items() <= found.items()
    assert set(participation.draw_factors(0.0, 3, names).values()) == {1.0}


WORK = {"anna": 18.0, "bert": 42.0, "cleo": 66.0}


def test_what_is_late_is_dropped():
    rounds = planned(settings(deadline=20.0), 3, WORK)
    for one in rounds:
        assert dict(one.asked) == WORK
        assert one.in_time == ("anna",)
        assert one.answers == {"anna": one.number}
        assert one.absent == dict.fromkeys(("bert", "cleo"), "after the deadline")
        assert one.seconds == 20.0


def test_done_at_the_deadline_is_in_time():
    (one,) = planned(settings(deadline=42.0), 1, WORK)
    assert one.in_time == ("anna", "bert")


def test_without_a_deadline_a_round_lasts_until_the_slowest():
    (one,) = planned(settings(), 1, WORK)
    assert (one.seconds, one.in_time) == (66.0, tuple(WORK))


def test_what_is_late_arrives_in_the_round_in_which_it_is_done():
    rounds = planned(settings(deadline=20.0, late=LAST), 5, WORK)
    busy, late = "at work on an earlier round", "after the deadline"
    assert [dict(one.asked) for one in rounds] == [
        WORK,
        {"anna": 18.0},
        {"anna": 18.0},
        {"anna": 18.0, "bert": 42.0},
        {"anna": 18.0, "cleo": 66.0},
    ]
    # At the ends of the rounds 20, 38, 56, 76 s have passed: bert is done at 42, cleo at 66.
    assert [one.seconds for one in rounds] == [20.0, 18.0, 18.0, 20.0, 20.0]
    assert [dict(one.arrived) for one in rounds] == [{}, {}, {"bert": 1}, {"cleo": 1}, {}]
    assert [dict(one.absent) for one in rounds] == [
        {"bert": late, "cleo": late},
        {"bert": busy, "cleo": busy},
        {"cleo": busy},
        {"bert": late},
        {"bert": busy, "cleo": late},
    ]
    assert rounds[2].answers == {"anna": 3, "bert": 1}


def test_what_is_late_for_g_is_lost_whatever_the_setting():
    rounds = planned(settings(deadline=20.0, late=LAST), 1, WORK, improve=2)
    assert [list(one.asked) for one in rounds] == [list(WORK)] * 3
    assert all(one.arrived == {} for one in rounds)


def by_the_clock(deadline: float, work: dict[str, float], trace, count: int):
    """(answers, end) of each round by absolute times: who is asked at t is done at t + work."""
    now, done, found = 0.0, {}, []
    for number in range(1, count + 1):
        for speaker, spans in trace.items():
            if speaker not in done and any(number in span for span in spans):
                done[speaker] = number, now + work[speaker]
        late = any(n == number and end > now + deadline for n, end in done.values())
        answers = {s: n for s, (n, end) in done.items() if end <= now + deadline}
        now = now + deadline if late else max([now, *(done[s][1] for s in answers)])
        for speaker in answers:
            del done[speaker]
        found.append((answers, now))
    return found


@given(
    st.integers(1, 12),
    st.dictionaries(st.sampled_from(SPEAKERS), st.integers(1, 50), min_size=1),
    st.data(),
)
def test_rounds_go_by_the_clock(deadline, work, data):
    numbers = st.sets(st.integers(1, 8))
    trace = {s: [range(n, n + 1) for n in data.draw(numbers)] for s in work}
    rounds = planned(settings(deadline=deadline, late=LAST), 8, work, trace=trace)
    ends = itertools.accumulate(one.seconds for one in rounds)
    expected = by_the_clock(float(deadline), work, trace, 8)
    for one, end, (answers, then) in zip(rounds, ends, expected, strict=True):
        assert (one.answers, end) == (answers, then)
        assert list(one.answers) == sorted(answers)
        assert set(one.answers) | set(one.absent) == set(work)
        assert not set(one.answers) & set(one.absent)


# The quorum, and what is told.


def test_a_round_below_the_quorum_is_refused_with_its_numbers():
    trace = {s: [range(1, 9)] if s in ("s00", "s01", "s02") else [] for s in SPEAKERS}
    work = ALIKE | {"s01": 5.0, "s02": 6.0}
    rounds = planned(settings(deadline=2.0), 2, work, improve=1, trace=trace)
    participation.check_quorum(rounds, 0.3)
    with pytest.raises(RunError) as told:
        participation.check_quorum(rounds, 0.5)
    assert str(told.value) == (
        "federation.participation: improve, round 1: 1 of 3 speakers that are asked answer in "
        "time, expected at least 1.5 (federation.quorum); of all speakers 2 after the deadline, "
        "7 not available"
    )


def test_a_round_without_any_answer_is_refused_whatever_the_quorum():
    nobody = planned(settings(), 1, trace={})
    with pytest.raises(RunError, match=r"0 of 0 speakers .* at least 1 .*10 not available"):
        participation.check_quorum(nobody, 0.0)
    late = planned(settings(deadline=0.5), 1)
    with pytest.raises(RunError, match=r"0 of 10 speakers .* at least 1 .*10 after the deadline"):
        participation.check_quorum(late, 0.0)


def test_a_round_that_only_waits_for_an_answer_will_do():
    work, trace = {"anna": 1.0, "bert": 3.0}, {"anna": [range(1, 2)], "bert": [range(1, 2)]}
    rounds = planned(settings(deadline=2.0, late=LAST), 2, work, trace=trace)
    assert (rounds[1].asked, rounds[1].answers) == ({}, {"bert": 1})
    participation.check_quorum(rounds, 0.5)


def test_the_summary_counts_and_names_who_never_took_part():
    trace = {"anna": [range(1, 5)], "bert": [range(2, 3)], "cleo": [range(1, 2)], "dora": []}
    rounds = planned(settings(deadline=20.0), 2, WORK | {"dora": 1.0}, improve=1, trace=trace)
    found = participation.summary(rounds)
    assert found["seconds"] == 20.0 + 20.0 + 18.0
    keys = ("stage", "round", "asked", "in_time", "late", "not_available", "seconds")
    assert [tuple(row[key] for key in keys) for row in found["rounds"]] == [
        ("improve", 1, 2, 1, 1, 2, 20.0),
        ("personalization", 1, 2, 1, 1, 2, 20.0),
        ("personalization", 2, 1, 1, 0, 3, 18.0),
    ]
    assert found["never"] == [
        {"speaker": "bert", "why": {"after the deadline": 1, "not available": 1}},
        {"speaker": "cleo", "why": {"not available": 2}},
        {"speaker": "dora", "why": {"not available": 2}},
    ]


def test_the_summary_counts_everybody_once():
    asked = settings(sample=0.5, available=0.8, deadline=20.0, late=LAST)
    work = {s: 5.0 + 6 * i for i, s in enumerate(SPEAKERS)}
    for row in participation.summary(planned(asked, 30, work))["rounds"]:
        counts = ("asked", "arrived", "at_work", "not_available", "not_sampled")
        assert sum(row[key] for key in counts) == len(SPEAKERS)
        assert row["asked"] == row["in_time"] + row["late"]


def test_the_record_says_everything():
    one = planned(settings(deadline=20.0, late=LAST), 3, WORK)[2]
    assert participation.record([one]) == {
        "rounds": [
            {
                "stage": "personalization",
                "round": 3,
                "seconds": 18.0,
                "asked": {"anna": 18.0},
                "arrived": {"bert": 1},
                "absent": {"cleo": "at work on an earlier round"},
            }
        ]
    }


def test_the_draws_have_names():
    """What is drawn for a round is drawn for nothing else, so a run can be told apart by hand."""
    draw = seeding.generator(4, 2, "", "who is asked")
    chosen = sorted(draw.choice(10, 3, replace=False))
    assert who(planned(settings(sample=3), 2, seed=4))[1] == [SPEAKERS[i] for i in chosen]
    uniform = [seeding.generator(4, 2, s, "availability").random() for s in SPEAKERS]
    there = [s for s, u in zip(SPEAKERS, uniform, strict=True) if u < 0.6]
    assert who(planned(settings(available=0.6), 2, seed=4))[1] == there
    normal = seeding.generator(4, 0, "s03", "speed of the device").standard_normal()
    assert participation.draw_factors(0.5, 4, SPEAKERS)["s03"] == math.exp(0.5 * normal)


# Settings.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *(
            (
                f"sample = {value}",
                "mine.toml:2: federation.participation.sample: expected a share of the speakers "
                f"(above 0, at most 1.0) or a number of them (at least 1), found {found}",
            )
            for value, found in (
                *(("0", "0"), ("0.0", "0.0"), ("1.5", "1.5"), ("-3", "-3"), ("true", "True")),
                ("'all'", "'all'"),
            )
        ),
        *(
            (
                f"available = {value}",
                "mine.toml:2: federation.participation.available: expected a rate (above 0, at "
                f"most 1) or the name of a file with a trace, found {value}",
            )
            for value in ("0.0", "1.5", "-0.1")
        ),
        ("late = 'wait'", "mine.toml:2: federation.participation.late: Input should be 'drop' or "),
        (
            "deadline = 0.0",
            "mine.toml:2: federation.participation.deadline: Input should be greater than 0",
        ),
        ("cost = -1.0", "mine.toml:2: federation.participation.cost: Input should be greater than"),
        (
            "factors = 'f.csv'\nspread = 0.5",
            "mine.toml:1: federation.participation: factors and spread exclude each other",
        ),
        (
            "sampel = 3",
            "mine.toml:2: federation.participation.sampel: unknown setting; the nearest known one "
            "is sample",
        ),
    ],
)
def test_what_cannot_be_is_told_with_file_and_line(tmp_path, line, message):
    file = tmp_path / "mine.toml"
    file.write_text(f"[federation.participation]\n{line}\n")
    with pytest.raises(ConfigError) as told:
        load(file)
    assert str(told.value).replace(f"{tmp_path}/", "").startswith(message)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1.0", 1.0), ("0.25", 0.25), ("25", 25), ("2", 2)]
)
def test_a_whole_number_is_how_many_and_a_share_has_a_point(tmp_path, text, value):
    file = tmp_path / "mine.toml"
    file.write_text(f"[federation.participation]\nsample = {text}\n")
    found = load(file).federation.participation.sample
    assert (found, type(found)) == (value, type(value))
