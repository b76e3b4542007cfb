"""What there is to train, in which order, and which student ships."""

from fedspeech.training.distill.cells import Cell, plan, shipped

WAYS = {
    "lcmr": {},
    "together": {"strategy": 1},
    "constant": {"schedule": "constant"},
    "inherited": {"rate": 1.0},
}


def test_the_teacher_comes_before_those_who_learn_from_it(settings):
    found = plan(settings(seeds=[3, 5], rows=["student", "kd", "teacher", "lcmr"]))
    assert [cell.name for cell in found] == [
        *("seed-3.teacher", "seed-3.student", "seed-3.kd", "seed-3.lcmr"),
        *("seed-5.teacher", "seed-5.student", "seed-5.kd", "seed-5.lcmr"),
    ]
    for place, cell in enumerate(found):
        assert cell.base is None or cell.base in found[:place]
    assert [cell.row for cell in found if cell.base == Cell(5, "teacher", False)] == ["kd", "lcmr"]


def test_what_learns_together_with_its_teacher_needs_none(settings):
    alone = plan(settings(rows=["together", "student"], replacing=WAYS))
    assert [cell.row for cell in alone] == ["together", "student"]
    assert not any(cell.base for cell in alone)
    with_one = plan(settings(rows=["together", "constant"], replacing=WAYS))
    assert [cell.row for cell in with_one] == ["teacher", "together", "constant"]


def test_the_first_student_with_modules_replaced_ships(settings):
    def row(*rows: str) -> str | None:
        found = shipped(settings(seeds=[4, 2], rows=rows, replacing=WAYS))
        assert found is None or found.seed == 4
        return found and found.row

    assert row("teacher", "student", "kd", "constant", "lcmr") == "constant"
    assert row("teacher", "inherited", "constant") == "constant"
    assert row("teacher", "student", "kd", "inherited") == "kd"
    assert row("teacher", "student", "inherited") == "inherited"
    assert row("teacher", "student", "kd") == "kd"
    assert row("student", "teacher") == "student"
    assert row("teacher") is None
