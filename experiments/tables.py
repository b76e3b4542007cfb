"""The tables of some runs as Markdown, and their figures as SVG files.

python experiments/tables.py runs/an4-0 runs/an4-1 runs/an4-2
python experiments/tables.py runs/neural-diff-asr
python experiments/tables.py runs/lcmr
python experiments/tables.py runs/data-parallel --figures experiments/figures

Personalizations: the paper's Tables 1, 2 and 3, one column per run, and for each run that compares
budgets what they cost. Other kinds: the tables of each run, and with --figures those of its page's
figures that have something to draw, with links for a file that lies beside their folder.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedspeech.errors import FedSpeechError, RunError
from fedspeech.report import budgets, trainings
from fedspeech.report.canvas import standalone
from fedspeech.report.results import Results as Personalization
from fedspeech.report.run_folder import OfTrainings, parse
from fedspeech.report.tables import Estimate, Table
from fedspeech.tensors import write_whole

Results = dict[str, Any]


def estimate(figures: Results) -> str:
    """Mean and 95 % interval."""
    return f"{figures['mean']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}]"


def difference(figures: Results) -> str:
    """A signed mean and its 95 % interval."""
    return f"{figures['mean']:+.2f} [{figures['low']:+.2f}, {figures['high']:+.2f}]"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def corpus(results: Results) -> str:
    """Table 1: the parts of the corpus; the same for all seeds."""
    rows = [
        [
            row["part"],
            str(row["speakers"]),
            str(row["utterances"]),
            str(row["words"]),
            f"{row['hours']:.2f}",
            f"{row['seconds_per_speaker']['mean']:.0f}",
        ]
        for row in results["corpus"]
    ]
    header = ["part", "speakers", "utterances", "words", "hours", "seconds per speaker"]
    return markdown(header, rows)


def models(runs: Sequence[Results]) -> str:
    """Table 2: G, P_s, and their paired difference."""
    rows = [
        ["G", *(estimate(run["generic"]) for run in runs)],
        ["P_s", *(estimate(run["personal"]) for run in runs)],
        ["G - P_s, paired", *(difference(run["gain"]) for run in runs)],
    ]
    return markdown(["WER %", *seeds(runs)], rows)


def bases(runs: Sequence[Results]) -> str:
    """Table 3: for each base the best alpha on test_s, and the devices' own choice."""
    rows = []
    for base in dict.fromkeys(row["base"] for row in runs[0]["table"]):
        for which in ("best", "chosen"):
            cells = [_cell(run, base, which) for run in runs]
            rows.append([base, "on the device" if which == "chosen" else "best", *cells])
    return markdown(["base", "alpha", *seeds(runs)], rows)


def seeds(runs: Sequence[Results]) -> list[str]:
    """The columns' names."""
    return [f"seed {run['seed']}" for run in runs]


def _cell(run: Results, base: str, which: str) -> str:
    (row,) = (
        d
        for d in run["differences"]
        if (d["base"], d["against"]) == (base, "personal")
        and (d["alpha"] == "chosen") == (which == "chosen")
    )
    (cell,) = (c for c in run["table"] if (c["base"], c["alpha"]) == (base, row["alpha"]))
    alpha = "" if which == "chosen" else f"{row['alpha']:g}: "
    return f"{alpha}{estimate(cell)}; {difference(row)}"


def of_trainings(run: Results, timing: Results) -> str:
    """All tables of one run that is nothing but trainings."""
    found = trainings.tables_of(_trainings(run), timing)
    return "\n".join(_titled(table) for table in found if not table.empty)


def drawn(run: Results, timing: Results, name: str, folder: Path) -> str:
    """The figures of one such run, written into a folder as files that begin with `name`."""
    said = []
    for title, plot in trainings.figures_of(_trainings(run), timing).items():
        if plot is not None:
            path, text = folder / f"{name}-{plot.name}.svg", standalone(plot)
            write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
            said.append(f"![{title}]({folder.name}/{path.name})\n\n{title}. {plot.caption}\n")
    return "\n".join(said)


def _trainings(run: Results) -> OfTrainings:
    found = parse(run, "results.json")
    if isinstance(found, Personalization):
        raise RunError(
            f"--figures: expected a run of nothing but trainings, found {found.name}, a "
            "personalization, whose figures are on its page"
        )
    return found


def within_budgets(run: Results) -> str:
    """WER against bytes of a run that compares budgets."""
    found = parse(run, "results.json")
    assert isinstance(found, Personalization)
    return _titled(budgets.table(found)) if found.budgets else ""


def _titled(table: Table) -> str:
    rows = [list(map(_text, row)) for row in table.rows]
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return f"{table.title}\n\n{markdown(table.columns, rows)}{notes}"


def _text(cell: str | Estimate) -> str:
    if isinstance(cell, str):
        return cell
    mean, low, high = cell.texts()
    return f"{mean} [{low}, {high}]"


def read(folder: str, name: str) -> Results:
    """A file of a finished run; ends the program where there is none."""
    path = Path(folder) / name
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        sys.exit(f"{path}: expected that of a finished run: {error.strerror}")
    except ValueError as error:
        sys.exit(f"{path}: not readable: {error}")


def main(arguments: Sequence[str]) -> None:
    """Print the tables of some run folders, and write their figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs", metavar="RUN")
    parser.add_argument("--figures", type=Path, help="a folder for SVG files", metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        _show(given.runs, given.figures)
    except FedSpeechError as error:
        sys.exit(str(error))


def _show(folders: Sequence[str], figures: Path | None) -> None:
    runs = [read(folder, "results.json") for folder in folders]
    times = [read(folder, "timing.json") for folder in folders]
    kinds = dict.fromkeys(str(run.get("kind")) for run in runs)
    if len(kinds) > 1:
        raise RunError(f"expected runs of one kind, found {' and '.join(kinds)}")
    if figures is not None or "personalization" not in kinds:
        print("\n".join(map(of_trainings, runs, times)))
    else:
        print(corpus(runs[0]))
        print(models(runs))
        print(bases(runs))
        print("".join(map(within_budgets, runs)))
    if figures is not None:
        names = [Path(folder).resolve().name for folder in folders]
        print("\n".join(map(drawn, runs, times, names, [figures.resolve()] * len(runs))))
    minutes = [sum(stage["seconds"] for stage in time["stages"]) / 60 for time in times]
    print("Minutes:", ", ".join(f"{value:.1f}" for value in minutes))


if __name__ == "__main__":
    main(sys.argv[1:])
