import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedspeech import rules
from fedspeech.cli import app
from fedspeech.config import Config, DistillationConfig, NeuralDiffConfig, dump, load, located
from fedspeech.config.model import AugmentationSettings
from fedspeech.errors import ConfigError, RuleError

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.toml"))


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "mine.toml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def told(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "")


# A user's mistakes: one line each, with file and line, what was found and what was expected.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 'x'", "mine.toml:1: nmae: unknown setting; the nearest known one is name"),
        (
            "[engine]\ngpus_per_worker = 1.5",
            "mine.toml:2: engine.gpus_per_worker: expected a whole number of GPUs, or a share of "
            "one (below 1), found 1.5",
        ),
        (
            "[engine]\ngpus_per_worker = 0.33335",
            "mine.toml:2: engine.gpus_per_worker: expected a share in steps of 0.0001, as Ray "
            "counts, found 0.33335",
        ),
        ("\nzzzzzz = 3", "mine.toml:2: zzzzzz: unknown setting"),
        (
            "seed = 1\n[federatoin]\nrounds = 2",
            "mine.toml:2: federatoin: unknown setting; the nearest known one is federation",
        ),
        (
            "[federatoin.improve]\nrounds = 2",
            "mine.toml:1: federatoin: unknown setting; the nearest known one is federation",
        ),
        (
            "[generic]\nepochs = 3\nlearning_rat = 0.1",
            "mine.toml:3: generic.learning_rat: unknown setting; "
            "the nearest known one is learning_rate",
        ),
        (
            "[generic.augmentation]\nspeed = [1.0]",
            "mine.toml:2: generic.augmentation.speed: unknown setting; "
            "the nearest known one is speeds",
        ),
        (
            "[federation.continue_from]\nbaes = 'mean'",
            "mine.toml:2: federation.continue_from.baes: unknown setting; "
            "the nearest known one is base",
        ),
        (
            "[federation.improve]\nclas = 'a:B'",
            "mine.toml:2: federation.improve.clas: unknown setting; the nearest known one is class",
        ),
        (
            "partition.train.second = 3.0",
            "mine.toml:1: partition.train.second: unknown setting; "
            "the nearest known one is seconds",
        ),
        (
            "[federation]\nalphas = [0.5,\n  1.5]",
            "mine.toml:2: federation.alphas.1: Input should be less than or equal to 1, found 1.5",
        ),
        (
            "[federation]\nalphas = [-0.1]",
            "mine.toml:2: federation.alphas.0: "
            "Input should be greater than or equal to 0, found -0.1",
        ),
        (
            "[federation.continue_from]\nalpha = 2",
            "mine.toml:2: federation.continue_from.alpha: "
            "Input should be less than or equal to 1, found 2",
        ),
        *(
            (
                f"[{section}]\n{name} = {found}",
                f"mine.toml:2: {section}.{name}: Input should be less than or equal to {most}, "
                f"found {found}",
            )
            for section, name, found, most in (
                ("federation.participation", "spread", 400.0, 10),
                ("engine", "message_seconds", 1e300, 10000000),
                ("engine", "workers", 10_001, 10_000),
                ("engine", "cpus_per_worker", 100_000, 1024),
                ("engine", "simulated_gpus", 100_000_000, 10_000),
            )
        ),
        (
            "[federation]\nalphas = []",
            "mine.toml:2: federation.alphas: expected at least one, found []",
        ),
        (
            "[federation]\nbases = []",
            "mine.toml:2: federation.bases: expected at least one, found []",
        ),
        (
            "[federation]\nbases = ['mean', 'kbest', 'mean']",
            "mine.toml:2: federation.bases: expected each once, 'mean' comes more than once, "
            "found ['mean', 'kbest', 'mean']",
        ),
        (
            "[federation]\nalphas = [0.5, 1, 1.0]",
            "mine.toml:2: federation.alphas: expected each once, 1.0 comes more than once, "
            "found [0.5, 1, 1.0]",
        ),
        (
            "[features]\ndimension = 3",
            "mine.toml:2: features.dimension: Input should be greater than or equal to 4, found 3",
        ),
        *(
            (
                f"name = '{name}'",
                "mine.toml:1: name: expected the name of a folder, found " + repr(name),
            )
            for name in ("", ".", "..", "a/b", "../x")
        ),
        (
            "[federation]\nbases = 'mean'",
            "mine.toml:2: federation.bases: expected a list, found 'mean'",
        ),
        (
            "[federation]\nbases = ['mean']\nchosen_base = 'kbest'",
            "mine.toml:1: federation: chosen_base: expected generic or one of bases (mean), "
            "found 'kbest'",
        ),
        (
            "[federation]\nbases = ['mean', 'random']\n[federation.continue_from]\nbase = 'kbset'",
            "mine.toml:1: federation: continue_from.base: expected generic or one of bases "
            "(mean, random), found 'kbset'",
        ),
        ("federation = 3", "mine.toml:1: federation: expected a table, found 3"),
        ("[rules]\nkbest = 3", "mine.toml:2: rules.kbest: expected a table, found 3"),
        (
            "[partition]\ngeneric = 4\ntrain = { seconds = 30.0, fraction = 0.5 }",
            "mine.toml:3: partition.train: expected exactly one of seconds, fraction, field; "
            "found ['seconds', 'fraction']",
        ),
        (
            "[partition.train]\n",
            "mine.toml:1: partition.train: expected exactly one of seconds, fraction, field; "
            "found []",
        ),
        (
            "[partition.train]\nfield = 'round'",
            "mine.toml:1: partition.train: field and values belong together",
        ),
        (
            "[partition.train]\nseconds = 3\nvalues = [1]",
            "mine.toml:1: partition.train: field and values belong together",
        ),
        (
            "[partition.train]\nfield = 'round'\nvalues = [1.5]",
            "mine.toml:3: partition.train.values.0: expected a whole number or a string, found 1.5",
        ),
        (
            "[partition.train]\nfraction = 1.0",
            "mine.toml:2: partition.train.fraction: Input should be less than 1, found 1.0",
        ),
        *(
            (
                f"[partition]\ngeneric = {value}",
                "mine.toml:2: partition.generic: expected a number of speakers (at least 1), "
                f'a list of ids, the name of a file, or "rest", found {found}',
            )
            for value, found in (("0", "0"), ("1.5", "1.5"), ("true", "True"), ("[1]", "[1]"))
        ),
        *(
            (
                f"[generic]\nlearning_rate = {value}",
                f"mine.toml:2: generic.learning_rate: Input should be {expected}, found {found}",
            )
            for value, expected, found in (
                ("nan", "a finite number", "nan"),
                ("inf", "a finite number", "inf"),
                ("0", "greater than 0", "0"),
                ("-1e-3", "greater than 0", "-0.001"),
                ("'0.1'", "a valid number", "'0.1'"),
                ("true", "a valid number", "True"),
            )
        ),
        *(
            (
                f"[personal]\nepochs = {value}",
                f"mine.toml:2: personal.epochs: Input should be {expected}, found {found}",
            )
            for value, expected, found in (
                ("0", "greater than or equal to 1", "0"),
                ("2.5", "a valid integer", "2.5"),
                ("true", "a valid integer", "True"),
                ("'3'", "a valid integer", "'3'"),
                ("[3]", "a valid integer", "[3]"),
            )
        ),
        (
            "[model]\nencoder_unit = 96",
            "mine.toml:2: model.encoder_unit: unknown setting; the nearest known one is "
            "encoder_units",
        ),
        (
            "[model]\nwidth = 0",
            "mine.toml:2: model.width: Input should be greater than or equal to 1, found 0",
        ),
        (
            "[model]\njoint = 100000",
            "mine.toml:2: model.joint: Input should be less than or equal to 16384, found 100000",
        ),
        (
            "[model]\nbypass = 1",
            "mine.toml:2: model.bypass: Input should be a valid boolean, found 1",
        ),
        (
            "[features]\nkind = 'mfc'",
            "mine.toml:2: features.kind: Input should be 'mfcc' or 'log-mel', found 'mfc'",
        ),
        (
            "[features]\ndimension = 1000",
            "mine.toml:2: features.dimension: "
            "Input should be less than or equal to 128, found 1000",
        ),
        *(
            (
                f"[generic.augmentation]\nspeeds = [1.0, {speed}]",
                "mine.toml:2: generic.augmentation.speeds: "
                f"expected speeds of 0.5 … 2 in hundredths, found [1.0, {speed}]",
            )
            for speed in (0.49, 100.0, 0.9137)
        ),
        *(
            (
                f"[generic.augmentation]\n{name} = {ends}",
                f"mine.toml:2: generic.augmentation.{name}: "
                f"expected the least and the greatest, found {ends}",
            )
            for name, ends in (
                ("volumes", "[2.0, 0.25]"),
                ("volumes", "[1.0]"),
                ("noise", "[30.0, 5.0]"),
                ("noise", "[1.0, 2.0, 3.0]"),
            )
        ),
        *(
            (
                f"[generic]\ndropout = {points}",
                "mine.toml:2: generic.dropout: "
                f"expected points (share, probability), the shares in their order, found {points}",
            )
            for points in ("[]", "[[0.5, 0.1], [0.2, 0.1]]")
        ),
        ("a = ", "mine.toml: not readable as TOML: Invalid value (at end of document)"),
        (
            "a = 1\nb = = 2\n",
            "mine.toml: not readable as TOML: Invalid value (at line 2, column 5)",
        ),
        ("extends = 3", "mine.toml:1: extends: expected the name of a file, found 3"),
        ("extends = 'gone.toml'", "gone.toml: no such file (mine.toml extends it)"),
        ("extends = 'mine.toml'", "mine.toml: extends itself"),
    ],
)
def test_each_mistake_is_one_line(file, text, message):
    assert told(file(text)) == message


def test_every_mistake_of_a_file_is_told(file):
    path = file("seed = 'x'\n[generic]\nepochs = 0\n")
    assert [line.split(":")[1] for line in told(path).splitlines()] == ["1", "3"]


def test_what_is_no_file_is_told(tmp_path, file):
    assert told(tmp_path / "gone.toml") == "gone.toml: no such file"
    assert "not readable as TOML" in told(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"name = '\xff'")
    assert told(tmp_path / "x.toml").startswith("x.toml: not readable as TOML: ")


def test_a_loop_of_files_is_told(file):
    file("extends = 'c.toml'", "b.toml")
    file("extends = 'mine.toml'", "c.toml")
    assert told(file("extends = 'b.toml'")) == "mine.toml: extends itself"


def test_a_mistake_in_an_extended_file_names_that_file(file):
    file("[generic]\nbatch_size = 4\nepochs = 0\n", "base.toml")
    assert told(file("extends = 'base.toml'\n[generic]\nbatch_size = 8")).startswith(
        "base.toml:3: generic.epochs: "
    )
    # Where both files have it, it is the nearer one that counts.
    assert told(file("extends = 'base.toml'\n[generic]\nepochs = -1")).startswith("mine.toml:3: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "generic.epochs",
            "--set generic.epochs: expected section.key=value, names as in TOML",
        ),
        ("=3", "--set =3: expected section.key=value, names as in TOML"),
        ("a b.c=3", "--set a b.c=3: expected section.key=value, names as in TOML"),
        ("generic.epochs.x=3", "--set generic.epochs.x=3: epochs is not a section"),
        ("generic=3", "--set generic=3: generic: expected a table, found 3"),
        (
            "generic.epochs=0",
            "--set generic.epochs=0: generic.epochs: "
            "Input should be greater than or equal to 1, found 0",
        ),
        (
            "genric.epochs=3",
            "--set genric.epochs=3: genric: unknown setting; the nearest known one is generic",
        ),
        (
            "partition.train.fraction=0.5",
            "--set partition.train.fraction=0.5: partition.train: expected exactly one of "
            "seconds, fraction, field; found ['seconds', 'fraction']",
        ),
    ],
)
def test_a_mistake_in_an_override_names_the_override(file, override, message):
    path = file("[generic]\nepochs = 3\n[partition.train]\nseconds = 30.0\n")
    assert told(path, "seed=1", override) == message


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("model.projection: too large", "mine.toml:4: model.projection: too large"),
        ("model.name = 'x': is not there", "below.toml:2: model.name = 'x': is not there"),
        ("model.stacking: not made", "mine.toml:3: model.stacking: not made"),
        ("model.width: too wide", "--set model.width=3: model.width: too wide"),
        ("features: not alike", "mine.toml: features: not alike"),
        ("gone.toml: no such file", "gone.toml: no such file"),
        ("mix_on = 'server' needs more", "mix_on = 'server' needs more"),
    ],
)
def test_what_a_run_says_of_a_setting_has_the_place_where_it_was_made(file, said, told):
    file("[model]\nname = 'x'\n", "below.toml")
    path = file("extends = 'below.toml'\n\n[model]\nprojection = 7\n")
    settings = load(path, ["model.width=3"])
    with pytest.raises(ConfigError) as caught, located(settings, path, ["model.width=3"]):
        raise ConfigError(said)
    assert str(caught.value).replace(f"{path.parent}/", "") == told


def test_a_row_whose_name_has_a_dot_is_found_where_it_was_made(file):
    made = "kind = 'distillation'\nrows = ['half-0.5']\n[replacing.'half-0.5']\nrate = {}\n"
    path = file(made.format(0.5))
    override = "replacing.'half-0.5'.phase=0.9"
    settings = load(path, [override])
    for overrides, place in (([], "mine.toml:3"), ([override], f"--set {override}")):
        with pytest.raises(ConfigError) as caught, located(settings, path, overrides):
            raise ConfigError('replacing."half-0.5": never reaches 1')
        said = str(caught.value).replace(f"{path.parent}/", "")
        assert said == f'{place}: replacing."half-0.5": never reaches 1'
    with pytest.raises(ConfigError, match=r'mine\.toml:4: replacing\."half-0\.5"\.rate: Input'):
        load(file(made.format(1.5)))


def test_sizes_are_written_out_where_they_are_others_than_the_names(file):
    assert tomllib.loads(dump(Config()))["model"] == {"name": "tdnn-small"}
    path = file("[model]\nname = 'rnnt-tiny'\nencoder_units = 64\nprojection = 0\n")
    settings = load(path, ["model.bypass=false"])
    assert settings.model.sizes == {"encoder_units": 64, "projection": 0, "bypass": False}
    assert load(file(dump(settings), "again.toml")) == settings


def test_k_of_zero_is_refused_where_the_rule_is_made(file):
    table = load(file("[rules.kbest]\nk = 0\n")).rules["kbest"]
    with pytest.raises(RuleError, match=r"rule kbest: k has to be a whole number .* found 0"):
        rules.find("kbest", table)


# What is read.


def test_what_is_wrong_with_the_whole_is_not_blamed_on_an_override(file):
    path = file("kind = 'distillation'\nrows = ['lcrm']")
    assert told(path, "training.epochs=3").startswith("mine.toml:2: settings: rows: expected")
    assert told(path, "rows=['lcrm']").startswith("--set rows=['lcrm']: settings: rows: expected")


def test_overrides_are_toml_or_else_text(file):
    overrides = (
        "corpus.path=/data/TED LIUM",
        "generic.learning_rate=1e-4",
        "federation.alphas=[0, 0.5]",
        "partition.train={ fraction = 0.25 }",
        "rules.kbest.k=3",
        "name=a=b",
        "generic.epochs=7",
        "generic.epochs=8",
    )
    found = load(file("[partition.train]\nseconds = 3.0\n"), overrides)
    assert found.corpus.path == "/data/TED LIUM"
    assert found.generic.learning_rate == 1e-4
    assert found.federation.alphas == (0.0, 0.5)
    assert (found.partition.train.fraction, found.partition.train.seconds) == (0.25, None)
    assert found.rules == {"kbest": {"k": 3}}
    assert found.name == "a=b"
    assert found.generic.epochs == 8


def test_a_file_overlays_what_it_extends(file):
    file("name = 'a'\nseed = 1\n[generic]\nepochs = 11\nbatch_size = 12\n", "a.toml")
    file(
        "extends = 'a.toml'\nname = 'b'\n[generic]\nepochs = 21\n"
        "[partition]\ngeneric = 5\ntrain = { seconds = 9.0 }\n"
        "[federation]\nbases = ['mean', 'random']\n[rules]\nkbest = { k = 5, x = 1 }\n",
        "b.toml",
    )
    found = load(
        file(
            "extends = 'b.toml'\n[generic]\nlearning_rate = 0.5\n"
            "[partition.train]\nfraction = 0.5\n"
            "[federation]\nbases = ['mean']\n[rules.kbest]\nk = 6\n"
        )
    )
    assert (found.name, found.seed) == ("b", 1)
    assert (found.generic.epochs, found.generic.batch_size) == (21, 12)
    assert found.generic.learning_rate == 0.5
    assert found.partition.generic == 5
    assert found.federation.bases == ("mean",)  # lists are replaced, tables are merged
    assert found.rules["kbest"] == {"k": 6, "x": 1}
    # The ways to choose train_s exclude each other, so that the table is replaced.
    assert (found.partition.train.seconds, found.partition.train.fraction) == (None, 0.5)


def test_extends_is_relative_to_the_file(tmp_path, file):
    (tmp_path / "deep").mkdir()
    file("seed = 7\n", "base.toml")
    assert load(file("extends = '../base.toml'\n", "deep/x.toml")).seed == 7


def test_an_empty_list_turns_a_variation_off(file):
    table = "[generic.augmentation]\nspeeds = []\nvolumes = []\nnoise = []\n"
    found = load(file(table)).generic.augmentation
    assert (found.speeds, found.volumes, found.noise) == ((), (), ())


# What is written.


def test_dump_spells_out_every_default():
    table = tomllib.loads(dump(Config()))
    assert table["generic"]["epochs"] == Config().generic.epochs
    assert table["federation"]["alphas"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert set(table) >= {"corpus", "partition", "features", "units", "model", "personal", "engine"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_survive_dump_and_load(file, path):
    found = load(path)
    assert load(file(dump(found))) == found


finite = st.floats(1e-12, 1e12)
table = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1),
        "seed": st.integers(-(2**62), 2**62),
        "corpus": st.fixed_dictionaries({}, optional={"path": st.text(), "channel": st.just(1)}),
        "partition": st.fixed_dictionaries(
            {
                "generic": st.one_of(
                    st.integers(1, 99), st.lists(st.text(), min_size=1), st.text()
                ),
                "train": st.one_of(
                    st.builds(lambda x: {"seconds": x}, finite),
                    st.builds(lambda x: {"fraction": x}, st.floats(0.01, 0.99)),
                    st.just({"field": "a b", "values": [1, "two"]}),
                ),
            }
        ),
        "generic": st.fixed_dictionaries(
            {
                "learning_rate": finite,
                "dropout": st.just([[0.0, 0.1], [0.5, 0.0]]),
                "augmentation": st.fixed_dictionaries(
                    {
                        "volumes": st.sampled_from([[], [0.5, 0.75]]),
                        "noise": st.sampled_from([[], [-5.0, 5.0]]),
                        "speeds": st.sampled_from([[], [0.57], [1.13, 0.5, 2.0]]),
                    }
                ),
            },
            optional={"model": st.text()},
        ),
        "federation": st.fixed_dictionaries(
            {"alphas": st.lists(st.floats(0, 1), min_size=1, unique=True)},
            optional={
                "continue_from": st.just({"base": "mean", "alpha": 0.25}),
                "improve": st.just({"class": "a.b:C", "options": {"mu": 0.5, "names": ["x"]}}),
                "chosen_base": st.just("random"),
            },
        ),
        "rules": st.just({"mine": {"class": "my_package:Mine", "k": 3, "deep": {"er": [1.5]}}}),
    },
)


@given(table)
def test_dump_and_load_give_the_same_settings(tmp_path_factory, table):
    found = Config.model_validate(table)
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(dump(found), encoding="utf-8")
    assert load(path) == found


def test_settings_do_not_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        AugmentationSettings().time_masks = 3


# Runs of diffs have settings of their own.

SHARES = "kind = 'neural-diff'\n[recognition]\n"
DOMAINS = (
    "kind = 'neural-diff'\n[understanding]\nfield = 'intent'\nfirst = 1\n"
    "domains = { a = ['x'], b = ['y', %s] }\n"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind = 'neural-dif'",
            "mine.toml:1: kind: expected one of personalization, neural-diff, distillation, "
            "data-parallel, found 'neural-dif'",
        ),
        (
            f"{SHARES}share = [0.5, 1.0]",
            "mine.toml:3: recognition.share: unknown setting; the nearest known one is shares",
        ),
        (
            f"{SHARES}[generic]\nepochs = 3",
            "mine.toml:3: generic: unknown setting; the nearest known one is engine",
        ),
        (
            f"{SHARES}shares = [0.5, 0.5]",
            "mine.toml:2: recognition: shares: expected two or more, each greater than the one "
            "before",
        ),
        (
            "kind = 'neural-diff'",
            "mine.toml: settings: expected either a section recognition or a section understanding",
        ),
        (
            f"ratios = [1.0]\n{SHARES}",
            "mine.toml:1: ratios.0: Input should be greater than 1, found 1.0",
        ),
        (
            f"seeds = [1, 1]\n{SHARES}",
            "mine.toml:1: seeds: expected at least one, and each once, found [1, 1]",
        ),
        (
            f"{SHARES}[sparse]\nprune = [0.6, 0.2]",
            "mine.toml:3: sparse: prune: expected the beginning before the end",
        ),
        (
            f"{SHARES}[sparse]\ncompressed_prune = [0.5, 2000]",
            "mine.toml:4: sparse.compressed_prune: expected two shares of the updates (from 0 to "
            "1) or the numbers of two (at least 1), found [0.5, 2000]",
        ),
        (
            DOMAINS % "'x'",
            "mine.toml:2: understanding: domains: 'x' comes more than once",
        ),
        (
            f"{SHARES}[test]\nfield = 'part'",
            "mine.toml:3: test: field and values belong together",
        ),
        (
            f"{SHARES}[test]\nspeakers = 2\nfield = 'part'",
            "mine.toml:3: test: expected either speakers, or field and values",
        ),
    ],
)
def test_a_mistake_in_a_run_of_diffs_is_named(file, text, message):
    assert told(file(text)) == message


def test_cells_that_could_never_fit_are_refused_before_anything_runs(file):
    said = told(file(f"values = 'fp32'\n{SHARES}"))
    assert "values: fp32 does not fit" in said
    alone = load(file(f"values = 'fp32'\nmethods = ['sparse']\n{SHARES}"))
    assert alone.values == "fp32"


def test_domains_and_what_tests_replace_those_of_the_file_below(file):
    file((DOMAINS % "'z'") + "[test]\nspeakers = 2\n", "below.toml")
    above = (
        "extends = 'below.toml'\n[understanding.domains]\nc = [1]\nd = [2]\n"
        "[test]\nfield = 'part'\nvalues = ['x']\n"
    )
    settings = load(file(above))
    assert settings.understanding.domains == {"c": (1,), "d": (2,)}
    assert settings.understanding.field == "intent"
    assert (settings.test.speakers, settings.test.values) == (None, ("x",))


def test_a_run_of_diffs_is_the_same_after_it_was_written_out(file):
    settings = load(file(DOMAINS % "'z'"), ["seeds=[4, 5]"])
    assert isinstance(settings, NeuralDiffConfig)
    assert settings.seed == 4 and list(settings.understanding.domains) == ["a", "b"]
    assert load(file(dump(settings), "again.toml")) == settings


# So have distillations.

DISTILL = "kind = 'distillation'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{DISTILL}rows = ['teacher', 'lcrm']",
            "mine.toml:2: settings: rows: expected some of teacher, student, kd, lcmr, found "
            "'lcrm'",
        ),
        (
            f"{DISTILL}rows = ['kd', 'kd']",
            "mine.toml:2: rows: expected at least one, and each once, found ['kd', 'kd']",
        ),
        (
            f"{DISTILL}rows = ['kd']\n[replacing.kd]",
            "mine.toml:3: settings: replacing: teacher, student and kd are rows already",
        ),
        (
            f"{DISTILL}[replacing.lcmr]\nrate = 1.5",
            "mine.toml:3: replacing.lcmr.rate: Input should be less than or equal to 1, found 1.5",
        ),
        (
            f"{DISTILL}[replacing.lcmr]\nrate = 0.0",
            "mine.toml:3: replacing.lcmr.rate: Input should be greater than 0, found 0.0",
        ),
        (
            f"{DISTILL}[replacing.lcmr]\nphase = 1.0\nschedule = 'linear'",
            "mine.toml:2: replacing.lcmr: phase = 1: a linear schedule from 0.5 never reaches 1, "
            "so the student would never work alone; expected less",
        ),
        (
            f"{DISTILL}[modules]\nencoder = {{ teacher = [1, 2], student = [1] }}",
            "mine.toml:3: modules.encoder: expected as many modules in both models, found 2 in the "
            "teacher [1, 2] and 1 in the student [1]",
        ),
        (
            f"{DISTILL}[training]\noptimiser = 'lamb'",
            "mine.toml:3: training.optimiser: unknown setting; the nearest known one is optimizer",
        ),
    ],
)
def test_a_mistake_in_a_distillation_is_named(file, text, message):
    assert told(file(text)) == message


def test_a_distillation_is_the_same_after_it_was_written_out(file):
    settings = load(file(f"{DISTILL}[replacing.mine]\nrate = 0.25"), ["rows=['mine']", "seeds=[7]"])
    assert isinstance(settings, DistillationConfig)
    assert settings.seed == 7 and settings.replacing["mine"].rate == 0.25
    assert load(file(dump(settings), "again.toml")) == settings


def test_a_name_with_dots_is_set_in_quotes(file):
    """Mistakes in it are found as well, where the file or the command makes them."""
    text = f"{DISTILL}rows = ['p-0.5']\n[replacing.'p-0.5']\nrate = 0.5\n"
    settings = load(file(text), ['replacing."p-0.5".rate=0.75'])
    assert isinstance(settings, DistillationConfig)
    assert list(settings.replacing) == ["p-0.5"] and settings.replacing["p-0.5"].rate == 0.75
    wrong = 'replacing."p-0.5".rate=1.5'
    limit = 'replacing."p-0.5".rate: Input should be less than or equal to 1, found 1.5'
    assert told(file(text), wrong) == f"--set {wrong}: {limit}"
    assert told(file(text.replace("rate = 0.5", "rate = 1.5"))) == f"mine.toml:4: {limit}"


PARALLEL = "kind = 'data-parallel'\n[parallel]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hook = 'fp16'\nmethod = 'ring'",
            "mine.toml:2: parallel: hook: is for allreduce, found method 'ring'",
        ),
        (
            "slowed = [1.0, 1e12]",
            "mine.toml:3: parallel.slowed.1: Input should be less than or equal to 10000, "
            "found 1000000000000.0",
        ),
        (
            "slowed = [1.0, 2.0, 10.0]",
            "mine.toml:2: parallel: slowed: expected one factor for each of 2 learners, found 3",
        ),
        (
            "method = 'parameter-server'\nlearners = 4\nstaleness = 1",
            "mine.toml:2: parallel: staleness: with 4 learners at least 3, which is what they have "
            "if they take turns, found 1",
        ),
        (
            "method = 'hierarchical'\nlearners = 3",
            "mine.toml:2: parallel: node_size: 3 learners make no whole nodes of 2",
        ),
        (
            "learners = 20000",
            "mine.toml:3: parallel.learners: Input should be less than or equal to 10000, found "
            "20000",
        ),
        (
            "form_seconds = 1e14",
            "mine.toml:3: parallel.form_seconds: Input should be less than or equal to 10000000, "
            "found 100000000000000.0",
        ),
        (
            "method = 'ring'\nblock_momentum = 0.5",
            "mine.toml:4: settings: parallel.block_momentum: is for bmuf, found method 'ring'",
        ),
        (
            "block = 4",
            "mine.toml:3: settings: parallel.block: is for bmuf, found method 'allreduce'",
        ),
        (
            "method = 'bmuf'\nnode_size = 4",
            "mine.toml:4: settings: parallel.node_size: is for hierarchical, found method 'bmuf'",
        ),
    ],
)
def test_learners_that_do_not_fit_together_are_told(file, text, message):
    assert told(file(PARALLEL + text)) == message


def test_what_is_said_of_nodes_and_blocks_is_for_the_rows_of_a_comparison(file):
    """Whatever the method is. Where the comparison is left out, as `fedspeech train` does, those of
    another method are as usual, so that the settings in force can be read again."""
    text = PARALLEL + "node_size = 4\nblock = 4\nblock_momentum = 0.5\n[comparison]\n"
    path = file(text + "learners = [1, 4]\n")
    assert load(path).parallel.node_size == load(path).parallel.block == 4
    alone = load(path, ["parallel.method=bmuf"], without=["comparison"])
    assert (alone.parallel.node_size, alone.parallel.block) == (2, 4)
    assert alone.parallel.block_momentum == 0.5
    assert load(file(dump(alone))) == alone
    with pytest.raises(ConfigError, match=r"parallel\.node_size: is for hierarchical"):
        load(file(text.partition("[comparison]")[0]), without=["comparison"])


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        (
            "run",
            "parallel.method=ad-psgd",
            "--set parallel.method=ad-psgd: parallel.method: is for `fedspeech train`; "
            "`fedspeech run` compares what [comparison] says",
        ),
        (
            "run",
            "parallel.learners=4",
            "--set parallel.learners=4: parallel.learners: is for `fedspeech train`; "
            "`fedspeech run` compares what [comparison] says",
        ),
        (
            "train",
            "parallel.block=4",
            "--set parallel.block=4: parallel.block: is for bmuf, found method 'allreduce'",
        ),
        (
            "train",
            "comparison.learner=[1]",
            "--set comparison.learner=[1]: comparison.learner: is for `fedspeech run`; "
            "`fedspeech train` compares nothing",
        ),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(file, command, override, message):
    path = file(PARALLEL + "[comparison]\n")
    done = CliRunner().invoke(app, [command, str(path), "--set", override])
    assert isinstance(done.exception, ConfigError) and str(done.exception) == message


@pytest.mark.parametrize("key", ["node_size", "block", "block_momentum", "form_seconds"])
def test_what_holds_for_rows_may_be_set_for_them(file, key):
    compared = load(file(PARALLEL + "[comparison]\n"))
    assert compared.in_vain({f"parallel.{key}", "training.epochs"}) is None
