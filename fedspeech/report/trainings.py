"""All tables and all figures of a run that is nothing but trainings, whatever its kind.

`timing` is what `timing.json` holds. RunError is raised where it is not as expected.
"""

from collections.abc import Mapping
from typing import Any

from fedspeech.report import (
    diff_figures,
    diff_tables,
    distill_figures,
    distill_tables,
    parallel_figures,
    parallel_tables,
)
from fedspeech.report.diff_results import DiffResults
from fedspeech.report.frame import Figures
from fedspeech.report.parallel_results import ParallelResults, went
from fedspeech.report.run_folder import OfTrainings
from fedspeech.report.tables import Table


def tables_of(results: OfTrainings, timing: Mapping[str, Any]) -> list[Table]:
    """Some may be empty."""
    if isinstance(results, DiffResults):
        return diff_tables.every(results)
    if isinstance(results, ParallelResults):
        return parallel_tables.every(results, went(timing))
    return distill_tables.every(results)


def figures_of(results: OfTrainings, timing: Mapping[str, Any]) -> Figures:
    """As the page has them."""
    if isinstance(results, DiffResults):
        return diff_figures.every(results)
    if isinstance(results, ParallelResults):
        return parallel_figures.every(results, went(timing))
    return distill_figures.every(results)
