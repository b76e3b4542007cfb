"""One or two sentences per figure that say what it shows, for reading and for reading aloud."""

from collections.abc import Sequence

from fedspeech.report.results import Dendrogram, LayerCorrelation, Results, SpeakerResult
from fedspeech.report.run_folder import LedgerRow
from fedspeech.report.run_tables import size, sums


def wer_against_alpha(results: Results) -> str:
    """Figure 3."""
    best = [cell for base in results.bases if (cell := results.best(base))]
    lowest = min(best, key=lambda cell: cell.mean)
    return (
        f"G has {results.generic.mean:.2f} % WER and P_s {results.personal.mean:.2f} %. "
        f"The lowest mix is {lowest.base} at alpha {lowest.alpha:g} with {lowest.mean:.2f} % "
        "(an alpha picked on test_s). At alpha 1 every mix is P_s; at alpha 0 it is the base "
        "alone. Below, each base with its 95 % interval; a ring marks its lowest WER, thin lines "
        "are the other bases."
    )


def layer_correlation(layers: Sequence[LayerCorrelation], pairs: int) -> str:
    """Figure 2."""
    known = [(row.pearson, row.layer) for row in layers if row.pearson is not None]
    says = (
        f"For each layer, over {pairs:,} pairs (s, s'): the Pearson correlation between the "
        "distance of P_s and P_s' on that layer and the WER of P_s' on speaker s."
    )
    if not known:
        return f"{says} It is not defined for any layer."
    pearson, layer = max(known, key=lambda item: abs(item[0]))
    return f"{says} The strongest is {signed(pearson, 2)}, in {layer}."


def gain(speakers: Sequence[SpeakerResult], base: str | None) -> str:
    """WER gain per speaker."""
    ordered = sorted(speakers, key=lambda row: row.gain)
    better = sum(row.gain > 0 for row in ordered)
    least, most = ordered[0], ordered[-1]
    says = (
        f"Fine-tuning lowers the WER of {better} of {len(ordered)} speakers. The gain from G to "
        f"P_s runs from {signed(least.gain, 1)} points ({least.speaker}) to {signed(most.gain, 1)} "
        f"({most.speaker})."
    )
    if base is None:
        return says
    return f"{says} The mark is the gain of the mix with {base} at the alpha chosen on the device."


def dendrogram(tree: Dendrogram) -> str:
    """The tree of speakers."""
    i, j, distance, _ = tree.linkage[0]
    return (
        "Ward linkage of the speakers by the distance of their personal models' first layers. "
        f"{tree.speakers[int(i)]} and {tree.speakers[int(j)]} are the closest, "
        f"{distance:.3g} apart."
    )


def wer_against_bytes(results: Results) -> str:
    """What the smallest push costs."""
    least = min((row for row in results.budgets if row.bytes), key=lambda row: row.bytes)
    change = least.told.change
    return (
        "WER against the bytes of one push of M_s; the band is the 95 % interval, dotted is P_s. "
        f"The smallest push, {size(round(least.bytes))} of {size(results.bytes.full_model)} "
        f"({least.base}), changes the WER by {signed(change.mean, 2)} points "
        f"({signed(change.low, 2)} to {signed(change.high, 2)})."
    )


def sent(ledger: Sequence[LedgerRow], full_model: int) -> str:
    """Bytes by kind and direction."""
    totals = {"down": 0, "up": 0}
    for (_, direction), total in sums(ledger):
        totals[direction] = totals.get(direction, 0) + total
    return (
        f"{size(totals['down'])} went down to the devices and {size(totals['up'])} came up from "
        f"them; one whole model is {size(full_model)}. A message that was sent again counts once."
    )


def training(dev_wer: Sequence[float | None]) -> str:
    """How G was trained."""
    judged = [(wer, epoch) for epoch, wer in enumerate(dev_wer, 1) if wer is not None]
    says = f"G in training, {len(dev_wer)} epochs."
    if not judged:
        return says
    wer, epoch = min(judged)
    return f"{says} Its lowest WER on the development speakers is {wer:.2f} %, in epoch {epoch}."


def signed(value: float, decimals: int) -> str:
    """A number with its sign, a proper minus among them; zero is never negative."""
    return f"{value:+z.{decimals}f}".replace("-", "−")
