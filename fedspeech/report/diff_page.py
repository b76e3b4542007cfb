"""The page of a run of kind `neural-diff`: what goes between the frame's header and its end."""

from string import Template

from fedspeech.report import diff_figures, diff_tables, markup, run_tables
from fedspeech.report.diff_results import DIFF, DiffResults
from fedspeech.report.run_folder import RunFolder
from fedspeech.report.tables import Estimate

BODY = """\
<dl class="tiles">
$tiles
</dl>
<p class="note">$metric in percent in the last generation: the mean over seeds and speakers, with
its 95 % interval.</p>

<section>
<h2>Errors</h2>
<div class="pair">
$errors_figure
<div>
$errors
</div>
</div>
</section>

<section>
<h2>Regret</h2>
<div class="pair">
$regret_figure
<div>
$regret
$minus_blc
</div>
</div>
</section>

<section>
<h2>Bytes and time</h2>
<div class="pair">
<div>
$sizes
</div>
<div>
$time
</div>
</div>
</section>

<section>
<h2>How to read this page</h2>
<ul>
<li>BL is trained anew on all that a generation has, without a limit; its generation 0 is F_0, with
which every line of diffs begins. BL∞ is F_0 for ever. BLC is a model that is itself as small as a
diff, pruned or hashed. A diff turns the generation before into this one; what is judged is the
model that a device gets when it applies the diff's bytes.</li>
<li>The 95 % intervals come from resampling speakers, then the utterances of each; every utterance
counts with all seeds. Regret and differences are paired.</li>
<li>All numbers but those of time follow from the seeds, the corpus and the settings.</li>
</ul>
$settings
</section>
"""


def body(results: DiffResults, run: RunFolder) -> str:
    """Everything below the header."""
    return Template(BODY).substitute(
        metric=results.metric,
        tiles=_tiles(results),
        errors=markup.table(diff_tables.errors(results)),
        errors_figure=markup.figure(diff_figures.errors(results), "Errors", ""),
        regret=markup.table(diff_tables.regret(results)),
        regret_figure=markup.figure(diff_figures.regret(results), "Regret", ""),
        minus_blc=markup.table(diff_tables.minus_blc(results)),
        sizes=markup.table(diff_tables.sizes(results)),
        time=markup.table(run_tables.timing(run.timing), "The run has no timing.json."),
        settings=markup.settings(run.config, run_tables.environment(run.environment)),
    )


def _tiles(results: DiffResults) -> str:
    last = len(results.generations) - 1
    found = []
    for name, line in results.lines.items():
        if line[0].ratio is None or name.startswith(DIFF):
            mean, low, high = Estimate.of(line[-1]).texts()
            assert line[-1].generation == last
            found.append(markup.tile(name, f"{mean} %", f"{low} to {high}"))
    return markup.joined(found)
