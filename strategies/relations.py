"""How near two personal models are, and how well one does on the other's speaker (Figure 2)."""

from flwr.serverapp import Grid

from fedspeech import seeding
from fedspeech.config import Config
from strategies.outcome import Outcome
from strategies.questions import Questions
from strategies.view import Candidates, Federation


def relate(
    grid: Grid,
    round: int,
    config: Config,
    federation: Federation,
    questions: Questions,
    outcome: Outcome,
) -> None:
    """Decode a sample of pairs where no rule had all decoded, and take all distances.

    What a rule had decoded beside the sample does not count: it chose whom it asked about.
    """
    speakers = federation.speakers
    pairs = [(s, other) for s in speakers for other in speakers if s != other]
    known = questions.pairs("train")
    if any(pair not in known for pair in pairs):
        draw = seeding.generator(config.seed, round, "", "pairs")
        most = min(config.federation.pair_decodings, len(pairs))
        pairs = sorted(pairs[i] for i in draw.choice(len(pairs), most, replace=False))
        wanted = {s: tuple(c for of, c in pairs if of == s) for s in speakers}
        asked = {s: Candidates(cs, "train") for s, cs in wanted.items() if cs}
        questions.ask(grid, round, asked)
        known = questions.pairs("train")
    outcome.distances = {
        layer: federation.distances(names) for layer, names in federation.layers.items()
    }
    outcome.pairs = {pair: known[pair] for pair in pairs if pair in known}
