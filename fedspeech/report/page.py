"""The HTML page of a run: one file with everything in it, made from the run's folder alone."""

from html import escape
from pathlib import Path
from string import Template

from fedspeech.report import (
    budgets,
    diff_page,
    distill_page,
    figures,
    markup,
    parallel_page,
    run_tables,
    tables,
    template,
)
from fedspeech.report.canvas import css
from fedspeech.report.diff_results import DiffResults
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.parallel_results import ParallelResults
from fedspeech.report.results import Results
from fedspeech.report.run_folder import RunFolder, read
from fedspeech.report.tables import Estimate
from fedspeech.tensors import write_whole


def write(folder: Path) -> Path:
    """Write `report.html` into the run's folder and return its path.

    The same folder gives the same bytes. Raises RunError where `results.json` is missing, a file is
    malformed, or the page cannot be written.
    """
    page = render(read(folder))
    path = folder / "report.html"
    write_whole(path, lambda part: part.write_text(page, encoding="utf-8"))
    return path


def render(run: RunFolder) -> str:
    """The whole page as text."""
    results = run.results
    if isinstance(results, DiffResults):
        summary, body = results.title, diff_page.body(results, run)
    elif isinstance(results, DistillResults):
        summary, body = results.title, distill_page.body(results, run)
    elif isinstance(results, ParallelResults):
        summary, body = results.title, parallel_page.body(results, run)
    else:
        summary = f"Personalization of {results.speakers} speakers, seed {results.seed}"
        body = _personalization(results, run)
    return Template(template.FRAME).substitute(
        style=css() + template.STYLE, name=escape(results.name), summary=escape(summary), body=body
    )


def _personalization(results: Results, run: RunFolder) -> str:
    return Template(template.PERSONALIZATION).substitute(
        tiles=_tiles(results),
        **_tables(results, run),
        **_figures(results, run),
        **_details(results, run),
    )


def _tiles(results: Results) -> str:
    tiles = [("G", results.generic), ("P_s", results.personal)]
    base = results.chosen_alpha.base if results.chosen_alpha else ""
    if chosen := results.chosen(base):
        tiles.append((f"{base}, alpha {tables.CHOSEN}", chosen))
    found = []
    for name, wer in tiles:
        mean, low, high = Estimate.of(wer).texts()
        found.append(markup.tile(name, f"{mean} %", f"{low} to {high}"))
    share = run_tables.size((results.bytes.down + results.bytes.up) // max(results.speakers, 1))
    model = f"a whole model is {run_tables.size(results.bytes.full_model)}"
    return markup.joined([*found, markup.tile("sent per speaker, both ways", share, model)])


def _tables(results: Results, run: RunFolder) -> dict[str, str]:
    answered = "No failures: every speaker answered every message."
    return {
        "corpus": markup.table(tables.corpus(results), "The run does not tell of its corpus."),
        "models": markup.table(tables.models(results)),
        "bases": markup.table(tables.bases(results), "No base was mixed."),
        "speakers": markup.table(tables.speakers(results), "No speaker finished."),
        "failures": markup.joined(
            [markup.table(tables.failures(results), answered), _participation(results)]
        ),
        "budgets": _budgets(results),
        "sent": markup.table(run_tables.sent(run.ledger)),
        "time": markup.table(run_tables.timing(run.timing), "The run has no timing.json."),
    }


def _participation(results: Results) -> str:
    every = markup.table(run_tables.rounds(results))
    return markup.joined(
        [
            markup.table(run_tables.stages(results)),
            markup.details("Round by round", every),
            markup.table(run_tables.never(results)),
        ]
    )


def _wer_against_bytes(results: Results) -> str:
    """Nothing where the run has no budgets."""
    if not results.budgets:
        return ""
    plot = budgets.wer_against_bytes(results)
    return markup.figure(plot, "WER against bytes", "the run compares no budgets.")


def _budgets(results: Results) -> str:
    grids = markup.joined([markup.table(one) for one in budgets.grids(results)])
    return markup.joined(
        [
            markup.table(budgets.table(results)),
            markup.details("Every mix within every budget", grids),
        ]
    )


def _figures(results: Results, run: RunFolder) -> dict[str, str]:
    sent = figures.sent(run.ledger, results.bytes.full_model)
    none = "this run has none."
    return {
        "figure_2": markup.figure(figures.layer_correlation(results), "Figure 2", none),
        "figure_3": markup.figure(figures.wer_against_alpha(results), "Figure 3", none),
        "gain": markup.figure(figures.gain(results), "WER gain per speaker", none),
        "dendrogram": markup.figure(figures.dendrogram(results), "Dendrogram", none),
        "wer_against_bytes": _wer_against_bytes(results),
        "bytes": markup.figure(sent, "Bytes sent", "the run has no entries in ledger.csv."),
        "training": markup.figure(figures.training(results), "Training of G", none),
    }


def _details(results: Results, run: RunFolder) -> dict[str, str]:
    every = [tables.grid(results), tables.pooled(results), tables.differences(results)]
    peers = [
        markup.details(f"Peers of {base}", markup.table(tables.peers(results, base)))
        for base, chosen in results.peers.items()
        if any(chosen.values())
    ]
    return {
        "every_mix": markup.details(
            "Every mix, and the paired differences",
            markup.joined([markup.table(table) for table in every]),
        ),
        "peers": markup.joined(peers),
        "settings": markup.settings(run.config, run_tables.environment(run.environment)),
    }
