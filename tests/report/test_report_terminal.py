"""The tables in a terminal: 80 columns, plain where it is not one."""

import io
from typing import Any

import pytest
from rich.console import Console

from fedspeech.errors import RunError
from fedspeech.report import show


def _shown(results: dict[str, Any]) -> str:
    out = io.StringIO()
    show(results, Console(file=out, width=80))
    return out.getvalue()


def test_all_numbers_are_shown_in_80_columns_of_plain_text(results: dict[str, Any]) -> None:
    text = _shown(results)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    for key in ("generic", "personal"):
        wer = results[key]
        interval = f"{wer['mean']:.2f} [{wer['low']:.2f}, {wer['high']:.2f}]"
        assert f"{interval}      {wer['pooled']:.2f}" in text
    best = min(
        (c for c in results["table"] if c["base"] == "kbest" and c["alpha"] != "chosen"),
        key=lambda c: c["mean"],
    )
    line = next(line for line in text.splitlines() if line.startswith("kbest"))
    assert line.split()[1:3] == [f"{best['alpha']:g}", f"{best['mean']:.2f}"]
    assert "127.2 MB down, 42.4 MB up; one whole model is 5.3 MB." in text
    assert "tensor tdnn.0.weight has values that" in text
    line = next(line for line in text.splitlines() if line.startswith("personalization"))
    assert line.split() == ["personalization", "2", "16", "14", "2", "1", "4", "111.2"]
    assert "speaker-98   after the deadline: 1, not sampled: 1" in text


def test_the_decodings_of_a_choice_are_shown(results: dict[str, Any]) -> None:
    results["decodings"] = {"kbest": {"used": 123, "exhaustive": 1000}}
    assert "kbest: 123 of 1,000 utterance decodings (12.3 %)." in _shown(results)


def test_names_that_look_like_markup_are_shown_as_they_are(results: dict[str, Any]) -> None:
    results["name"] = results["failures"][0]["speaker"] = "[bold]x[/]"
    assert _shown(results).count("[bold]x[/]") == 2


def test_tables_without_rows_are_left_out(results: dict[str, Any]) -> None:
    results["corpus"] = results["failures"] = []
    text = _shown(results)
    assert "Table 1" not in text
    assert "Failures" not in text
    assert "Table 2" in text


def test_results_of_another_kind(results: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"results: kind: .*found 'other'"):
        show(results | {"kind": "other"}, Console(file=io.StringIO()))
