"""What is missing or malformed in a run's folder is said in one message, with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedspeech.errors import RunError
from fedspeech.report import run_folder, write

LEAST: dict[str, Any] = {
    "kind": "personalization",
    "speakers": 1,
    "seed": 3,
    "generic": {"mean": 20.0, "pooled": 20.0, "low": 15.0, "high": 25.0},
    "personal": {"mean": 10.0, "pooled": 10.0, "low": 5.0, "high": 15.0},
    "table": [],
    "per_speaker": [{"speaker": "a", "generic": 20.0, "personal": 10.0, "words": 10}],
    "bytes": {"down": 1, "up": 1, "full_model": 1},
}


def _left(tmp_path: Path, results: object) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return tmp_path


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results\.json: no such file"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_that_are_not_json(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{\n"kind": "personalization",\n"speakers" 8}')
    with pytest.raises(RunError, match=r"results\.json:3: not JSON"):
        write(tmp_path)


def test_empty_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    with pytest.raises(RunError, match=r"results\.json:1: not JSON"):
        write(tmp_path)


def test_results_that_are_a_list(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results\.json: expected a JSON object, found list"):
        write(_left(tmp_path, []))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "other", "kind: .*'personalization', found 'other'"),
        ("speakers", "many", "speakers: .*integer.*, found 'many'"),
        ("gain", {"mean": float("nan"), "low": 0, "high": 0}, "gain.mean: .*finite.*, found nan"),
        (
            "dendrogram",
            {"speakers": ["a", "b"], "linkage": []},
            "dendrogram: expected 1 rows of linkage, found 0",
        ),
        (
            "dendrogram",
            {"speakers": ["a", "b"], "linkage": [[0, 5, 1.0, 2]]},
            "dendrogram: the rows of linkage are not a tree",
        ),
        (
            "dendrogram",
            {"speakers": ["a", "b", "c"], "linkage": [[0, 3, 1.0, 2], [1, 2, 2.0, 3]]},
            "dendrogram: the rows of linkage are not a tree",
        ),
    ],
)
def test_values_that_make_no_sense(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(RunError, match=rf"results\.json: {message}") as error:
        write(_left(tmp_path, LEAST | {key: value}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_key_is_named_with_the_count_of_others(tmp_path: Path) -> None:
    rest = {key: value for key, value in LEAST.items() if key not in ("generic", "table")}
    with pytest.raises(RunError, match=r"generic: Field required \(and 1 more like it\)"):
        write(_left(tmp_path, rest))


def test_the_least_results_make_a_page(tmp_path: Path) -> None:
    page = write(_left(tmp_path, LEAST | {"unknown": [1]})).read_text(encoding="utf-8")
    for sentence in ("No base was mixed.", "Figure 3: this run has none.", "has no timing.json"):
        assert sentence in page


def test_a_ledger_line_that_is_not_one(folder: Path) -> None:
    with (folder / "ledger.csv").open("a", encoding="utf-8") as file:
        file.write("1,a,down,base,many\n")
    with pytest.raises(RunError, match=r"ledger\.csv:42: expected round,.*'many'"):
        run_folder.read(folder)


def test_a_ledger_with_other_columns(folder: Path) -> None:
    (folder / "ledger.csv").write_text("round,bytes\n1,2\n")
    with pytest.raises(RunError, match=r"ledger\.csv:1: expected the columns .*found .*'round'"):
        run_folder.read(folder)


def test_a_malformed_timing_is_named(folder: Path) -> None:
    (folder / "timing.json").write_text('{"stages": [{"stage": "corpus"}]}')
    with pytest.raises(RunError, match=r"timing\.json: stages\.0\.seconds: Field required"):
        run_folder.read(folder)


def test_everything_is_read(folder: Path) -> None:
    run = run_folder.read(folder)
    assert sum(row.bytes for row in run.ledger) == 8 * (3 * 5_300_000 + 37_100_000 + 512)
    assert [stage.stage for stage in run.timing.stages][:2] == ["corpus", "features"]
    assert run.timing.model_extra == {"peak_memory_mib": 812.4, "retries": 0}
    assert run.environment["versions"]["torch"] == "2.11.0"
    assert run.config.startswith('name = "made-up"')
