import pytest

from fedspeech.errors import RuleError
from fedspeech.rules import available, find
from strategies import STRATEGIES

MINE = '''
from fedspeech.aggregation import AggregationRule

class Mine(AggregationRule):
    """Mine is
    a rule."""

    def __init__(self, share=0.5, *, least=1):
        if share > 1:
            raise ValueError(f"share has to be at most 1, found {share}")
        self.share, self.least = share, least

class Silent(AggregationRule):
    pass

class Outer:
    class Inner(AggregationRule):
        pass

class Stranger:
    pass

instance = Mine()
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_rules.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def offer(site, distribution, **entries):
    """Install a distribution that offers rules: its metadata, as every installer writes it."""
    folder = site / f"{distribution}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (folder / "entry_points.txt").write_text("\n".join(["[fedspeech.rules]", *lines]) + "\n")


@pytest.mark.parametrize("name", STRATEGIES)
def test_our_own_are_found_by_name(name):
    assert type(find(name, {})) is STRATEGIES[name]


def test_settings_are_the_constructors_keyword_arguments():
    settings = {"k": 3}
    assert find("kbest", settings).k == 3
    assert settings == {"k": 3}


def test_a_class_that_the_settings_name_goes_before_an_entry_point(mine):
    settings = {"class": "mine_rules:Mine", "share": 0.25, "least": 4}
    for name in ("anything", "kbest"):
        rule = find(name, settings)
        assert (type(rule).__name__, rule.share, rule.least) == ("Mine", 0.25, 4)
    assert settings["class"] == "mine_rules:Mine"
    assert type(find("nested", {"class": "mine_rules:Outer.Inner"})).__name__ == "Inner"


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        (
            "kbset",
            {},
            "unknown rule kbset; the nearest known one is kbest; "
            "known are dendrogram, generic, kbest, mean, random",
        ),
        ("Random", {"k": 3}, "unknown rule Random; the nearest known one is random"),
        ("kbest", {"kk": 3}, r"rule kbest: .*'kk'; KBest takes \(k: int = 10, search: .*\)$"),
        (
            "kbest",
            {"search": "fast"},
            "rule kbest: search has to be one of exhaustive, racing, fou",
        ),
        ("kbest", {"k": 0}, "rule kbest: k has to be a whole number of at least 1, found 0"),
        ("mean", {"k": 3}, r"rule mean: .*; Mean takes \(\)$"),
        ("m", {"class": "mine_rules:Mine", "share": 2}, "rule m: share has to be at most 1, found"),
        (
            "m",
            {"class": "mine_rules:Mine", "least": 2, "x": 1},
            r"takes \(share=0.5, \*, least=1\)",
        ),
        ("m", {"class": "mine_rules"}, "expected class = \"package:Class\", found 'mine_rules'"),
        ("m", {"class": "mine_rules:"}, 'rule m: expected class = "package:Class"'),
        ("m", {"class": 7}, 'rule m: expected class = "package:Class", found 7'),
        ("m", {"class": "mine_rules:Nobody"}, "rule m: cannot import mine_rules:Nobody: Attribute"),
        ("m", {"class": "not_there:A"}, "rule m: cannot import not_there:A: ModuleNotFoundError"),
        ("m", {"class": "broken_rules:A"}, "rule m: cannot import broken_rules:A: SyntaxError"),
        ("m", {"class": "rude_rules:A"}, "rule m: cannot import rude_rules:A: ZeroDivisionError"),
        ("m", {"class": "mine_rules:Stranger"}, "expected a class that derives from fedspeech.agg"),
        ("m", {"class": "mine_rules:instance"}, "rule m: mine_rules:instance is <.*Mine object"),
    ],
)
def test_each_mistake_is_one_message(mine, name, settings, told):
    (mine / "broken_rules.py").write_text("class A(\n")
    (mine / "rude_rules.py").write_text("1 / 0\n")
    with pytest.raises(RuleError, match=told) as caught:
        find(name, settings)
    assert "\n" not in str(caught.value)


def test_available_tells_name_source_and_first_docstring_line(mine):
    offer(mine, "other-rules", mine="mine_rules:Mine", silent="mine_rules:Silent", gone="gone:A")
    found = available()
    assert [rule.name for rule in found] == sorted([*STRATEGIES, "mine", "silent", "gone"])
    assert ("mine", "other-rules, mine_rules:Mine", "Mine is") in found
    assert ("silent", "other-rules, mine_rules:Silent", "") in found
    assert (
        "random",
        "fedspeech, strategies.random:Random",
        "k others, drawn uniformly without repetition.",
    ) in found
    gone = next(rule for rule in found if rule.name == "gone")
    assert gone.summary == (
        "rule gone: cannot import gone:A: ModuleNotFoundError: No module named 'gone'"
    )


def test_a_name_that_two_packages_offer_is_not_guessed(mine):
    offer(mine, "other-rules", kbest="mine_rules:Mine", twice="mine_rules:Mine")
    offer(mine, "more-rules", twice="mine_rules:Mine")
    told = "rule kbest is offered more than once .mine_rules:Mine, strategies.kbest:KBest.; say"
    with pytest.raises(RuleError, match=told):
        find("kbest", {})
    assert type(find("kbest", {"class": "strategies.kbest:KBest"})) is STRATEGIES["kbest"]
    assert type(find("twice", {})).__name__ == "Mine"
