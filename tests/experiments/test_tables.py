"""`experiments/tables.py`: what it prints of a run, and the figures that it writes."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import parallel_runs
import pytest

from experiments import tables

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "made-up"
    folder.mkdir()
    return parallel_runs.leave(folder, parallel_runs.made_up(), parallel_runs.timing())


def test_tables_have_their_notes_and_those_without_rows_are_left_out(run, capsys):
    tables.main([str(run)])
    said = capsys.readouterr().out
    assert "| one learner | 32 | 10.00 [8.00, 13.00] |  |" in said
    assert "Pace\n\n| method, learners |" in said and "sent: by all learners" in said
    assert "Learners that died" not in said
    header, after = said.partition("computing | waiting |\n")[::2]
    assert header and after.startswith("| --- ") and "\n\nWithout the first epoch" in after
    assert said.endswith("Minutes: 0.2\n")


def test_figures_are_files_that_need_no_page(run, tmp_path, capsys):
    tables.main([str(run), "--figures", str(tmp_path / "figures")])
    said = capsys.readouterr().out
    linked = re.findall(r"!\[(.+?)\]\((figures/(.+?)\.svg)\)\n\n(.+?)\. \w", said)
    names = [name for _, _, name, _ in linked]
    assert names == [
        f"made-up-{name}"
        for name in (
            *("errors", "loss-by-epoch", "loss-by-time", "consensus", "speed-up", "seconds"),
            "many",
        )
    ]
    assert [title for title, *_ in linked] == [title for *_, title in linked]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{n}.svg" for n in names}
    for _, path, _, _ in linked:
        assert ElementTree.parse(tmp_path / path).getroot().tag == f"{SVG}svg"


def test_what_has_nothing_to_draw_is_no_file(run, tmp_path):
    timing = parallel_runs.timing()
    del timing["simulated"]
    (run / "timing.json").write_text(json.dumps(timing))
    tables.main([str(run), "--figures", str(tmp_path / "figures")])
    assert not (tmp_path / "figures" / "made-up-many.svg").exists()
    assert len(list((tmp_path / "figures").iterdir())) == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "timing.json").unlink(), r"timing\.json: expected that of a finished"),
        (lambda run: (run / "results.json").write_text("{"), r"results\.json: not readable"),
        (
            lambda run: (run / "results.json").write_text('{"kind": "data-parallel"}'),
            r"results\.json: name: Field required",
        ),
    ],
)
def test_a_folder_that_is_no_finished_run_is_told(run, spoil, message):
    spoil(run)
    with pytest.raises(SystemExit, match=message):
        tables.main([str(run)])


def test_runs_of_several_kinds_are_refused(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text('{"kind": "distillation"}')
    (other / "timing.json").write_text("{}")
    with pytest.raises(SystemExit, match="one kind, found data-parallel and distillation"):
        tables.main([str(run), str(other)])


def test_no_run_at_all_is_told(capsys):
    with pytest.raises(SystemExit):
        tables.main([])
    assert "RUN" in capsys.readouterr().err
