"""What there is to train and to judge: every row of the table, with every seed."""

from typing import NamedTuple

from fedspeech.config.distillation import KD, STUDENT, TEACHER, DistillationConfig


class Cell(NamedTuple):
    """One row with one seed; `taught` says that it needs the seed's teacher."""

    seed: int
    row: str
    taught: bool

    @property
    def name(self) -> str:
        """Of its files."""
        return f"seed-{self.seed}.{self.row}"

    @property
    def base(self) -> "Cell | None":
        """The teacher, where it needs one."""
        return Cell(self.seed, TEACHER, False) if self.taught else None


def plan(settings: DistillationConfig) -> list[Cell]:
    """Every cell that is asked for, and the teachers that they need, which come first."""
    found = []
    for seed in settings.seeds:
        cells = [Cell(seed, row, is_taught(settings, row)) for row in settings.rows]
        needed = [cell.base for cell in cells if cell.base is not None]
        found += list(dict.fromkeys([*needed[:1], *cells]))
    return found


def is_taught(settings: DistillationConfig, row: str) -> bool:
    """Whether a row's student learns from a teacher that was trained before."""
    if row in (TEACHER, STUDENT):
        return False
    return row == KD or settings.replacing[row].strategy == 2


def shipped(settings: DistillationConfig) -> Cell | None:
    """The student that becomes generation 0: of the first seed, the first with modules replaced;
    without one, that of `kd`, one that only inherits, or the student alone. None where no student
    is asked for.
    """
    ways = [row for row in settings.rows if row in settings.replacing]
    replaced = [row for row in ways if settings.replacing[row].replaces]
    rows = [*replaced, *(row for row in (KD, *ways, STUDENT) if row in settings.rows)]
    return Cell(settings.seed, rows[0], is_taught(settings, rows[0])) if rows else None
