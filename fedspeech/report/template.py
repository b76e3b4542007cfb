"""The page's frame and style, and what is in it for a personalization, for `string.Template`.

They are Python strings because Flower's bundle carries no .html and no .css: the server app writes
the page from inside that bundle too.
"""

FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$name: report</title>
<style>
$style</style>
</head>
<body>
<main>
<header>
<h1>$name</h1>
<p>$summary</p>
</header>
$body</main>
</body>
</html>
"""

PERSONALIZATION = """\
<dl class="tiles">
$tiles
</dl>
<p class="note">WER in percent, the mean over speakers, with its 95 % interval.</p>

<section>
<h2>Models and corpus</h2>
<div class="pair">
<div>
$models
<p class="note">G is the generic model, P_s the personal model of speaker s: G fine-tuned on
train_s. Both are judged on test_s, each speaker on its own.</p>
</div>
<div>
$corpus
</div>
</div>
</section>

<section>
<h2>Mixes</h2>
<p>A mix is alpha * P_s + (1 - alpha) * M_s, where M_s is the base: G, or made of other speakers'
personal models.</p>
<div class="pair">
$figure_3
<div>
$bases
<p class="note">minus P_s: the paired difference of the mix and P_s; negative means that the mix is
better.</p>
$every_mix
</div>
</div>
</section>

<section>
<h2>Speakers</h2>
<div class="pair speakers">
<div>
$speakers
</div>
$gain
</div>
$failures
$peers
</section>

<section>
<h2>Distances between personal models</h2>
<div class="pair">
$figure_2
$dendrogram
</div>
</section>

<section>
<h2>Network, training and time</h2>
<div class="pair">
$wer_against_bytes
<div>
$budgets
</div>
$bytes
<div>
$sent
</div>
$training
<div>
$time
</div>
</div>
</section>

<section>
<h2>How to read this page</h2>
<ul>
<li>WER is the mean over speakers: each speaker weighs the same. Pooled is all errors over all
words.</li>
<li>The 95 % intervals come from resampling speakers, then the utterances of each. They say how far
a figure may move with other speakers and other utterances; with few speakers they are wide.</li>
<li>Differences are paired: both models are judged on the same speakers and utterances. So two
intervals may overlap and the difference still be clear; look at the difference.</li>
<li>Picked on test_s, and so looking better than new speech would be: every best alpha that is given
as a number (Table 3), the rings in Figure 3, and which base is the lowest. Not picked on test_s: G,
P_s, their gain, and the rows with alpha chosen on the device.</li>
<li>All numbers but those of time follow from the seed, the corpus and the settings.</li>
</ul>
$settings
</section>
"""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #ffffff;
  --raised: #f4f6f8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d;
    --raised: #1e242b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0;
  background: var(--page);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { margin: 0.5rem 0 0; font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 {
  margin: 2.5rem 0 0.75rem;
  padding-top: 0.75rem;
  border-top: 1px solid var(--line);
  font-size: 1.3rem;
}
h3 { margin: 1.5rem 0 0.25rem; font-size: 1.05rem; }
p { margin: 0.4rem 0; }
header p, .note, figcaption { color: var(--muted); }
.note, figcaption { font-size: 0.875rem; }
.pair {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
  gap: 1.5rem;
  align-items: start;
}
@media (min-width: 60rem) {
  .speakers { grid-template-columns: minmax(0, max-content) minmax(20rem, 1fr); }
}
.pair > * { min-width: 0; }
.pair > .wide { grid-column: 1 / -1; }

.tiles {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 0.75rem;
  margin: 1rem 0 0.5rem;
}
.tiles div { padding: 0.6rem 0.8rem; border-radius: 0.5rem; background: var(--raised); }
.tiles dt { color: var(--muted); font-size: 0.875rem; }
.tiles dd { margin: 0; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.3; }
.tiles small { color: var(--muted); font-size: 0.8125rem; }

.scroll { overflow-x: auto; margin: 0.75rem 0 0.25rem; }
table {
  border-collapse: separate;
  border-spacing: 0;
  font-size: 0.875rem;
  line-height: 1.35;
  font-variant-numeric: tabular-nums;
}
caption { padding-bottom: 0.4rem; text-align: left; font-weight: 600; font-size: 1rem; }
th, td { padding: 0.3rem; text-align: left; vertical-align: top; }
th { font-weight: 600; }
tbody th { font-weight: 500; }
thead th { color: var(--muted); border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th, tbody td { border-bottom: 1px solid var(--line); }
tbody th { position: sticky; left: 0; background: var(--page); }
td:last-child:not(.number) { min-width: 10rem; overflow-wrap: anywhere; }
tbody th:not(.whole) { min-width: 5rem; overflow-wrap: anywhere; }
.whole { white-space: nowrap; }
.number { text-align: right; }
td small { display: block; color: var(--muted); font-size: 0.75rem; white-space: nowrap; }
tr.marked > * { background: var(--raised); }

figure { margin: 0.5rem 0; }
figure svg { display: block; width: 100%; max-width: 30rem; height: auto; }
figure svg text { font-family: inherit !important; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { max-width: 30rem; margin-top: 0.4rem; }

@media (max-width: 28rem) {
  main { padding: 0.75rem; }
  th, td { padding: 0.3rem 0.2rem; }
  table { font-size: 0.8125rem; }
  thead th { font-size: 0.75rem; }
  td small { font-size: 0.6875rem; }
}

details { margin: 0.75rem 0; }
summary { cursor: pointer; padding: 0.3rem 0; font-weight: 600; }
pre {
  overflow-x: auto;
  padding: 0.75rem;
  border-radius: 0.5rem;
  background: var(--raised);
  font-size: 0.8125rem;
  line-height: 1.45;
}
li { margin: 0.3rem 0; }

@media print {
  @page { margin: 15mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  .pair { display: block; }
  h2, h3, caption, section > p { break-after: avoid; }
  figure, table, tr, .tiles div { break-inside: avoid; }
  thead { display: table-header-group; }
  .scroll { overflow: visible; }
  figure svg { max-width: 95mm; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; }
}
"""
