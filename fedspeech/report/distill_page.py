"""The page of a run of kind `distillation`: what goes between the frame's header and its end."""

from string import Template

from fedspeech.report import distill_figures, distill_tables, markup, run_tables
from fedspeech.report.distill_results import DistillResults
from fedspeech.report.run_folder import RunFolder
from fedspeech.report.tables import Estimate

BODY = """\
<dl class="tiles">
$tiles
</dl>
<p class="note">WER in percent: the mean over seeds and speakers, with its 95 % interval.</p>

<section>
<h2>Errors</h2>
<div class="pair">
$errors_figure
<div>
$errors
$differences
</div>
</div>
</section>

<section>
<h2>Training and time</h2>
<div class="pair">
$losses
<div>
$time
</div>
</div>
</section>

<section>
<h2>How to read this page</h2>
<ul>
<li>student: the small model trained alone. kd: with distillation over the lattice. All others: with
modules of the student replaced by the teacher's while it learns, ever more rarely. All have the
same updates of the same minibatches.</li>
<li>The 95 % intervals come from resampling speakers, then the utterances of each; every utterance
counts with all seeds. Differences are paired: two intervals may overlap and the difference still be
clear.</li>
<li>All numbers but those of time follow from the seeds, the corpus and the settings.</li>
</ul>
$settings
</section>
"""


def body(results: DistillResults, run: RunFolder) -> str:
    """Everything below the header."""
    return Template(BODY).substitute(
        tiles=_tiles(results),
        errors=markup.table(distill_tables.errors(results)),
        errors_figure=markup.figure(distill_figures.errors(results), "Errors", ""),
        differences=markup.table(distill_tables.differences(results)),
        losses=markup.figure(distill_figures.losses(results), "Losses", "nothing was trained."),
        time=markup.table(run_tables.timing(run.timing), "The run has no timing.json."),
        settings=markup.settings(run.config, run_tables.environment(run.environment)),
    )


def _tiles(results: DistillResults) -> str:
    found = []
    for row in results.table:
        mean, low, high = Estimate.of(row).texts()
        size = distill_tables.millions(row.parameters)
        found.append(markup.tile(row.row, f"{mean} %", f"{low} to {high}; {size}"))
    return markup.joined(found)
