"""What is drawn stands where the numbers say: read back from the SVG's own coordinates."""

import itertools
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from fedspeech.report import canvas, figures, template
from fedspeech.report.canvas import PALETTE, Plot
from fedspeech.report.results import Results, check
from fedspeech.report.run_folder import LedgerRow
from fedspeech.report.shapes import Line, lines

# Machado, Oliveira, Fernandes 2009: what protanopes, deuteranopes and tritanopes see of linear RGB
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
          [-0.003882, -0.048116, 1.051998]]  # fmt: skip
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
          [-0.011820, 0.042940, 0.968881]]  # fmt: skip
TRITAN = [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
          [0.004733, 0.691367, 0.303900]]  # fmt: skip
# linear sRGB to CIE XYZ
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _drawn(plot: Plot | None) -> str:
    assert plot is not None
    return plot.svg


def _marks(svg: str, color: str) -> np.ndarray:
    """(x, y) of the markers that are filled with one colour, in the order drawn."""
    mark = rf'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: {re.escape(color)}(?!; fill-opacity)'
    return np.array(re.findall(mark, svg), dtype=float)


def _bars(svg: str, color: str) -> np.ndarray:
    """Signed widths of the filled rectangles of one colour, in the order drawn."""
    path = rf'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]+z\n"[^>]*fill: {re.escape(color)}'
    return np.array([float(right) - float(left) for left, right in re.findall(path, svg)])


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _assert_affine(drawn: np.ndarray, values: np.ndarray) -> None:
    slope, offset = np.polyfit(values, drawn, 1)
    assert abs(slope) > 1
    np.testing.assert_allclose(drawn, slope * values + offset, atol=2e-3)


def test_figure_3_draws_every_cell_on_one_scale(results: dict[str, Any]) -> None:
    svg = _drawn(figures.wer_against_alpha(check(Results, results, "here")))
    marks, cells = [], []
    for base in ("generic", "mean", "kbest", "dendrogram", "random"):
        drawn = _marks(svg, f"var(--{base})")
        assert len(drawn) == 11
        marks.append(drawn)
        cells += [c for c in results["table"] if c["base"] == base and c["alpha"] != "chosen"]
    at = np.concatenate(marks)
    _assert_affine(at[:, 0], np.array([cell["alpha"] for cell in cells]))
    _assert_affine(at[:, 1], np.array([cell["mean"] for cell in cells]))


def test_figure_3_fills_each_bases_interval(results: dict[str, Any]) -> None:
    for number, cell in enumerate(results["table"]):
        cell["low"], cell["high"] = cell["mean"] - 1 - number % 3, cell["mean"] + 2 + number % 5
    svg = _drawn(figures.wer_against_alpha(check(Results, results, "here")))
    paths = dict(re.findall(r'<path id="([^"]+)" d="([^"]+)"', svg))
    for base in ("generic", "mean", "kbest", "dendrogram", "random"):
        fill = rf'href="#([^"]+)"[^>]*fill: var\(--{base}\); fill-opacity: 0\.2'
        (name,) = re.findall(fill, svg)
        ends: dict[str, list[float]] = {}
        for x, y in re.findall(r"[ML] ([\d.]+) (-[\d.]+)", paths[name]):
            ends.setdefault(x, []).append(float(y))
        drawn = [(max(ys), min(ys)) for _, ys in sorted(ends.items(), key=lambda i: float(i[0]))]
        cells = [c for c in results["table"] if c["base"] == base and c["alpha"] != "chosen"]
        assert len(drawn) == len(cells) == 11
        wanted = np.array([(cell["low"], cell["high"]) for cell in cells])
        _assert_affine(np.ravel(drawn), wanted.ravel())


def test_figure_3_names_g_p_s_and_each_base_twice(results: dict[str, Any]) -> None:
    texts = _texts(_drawn(figures.wer_against_alpha(check(Results, results, "here"))))
    assert f"G {results['generic']['mean']:.2f}" in texts
    assert f"P_s {results['personal']['mean']:.2f}" in texts
    for base in ("generic", "mean", "kbest", "dendrogram", "random"):
        assert texts.count(base) == 2


def test_names_of_lines_do_not_touch(results: dict[str, Any]) -> None:
    for cell in results["table"]:
        cell["mean"] = 12.0 + 0.01 * len(cell["base"])
    svg = _drawn(figures.wer_against_alpha(check(Results, results, "here")))
    found = re.findall(r'<text[^>]*700[^>]*text-anchor: end[^>]*y="([\d.]+)"', svg)
    assert len(found) == 7
    assert min(np.diff(sorted(map(float, found)))) > canvas.TEXT


def test_a_base_without_a_grid_is_not_drawn(results: dict[str, Any]) -> None:
    results["table"] = [c for c in results["table"] if c["alpha"] == "chosen"]
    assert figures.wer_against_alpha(check(Results, results, "here")) is None


def test_one_base_at_one_alpha_is_drawn(results: dict[str, Any]) -> None:
    results["table"] = [results["table"][0]]
    plot = figures.wer_against_alpha(check(Results, results, "here"))
    assert len(_marks(_drawn(plot), "var(--generic)")) >= 1


def test_figure_2_draws_the_correlations_and_leaves_out_none(results: dict[str, Any]) -> None:
    plot = figures.layer_correlation(check(Results, results, "here"))
    assert plot is not None and plot.caption.endswith("The strongest is +0.55, in tdnn.0.")
    svg = plot.svg
    known = [r["pearson"] for r in results["layer_correlation"] if r["pearson"] is not None]
    marks = _marks(svg, "var(--ink)")
    _assert_affine(marks[:, 0], np.array(known))
    texts = _texts(svg)
    assert texts.count("–") == 1
    assert "+0.55" in texts and "−0.12" in texts


def test_the_strongest_correlation_may_be_negative(results: dict[str, Any]) -> None:
    results["layer_correlation"][2]["pearson"] = -0.91
    plot = figures.layer_correlation(check(Results, results, "here"))
    assert plot is not None and plot.caption.endswith("The strongest is −0.91, in tdnn.2.")


def test_correlations_that_are_all_none(results: dict[str, Any]) -> None:
    for row in results["layer_correlation"]:
        row["pearson"] = None
    plot = figures.layer_correlation(check(Results, results, "here"))
    assert plot is not None and plot.caption.endswith("It is not defined for any layer.")


def test_gains_are_sorted_bars_with_the_chosen_mix_beside(results: dict[str, Any]) -> None:
    svg = _drawn(figures.gain(check(Results, results, "here")))
    rows = sorted(results["per_speaker"], key=lambda r: r["personal"] - r["generic"])
    gains = np.array([row["generic"] - row["personal"] for row in rows])
    bars = _bars(svg, "var(--muted)")
    np.testing.assert_allclose(bars / bars[0], gains / gains[0], atol=1e-4)
    chosen = np.array([row["generic"] - row["chosen"] for row in rows])
    _assert_affine(_marks(svg, "var(--kbest)")[:, 0], chosen)
    names = [text for text in _texts(svg) if text.startswith("speaker-")]
    assert names == [row["speaker"] for row in rows]


def test_many_speakers_are_drawn_without_names(results: dict[str, Any]) -> None:
    row = results["per_speaker"][0]
    results["per_speaker"] = [row | {"speaker": f"s{i}", "personal": i / 10} for i in range(300)]
    svg = _drawn(figures.gain(check(Results, results, "here")))
    assert len(_bars(svg, "var(--muted)")) == 300
    assert not any(text.startswith("s") for text in _texts(svg))


def test_the_dendrogram_joins_at_its_distances(results: dict[str, Any]) -> None:
    svg = _drawn(figures.dendrogram(check(Results, results, "here")))
    paths = re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--dendrogram\)', svg)
    links = [np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", d), float) for d in paths]
    joins = np.array(sorted(link[1, 0] for link in links))
    distances = np.array(sorted(row[2] for row in results["dendrogram"]["linkage"]))
    _assert_affine(joins, distances)
    names = [text for text in _texts(svg) if text.startswith("speaker-")]
    assert sorted(names) == results["dendrogram"]["speakers"]


@pytest.mark.parametrize(
    "tree", [None, {"speakers": [], "linkage": []}, {"speakers": ["a"], "linkage": []}]
)
def test_no_tree_is_no_figure(results: dict[str, Any], tree: object) -> None:
    assert figures.dendrogram(check(Results, results | {"dendrogram": tree}, "here")) is None


def test_equal_models_have_a_tree_of_no_height(results: dict[str, Any]) -> None:
    tree = {"speakers": ["a", "b"], "linkage": [[0, 1, 0.0, 2]]}
    plot = figures.dendrogram(check(Results, results | {"dendrogram": tree}, "here"))
    assert plot is not None and "a and b are the closest, 0 apart" in plot.caption


def test_bytes_are_bars_in_proportion() -> None:
    ledger = [
        LedgerRow(1, "a", "down", "base", 4_000_000),
        LedgerRow(1, "a", "down", "generic", 1_000_000),
        LedgerRow(1, "a", "up", "personal", 3_000_000),
    ]
    plot = figures.sent(ledger, 1_000_000)
    assert plot is not None and "5.0 MB went down" in plot.caption
    down = _bars(plot.svg, "var(--ink)")
    assert down[0] / down[1] == pytest.approx(4, abs=1e-3)
    assert [t for t in _texts(plot.svg) if "," in t] == [
        "base, down",
        "personal, up",
        "generic, down",
    ]


def test_training_leaves_out_epochs_that_were_not_judged(results: dict[str, Any]) -> None:
    plot = figures.training(check(Results, results, "here"))
    assert plot is not None and plot.caption.endswith("is 19.50 %, in epoch 8.")
    results["loss_curves"] = {"generic": {"dev_wer": [None, None]}}
    assert figures.training(check(Results, results, "here")) is None


def test_somebody_elses_base_looks_the_same_everywhere() -> None:
    bases = ["generic", "median", "kbest", "trimmed"]
    assert canvas.looks(bases)["trimmed"] == canvas.looks([*bases, "trimmed"])["trimmed"]
    assert len({look.color for look in canvas.looks(bases).values()}) == 4


def test_dollars_in_a_name_are_not_mathematics(results: dict[str, Any]) -> None:
    results["per_speaker"][0]["speaker"] = "$x_1$ <b>&"
    assert "$x_1$ &lt;b&gt;&amp;" in _texts(_drawn(figures.gain(check(Results, results, "here"))))


def test_the_users_own_matplotlib_style_changes_nothing(results: dict[str, Any]) -> None:
    found = check(Results, results, "here")
    before = figures.gain(found)
    with matplotlib.rc_context({"axes.linewidth": 9, "svg.fonttype": "path", "font.size": 30}):
        assert figures.gain(found) == before


def _linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    ratio = XYZ @ np.clip(linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _pages() -> list[str]:
    return re.findall(r"--page: (#[0-9a-f]{6})", template.STYLE)


@pytest.mark.parametrize("side", [0, 1])
def test_colours_can_be_read_against_the_page(side: int) -> None:
    page = float(XYZ[1] @ _linear(_pages()[side]))
    for name in PALETTE.keys() - {"line"}:
        light, dark = sorted((float(XYZ[1] @ _linear(PALETTE[name][side])), page), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("cones", [PROTAN, DEUTAN, TRITAN])
def test_the_papers_bases_stay_apart_for_colour_blind_eyes(
    side: int, cones: list[list[float]]
) -> None:
    seen = [_lab(np.array(cones) @ _linear(PALETTE[name][side])) for name in canvas.MARKERS]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 15


def test_a_figure_of_its_own_needs_no_page():
    """Well-formed SVG, on white, in the light palette; all else is as on the page."""
    found = lines([Line("<one>", [1, 2], [3, 4], 1, "o")], ("x", "y"), "some", 'say "<this>"')
    text = canvas.standalone(found)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"] == 'say "<this>"' and "background: white" in root.get("style")
    assert "var(" not in text and PALETTE["mean"][0] in text
    families = set(re.findall("font-family: ([^;]+);", text))
    assert families == {"'DejaVu Sans', sans-serif"}
    drawn = [element.get("d") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    assert drawn == [path.replace("\n", " ") for path in re.findall(r' d="([^"]*)"', found.svg)]
