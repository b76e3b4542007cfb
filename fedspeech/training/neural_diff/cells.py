"""What there is to train and to judge: every model of every generation, with every seed."""

from typing import Literal, NamedTuple

from fedspeech.config.neural_diff import Method, NeuralDiffConfig

Model = Literal["BL", "BL∞", "BLC", "diff"]


class Cell(NamedTuple):
    """One model of one generation.

    BL is trained anew on D_t without a limit, and its generation 0 is F_0. BL∞ is F_0 for ever.
    BLC is the model itself, sparse or hashed by the same ratio as a diff. A diff is what makes F_t
    of F_{t-1}.
    """

    seed: int
    generation: int
    model: Model
    method: Method | None = None
    ratio: float | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return f"seed-{self.seed}.{self.purpose}"

    @property
    def purpose(self) -> str:
        """Its name among those of one seed."""
        model = self.model.replace("BL∞", "BL-never-updated")
        more = "" if self.ratio is None else f"-{self.method}-{self.ratio:g}x"
        return f"generation-{self.generation}.{model}{more}"

    @property
    def base(self) -> "Cell | None":
        """The cell whose model this one begins with."""
        first = Cell(self.seed, 0, "BL")
        if self.model == "diff" and self.generation > 1:
            return self._replace(generation=self.generation - 1)
        return first if self.model in ("diff", "BL∞") else None


def plan(settings: NeuralDiffConfig, generations: int) -> list[Cell]:
    """Every cell, each after its base; generation 0 is shipped whole, so that it is BL alone."""
    pairs = [(method, ratio) for method in settings.methods for ratio in settings.ratios]
    found = []
    for seed in settings.seeds:
        found.append(Cell(seed, 0, "BL"))
        for t in range(1, generations):
            found += [Cell(seed, t, "diff", *pair) for pair in pairs]
            found += [Cell(seed, t, "BLC", *pair) for pair in pairs]
            found += [Cell(seed, t, "BL"), Cell(seed, t, "BL∞")]
    return found
