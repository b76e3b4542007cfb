"""The page: whole, on its own, escaped, the same each time."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedspeech import report
from fedspeech.errors import RunError
from fedspeech.report import write

VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Reader(HTMLParser):
    """Collects text and attributes, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def _read(folder: Path) -> _Reader:
    reader = _Reader()
    reader.feed(write(folder).read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_stands_alone(folder: Path) -> None:
    assert write(folder) == folder / "report.html"
    reader = _read(folder)
    for tag, name, value in reader.attributes:
        assert name not in ("src", "srcset", "data", "action"), (tag, name)
        if name.endswith("href"):
            assert value.startswith("#"), value
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    assert [p.name for p in folder.iterdir() if p.name.endswith(".part")] == []


def test_the_package_has_only_what_flowers_bundle_carries() -> None:
    package = Path(report.__file__).parent
    assert {path.suffix for path in package.iterdir() if path.is_file()} == {".py"}


def test_ids_are_unique_and_each_reference_has_its_target(folder: Path) -> None:
    reader = _read(folder)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 100
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) - {("", "")}
    for href, url in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page):
        assert (href or url) in ids


def test_every_speaker_base_and_number_is_there(folder: Path, results: dict[str, Any]) -> None:
    words = _read(folder).words
    for row in results["per_speaker"]:
        for text in (row["speaker"], f"{row['generic']:.2f}", f"{row['personal']:.2f}"):
            assert text in words
    for cell in results["table"]:
        assert cell["base"] in words
        assert f"{cell['mean']:.2f} {cell['low']:.2f} to {cell['high']:.2f}" in words
    for stage, seconds in (("personalize", "96.2 s"), ("all stages", "428.3 s")):
        assert f"{stage} {seconds}" in words
    assert "speaker-99 1 train.personalize tensor tdnn.0.weight has values" in words
    assert "personalization 2 16 14 2 1 4 111.2" in words
    assert "personalization 1 8 6 2 0 2 60.0" in words
    assert "speaker-98 after the deadline: 1, not sampled: 1" in words
    assert 'recipe = "jsonl"' in words
    assert "versions.torch 2.11.0" in words


def test_every_table_is_there(folder: Path, results: dict[str, Any]) -> None:
    words = _read(folder).words
    assert "Table 1: the corpus" in words
    assert "utterances 1,430 130 1,040 1,040" in words
    assert "Table 2: generic and personal models" in words
    for name, key in (("G", "generic"), ("P_s", "personal")):
        row = results[key]
        interval = f"{row['mean']:.2f} {row['low']:.2f} to {row['high']:.2f}"
        assert f"{name} {interval} {row['pooled']:.2f}" in words
    gain = results["gain"]
    assert f"paired {gain['mean']:+.2f} {gain['low']:+.2f} to {gain['high']:+.2f}" in words
    for title in ("Table 3: the best mix", "Pooled WER % of every mix", "Paired differences"):
        assert title in words
    assert "candidates down 8 296.8 MB" in words
    for speaker, peers in results["peers"]["kbest"].items():
        assert f"{speaker} {', '.join(peers)}" in words


def test_each_figure_says_what_it_shows(folder: Path) -> None:
    reader = _read(folder)
    labels = [v for tag, name, v in reader.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == 6
    for label in labels:
        assert label in reader.words


def test_what_was_picked_on_test_s_is_said(folder: Path) -> None:
    words = _read(folder).words
    assert "Picked on test_s" in words
    assert "resampling speakers, then the utterances of each" in words
    assert words.count("chosen on the device") >= 5


def test_names_are_escaped(folder: Path, results: dict[str, Any]) -> None:
    bad = "<script>alert('$x$ \"&amp;')</script>"
    for row in results["table"]:
        row["base"] = row["base"].replace("mean", bad)
    results["per_speaker"][0]["speaker"] = results["failures"][0]["reason"] = bad
    results["name"] = results["failures"][0]["speaker"] = bad
    results["layer_correlation"][0]["layer"] = results["corpus"][0]["part"] = bad
    results["peers"] = {bad: {bad: [bad]}}
    results["dendrogram"]["speakers"][0] = bad
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "config.toml").write_text(bad, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({bad: bad}), encoding="utf-8")
    reader = _read(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert reader.words.count(bad) >= 12
    assert bad in unescape(page)


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    first = write(folder).read_bytes()
    assert write(folder).read_bytes() == first
    code = "import sys, pathlib, fedspeech.report as r; r.write(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True)
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.parametrize("name", ["ledger.csv", "timing.json", "environment.json", "config.toml"])
def test_a_page_is_made_without_the_other_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert "WER %" in _read(folder).words


def test_optional_parts_may_be_absent(folder: Path, results: dict[str, Any]) -> None:
    for key in ("dendrogram", "loss_curves", "gain", "chosen_alpha", "differences"):
        del results[key]
    for row in results["per_speaker"]:
        del row["chosen"]
    results["layer_correlation"] = [{"layer": "tdnn.0", "pearson": None}]
    results["failures"] = []
    results["peers"] = {"generic": {"speaker-01": []}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    words = _read(folder).words
    assert "Dendrogram: this run has none." in words
    assert "Peers of generic" not in words
    assert "No failures: every speaker answered every message." in words


def test_a_page_that_cannot_be_written_leaves_nothing_behind(folder: Path) -> None:
    (folder / "report.html").mkdir()
    before = sorted(folder.iterdir())
    with pytest.raises(RunError, match=r"cannot write .*report\.html"):
        write(folder)
    assert sorted(folder.iterdir()) == before
