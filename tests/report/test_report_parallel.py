"""The report of a run of kind `data-parallel`: its tables, its figures and its page."""

import io
import re
from typing import Any

import parallel_runs
import pytest
from parallel_runs import around, cell, leave, row
from rich.console import Console

from fedspeech.errors import RunError
from fedspeech.report import parallel_figures, parallel_tables, show, write
from fedspeech.report.parallel_results import ParallelResults, Went, went
from fedspeech.report.results import check
from fedspeech.report.tables import Estimate


@pytest.fixture
def made_up() -> dict[str, Any]:
    return parallel_runs.made_up()


@pytest.fixture
def timing() -> dict[str, Any]:
    return parallel_runs.timing()


@pytest.fixture
def results(made_up) -> ParallelResults:
    return check(ParallelResults, made_up, "here")


@pytest.fixture
def times(timing) -> Went:
    return went(timing)


def by_first(table) -> dict[str, tuple]:
    return {one[0]: one[1:] for one in table.rows}


def test_errors_have_every_row_beside_one_learner(results, made_up):
    found = parallel_tables.errors(results)
    labels = ["one learner", "allreduce, 2", "allreduce, 4", "ad-psgd <random>, 4", "allreduce, 4",
              "allreduce, 4, at 0.5", "allreduce, 4, at 0.5, one 10x"]  # fmt: skip
    assert [one[0] for one in found.rows] == labels
    assert found.rows[0][1:] == ("32", Estimate(10, 8, 13), "")
    assert found.rows[4][1:4] == ("128", Estimate(25, 23, 28), Estimate(15, 13, 18, signed=True))
    assert not any("100 %" in note for note in found.notes)
    held = ["at 0.5: each learner takes at most 0.5 of a processor", "one 10x: the slowest of the"]
    assert [any(note.startswith(said) for note in found.notes) for said in held] == [True, True]
    assert not any("first seed alone" in note for note in found.notes)
    made_up["seeds"] = [*made_up["seeds"], 9]
    for one in made_up["table"][:-1]:
        one["seeds"] = [*one["seeds"], 10.0]
    again = parallel_tables.errors(check(ParallelResults, made_up, "here"))
    assert "allreduce, 4, at 0.5, one 10x: with the first seed alone." in again.notes
    made_up["table"][3]["diverged"] = 1
    again = parallel_tables.errors(check(ParallelResults, made_up, "here"))
    assert any("100 %" in note for note in again.notes)


def test_one_learner_whose_gradients_are_late_has_its_own_name_and_line(made_up, timing):
    """It is another one than that which all are compared with."""
    late = row("one") | {"row": "late", "way": "ad-psgd delay-by-one", "minus_one": around(2.0)}
    made_up["table"].insert(1, late)
    timing["cells"].append(cell("one", 3) | {"cell": "late.seed-3"})
    results, times = check(ParallelResults, made_up, "here"), went(timing)
    assert [one.label for one in results.table[:2]] == ["one learner", "ad-psgd delay-by-one, 1"]
    assert results.one.row == "one"
    found = by_first(parallel_tables.pace(results, times))
    assert found["ad-psgd delay-by-one, 1"][4] == "1.00"
    assert parallel_figures.many(results, times) is not None
    for figure in (
        parallel_figures.loss_by_epoch(results),
        parallel_figures.loss_by_time(results, times),
    ):
        titles = [figure.svg.count(f">{n} learner{'s' * (n > 1)}<") for n in (1, 2, 4)]
        assert titles == [1, 1, 1] and figure.svg.count(">ad-psgd delay-by-one<") == 1


def test_the_pace_is_without_first_epochs_and_without_what_is_slowed(results, times):
    found = parallel_tables.pace(results, times).rows
    assert len(found) == 5
    # 400 utterances in 8 s, and in 5 s by two learners who wait 0.5 s and 1.5 s.
    assert found[0] == ("one learner", "32", "50", "50", "50", "1.00", "3.00", "1.50")
    assert found[1] == ("allreduce, 2", "32", "80", "80", "80", "1.60", "3.00", "1.00")
    assert found[4][1:6] == ("128", "200", "200", "200", "4.00")


def test_the_pace_has_its_least_and_most_of_the_seeds(results, timing):
    (one,) = (each for each in timing["cells"] if each["cell"] == "all.2.seed-4")
    for epoch in one["epochs"]:
        epoch["seconds"] *= 2
    found = parallel_tables.pace(results, went(timing)).rows
    # 4 epochs of 400 utterances in 2 x 5 s and 2 x 10 s.
    assert found[1][2:6] == ("53", "40", "80", "1.07")


def test_an_epoch_after_a_training_was_gone_on_with_is_no_part_of_its_pace(results, timing):
    for each in timing["cells"]:
        each["epochs"][1] |= {"seconds": 1000.0, "starts": True}
    assert parallel_tables.pace(results, went(timing)).rows[0][2] == "50"
    for each in timing["cells"]:  # nothing else was learned
        each["epochs"] = each["epochs"][:1]
    assert parallel_tables.pace(results, went(timing)).rows[0][2] == f"{400 / 108:.0f}"


def test_what_was_sent_and_how_far_learners_are_apart(results, times):
    found = by_first(parallel_tables.talk(results, times))
    assert "one learner" not in found
    # Apart: the mean of 0 and 0.25, and not the last epoch, after which some methods make learners
    # alike. The gap is of all that count for a pace, of 0.5 and 1.
    gap, apart = "0.75", "0.125"
    assert found["ad-psgd <random>, 4"] == ("32", "4.0 MB", "1.50", "5", gap, apart, "0.75")
    assert found["allreduce, 2"][-3:] == ("0", "0", "0.00")


def test_an_earlier_version_measured_no_gap(results, timing):
    for each in timing["cells"]:
        for epoch in each["epochs"]:
            del epoch["gap"]
    found = by_first(parallel_tables.talk(results, went(timing)))
    assert found["ad-psgd <random>, 4"][-3:] == ("–", "0.125", "0.75")


def test_the_largest_batch_is_told_of_what_was_tried_with_several(results):
    found = parallel_tables.largest(results).rows
    assert found == (("allreduce", "32", "32: yes, 128: no"),)


def test_a_straggler_stands_beside_the_same_learners_without_one(results, times):
    found = parallel_tables.stragglers(results, times).rows
    assert found == (("allreduce, 4, at 0.5, one 10x", "80", "10", "12 %"),)


def test_a_straggler_with_which_a_training_diverges_is_no_row_less(results, timing):
    for each in timing["cells"]:
        if each["cell"].startswith("all.4.held.slow"):
            each["epochs"] = []
    found = parallel_tables.stragglers(results, went(timing)).rows
    assert found == (("allreduce, 4, at 0.5, one 10x", "80", "–", "–"),)


def test_rows_of_which_a_learner_died_are_told(results, timing, times, made_up, tmp_path):
    assert parallel_tables.deaths(results, times).rows == ()
    for cell_ in timing["cells"]:
        if cell_["cell"] == "all.4.big.seed-3":
            cell_ |= {"deaths": 2, "restarts": 1}
        if cell_["cell"].startswith("ad.4"):
            cell_ |= {"deaths": 1, "rejoins": 2}
    assert parallel_tables.deaths(results, went(timing)).rows == (
        ("ad-psgd <random>, 4", "32", "2", "0", "4"),
        ("allreduce, 4", "128", "2", "1", "0"),
    )
    console = Console(file=io.StringIO(), width=120)
    show(made_up, console, timing)
    page = write(leave(tmp_path, made_up, timing)).read_text()
    for said in (console.file.getvalue(), page):
        assert "Learners that died" in said and "joined again" in said


def test_simulated_seconds_are_called_so_and_stand_beside_measured_ones(results, times):
    beside = parallel_tables.beside(results, times)
    assert beside.rows == (
        ("one learner", "32", "8.00", "7.00", "0.88"),
        ("allreduce, 4", "32", "4.00", "5.00", "1.25"),
    )
    many = parallel_tables.many(times)
    assert many.columns == ("method", "1", "4", "128")
    assert many.rows[0] == ("allreduce", "8", "2", "0.0625")
    for table in (beside, many):
        assert "simulated" in table.title and "simulated" in "".join(table.notes)


def test_nodes_that_are_not_whole_are_not_simulated(timing):
    del timing["simulated"]["curves"][-1]
    many = parallel_tables.many(went(timing))
    assert many.rows[1] == ("ad-psgd <random>", "8", "2", "–")


def points(svg: str) -> list[str]:
    """The colours of the markers, but for those of the axes."""
    found = re.findall(r"<use [^>]*fill: var\(--([\w-]+)\)", svg)
    return [color for color in found if color != "line"]


def test_the_figures_say_what_is_simulated(results, timing):
    found = parallel_figures.many(results, went(timing))
    # Curves of two methods, and one learner: four have no processor each.
    assert "seconds (simulated)" in found.svg and "are simulated" in found.caption
    assert found.svg.count(">measured<") == 1 and "one learner is the same" in found.caption
    assert "ad-psgd &lt;random&gt;" in found.svg
    # A point beside the legend's.
    assert points(found.svg) == ["ink", "ink"]
    timing["simulated"]["processors"] = 4
    found = parallel_figures.many(results, went(timing))
    assert found.svg.count(">measured<") == 1
    # Four learners, with batches of 32 each, in the colour of their method's curve.
    assert points(found.svg) == ["ink", "mean", "ink"]


def test_losses_of_each_method_are_drawn_with_every_number_of_learners(results, times):
    for found in (
        parallel_figures.loss_by_epoch(results),
        parallel_figures.loss_by_time(results, times),
    ):
        assert all(found.svg.count(f">{number} learners<") == 1 for number in (2, 4))
        names = ["one learner", "allreduce", "ad-psgd &lt;random&gt;"]
        assert [found.svg.count(f">{name}<") for name in names] == [1, 1, 1]
        # One learner in both panels and the legend; two learners have one method of the two.
        colors = [found.svg.count(f"stroke: var(--{color})") for color in ("ink", "mean", "kbest")]
        assert colors == [3, 3, 2]


def test_only_what_leaves_learners_apart_has_a_consensus(results, times):
    found = parallel_figures.consensus(results, times)
    assert "ad-psgd" in found.svg and "allreduce" not in found.svg
    # After the first epoch and after the second one, and not after the last.
    (path,) = re.findall(r'd="(M [^"]+)"[^>]*stroke: var\(--kbest\)', found.svg)[:1]
    assert len(re.findall("[ML]", path)) == 2
    alike = Went(cells=tuple(c for c in times.cells if not c.cell.startswith("ad")))
    assert parallel_figures.consensus(results, alike) is None


def test_what_figures_draw_is_what_was_measured(results, times, monkeypatch):
    """Of one learner, 2 and 4 of allreduce, 4 of ad-psgd: 8, 5, 4 and 4 s of 400 utterances."""
    for name in ("rates", "panels", "lines", "stacked"):
        monkeypatch.setattr(parallel_figures, name, lambda found, *_, **__: found)
    drawn = parallel_figures.errors(results)
    assert [each.mean for each in drawn] == [10, 11, 12, 9]
    curves = {line.name: (*line.x, *line.y) for line in parallel_figures.speed_up(results, times)}
    assert curves["allreduce"] == (1, 2, 4, 1.0, 1.6, 2.0)
    assert curves["ad-psgd <random>"] == (1, 4, 1.0, 2.0)
    by_label = dict(parallel_figures.seconds(results, times))
    assert by_label["allreduce, 4"] == [3.0, (0.5 * 3 + 1.5) / 4]
    assert len(by_label) == 4
    losses = parallel_figures.loss_by_time(results, times)["2 learners"]
    two = {line.name: (line.x, line.y) for line in losses}
    assert two["allreduce"] == ([105.0, 110.0, 115.0], [4.0, 2.0, 4.0 / 3])
    losses = parallel_figures.loss_by_epoch(results)["2 learners"]
    assert {(*line.x, *line.y) for line in losses} == {(1, 2, 3, 4.0, 2.0, 1.0)}
    (apart,) = parallel_figures.consensus(results, times)["4 learners"]
    assert (apart.x, apart.y) == ([104.0, 108.0], [0.0, 0.25])


def test_without_times_there_are_the_errors(results):
    nothing = went({})
    assert parallel_tables.pace(results, nothing).rows == ()
    assert parallel_tables.many(nothing).rows == parallel_tables.beside(results, nothing).rows == ()
    for figure in (parallel_figures.speed_up, parallel_figures.many, parallel_figures.seconds):
        assert figure(results, nothing) is None


def test_the_page_is_whole_escaped_and_the_same_each_time(made_up, timing, tmp_path):
    page = write(leave(tmp_path, made_up, timing)).read_bytes()
    assert write(tmp_path).read_bytes() == page
    text = page.decode()
    assert "&lt;made-up&gt;" in text and "<made-up>" not in text and "<random>" not in text
    assert text.count("<svg") == text.count("</svg>") == 7
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "Learners that died" not in text
    for part in ("Speed-up", "Consensus", "With a straggler", "not measured", "12.0 s"):
        assert part in text


def test_tables_of_many_columns_have_the_whole_width(made_up, timing, tmp_path):
    text = write(leave(tmp_path, made_up, timing)).read_text()
    blocks = re.findall(r'<div( class="wide")?>\n<div class="scroll"[^>]* aria-label="(.+?)"', text)
    width = {title: bool(wide) for wide, title in blocks}
    assert width["Pace"] and not width["Errors"] and not width["With a straggler"]


def test_one_training_has_a_page_as_well(made_up, timing, tmp_path):
    """As `fedspeech train` leaves it."""
    alone = row("all.2") | {"minus_one": None, "converges": None}
    timing = {"stages": timing["stages"], "cells": [cell("all.2", 3)]}
    text = write(leave(tmp_path, made_up | {"table": [alone]}, timing)).read_text()
    assert "allreduce, 2" in text and "the run compares nothing" in text


def test_one_training_of_learners_that_are_held_to_a_share_is_shown_whole(made_up, timing):
    """There is nothing else in the run that it could be confused with."""
    alone = row("all.4.held.slow") | {"minus_one": None, "converges": None}
    results = check(ParallelResults, made_up | {"table": [alone]}, "here")
    times = went({"cells": [cell("all.4.held.slow", 3)]})
    (label,) = (each.label for each in results.table)
    assert by_first(parallel_tables.pace(results, times)).keys() == {label}
    assert by_first(parallel_tables.talk(results, times)).keys() == {label}
    drawn = parallel_figures.every(results, times)
    assert {name for name, plot in drawn.items() if plot is None} <= {
        *("Speed-up", "Consensus"),
        parallel_figures.MANY,
    }


def test_the_terminal_shows_all_tables(made_up, timing):
    console = Console(file=io.StringIO(), width=120)
    show(made_up, console, timing)
    said = console.file.getvalue()
    for part in ("tdnn-tiny trained data-parallel", "Pace", "The largest batch", "(simulated)"):
        assert part in said
    console = Console(file=io.StringIO(), width=80)
    show(made_up, console, timing)
    assert "one learner " in console.file.getvalue()


def test_timing_that_lacks_something_is_refused(timing):
    del timing["cells"][1]["epochs"][0]["waiting"]
    with pytest.raises(RunError, match=r"timing\.json: cells\.1\.epochs\.0\.waiting: Field req"):
        went(timing)
