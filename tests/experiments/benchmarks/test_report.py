"""Running benchmarks: what they found is kept and shown, whatever becomes of them."""

import json
import os
from pathlib import Path

import broken_benchmark
import pytest

from experiments.benchmarks import figure, harness, tables
from experiments.benchmarks import run as command
from fedspeech import machine


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setitem(command.BENCHMARKS, "broken", broken_benchmark.__name__)
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    readme = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    (tmp_path / "README.md").write_text(readme)
    return command.Report(tmp_path, "the command", 7)


@pytest.mark.parametrize(
    ("quick", "reason"),
    [(False, "RuntimeError: half of it is missing"), (True, "its process ended with 3")],
)
def test_what_was_measured_before_a_benchmark_failed_is_kept(report, quick, reason):
    found = command.run(["broken"], quick, report, report.folder / "scratch")
    expected = [
        {"table": "half", "name": "7", "x": 1, "y": 2.0},
        {"table": "broken", "failed": reason},
    ]
    assert found == expected
    results = json.loads((report.folder / "results.json").read_text())
    assert results["benchmarks"]["broken"]["rows"] == expected
    assert results["machine"]["cores"] == machine.cores()
    readme = (report.folder / "README.md").read_text()
    assert "| 7 | 1 | 2 |" in readme and reason in readme and "old" not in readme
    assert readme.startswith("before\n") and readme.endswith("\nafter\n")
    assert "half" in (report.folder / "results.svg").read_text()
    assert not (report.folder / "scratch" / "broken").exists()


SLEEPS = """
import time
LIMIT, PANELS, QUICK = 60.0, (), None
def rows(setting, plan):
    yield {"table": "t", "x": 1}
    time.sleep(60)
"""


def test_one_that_is_interrupted_leaves_no_process(report, monkeypatch, capsys):
    (report.folder / "sleeping_benchmark.py").write_text(SLEEPS)
    monkeypatch.syspath_prepend(report.folder)
    monkeypatch.setitem(command.BENCHMARKS, "sleeping", "sleeping_benchmark")
    started: list[harness.Child] = []
    monkeypatch.setattr(
        command, "Child", lambda *given: [started.append(harness.Child(*given)), started[-1]][1]
    )

    def interrupt(report):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Report, "write", interrupt)
    assert command.main(["sleeping", "--quick"]) == 130
    assert "interrupted" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


def test_other_benchmarks_of_the_same_machine_stay(report):
    report.begin("memory")["rows"].append({"table": "t", "x": 1})
    report.write()
    again = command.Report(report.folder, "another command", 7)
    assert again.results["benchmarks"]["memory"]["rows"] == [{"table": "t", "x": 1}]
    report.results["machine"]["cores"] = 1000
    report.write()
    assert command.Report(report.folder, "another command", 7).results["benchmarks"] == {}


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["memroy"])
    assert "unknown benchmark memroy" in capsys.readouterr().err


def test_cells_of_a_table():
    rows = [
        {"table": "t", "name": "a", "seconds": harness.spread([1234.5, 2.0, 0.01234])},
        {"table": "t", "name": "b", "failed": "no"},
        {"table": "t", "name": "c", "seconds": 7.0, "number": 1234567},
    ]
    assert tables.tables(rows) == (
        "### t\n\n"
        "| name | seconds | number | failed |\n| --- | --- | --- | --- |\n"
        "| a | 2 [0.0123, 1,234] |  |  |\n| b |  |  | no |\n| c | 7 | 1,234,567 |  |\n"
    )


def test_rows_of_a_table_stand_together_however_they_came():
    rows = [{"table": name, "n": n} for n, name in enumerate(["t", "other", "t"])]
    assert tables.tables(rows) == (
        "### t\n\n| n |\n| --- |\n| 0 |\n| 2 |\n\n### other\n\n| n |\n| --- |\n| 1 |\n"
    )


def test_a_readme_without_markers_is_left_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing here")
    with pytest.raises(ValueError, match="expected the lines"):
        tables.update(path, {})
    assert path.read_text() == "nothing here"


def test_the_readme_has_its_markers():
    readme = (Path(figure.__file__).parent / "README.md").read_text()
    assert 0 < readme.find(tables.BEGIN) < readme.find(tables.END)


def test_a_figure_with_nothing_measured_is_not_drawn(tmp_path):
    panel = figure.Panel("t", "x", "y", ("name",))
    figure.draw(tmp_path / "a.svg", [panel], [{"table": "t", "name": "a", "failed": "no"}])
    assert not list(tmp_path.iterdir())
