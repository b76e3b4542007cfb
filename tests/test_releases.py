"""Lines of models: what is kept of them, and the cheapest way from one to the last."""

import json

import pytest
import torch
from small_models import generations

from fedspeech import tensors
from fedspeech.diff.apply import apply, apply_all
from fedspeech.diff.budget import exact, make
from fedspeech.errors import DiffError, ModelError
from fedspeech.releases import Releases
from fedspeech.tensors import sha256, size


def drawn(seed: int, like=None, share=1.0):
    """A model of 2,000 values, or one in which a share of another's values has moved a little."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(40, 50, generator=draw)
    if like is None:
        return {"w": noise}
    moved = torch.rand(40, 50, generator=draw) < share
    return {"w": like["w"] + 0.01 * noise * moved}


@pytest.fixture
def line(tmp_path):
    """Four generations, and the line that holds them; the first model lies outside of it."""
    models = [drawn(0)]
    tensors.write(tmp_path / "g.safetensors", models[0])
    line = Releases(tmp_path / "line")
    line.begin(tmp_path / "g.safetensors")
    for seed in (1, 2, 3):
        made = make(models[-1], drawn(seed, models[-1]), budget=900)
        line.add(sha256(models[-1]), sha256(made.result), made.data)
        models.append(made.result)
    return line, models


def test_every_generation_comes_back_to_the_bit(line):
    line, models = line
    assert line.names == tuple(sha256(model) for model in models)
    for model in models:
        assert sha256(Releases(line.folder).model(sha256(model))) == sha256(model)


def test_what_is_delivered_leads_to_the_last_and_is_the_smallest_that_does(line):
    line, models = line
    last = models[-1]
    for place, held in enumerate(models):
        diffs = line.deliver(sha256(held), None, line.names[-1])
        chain = [len((line.folder / f"{i:04}.diff").read_bytes()) for i in range(place + 1, 4)]
        direct = len(exact(held, last)) if place < 3 else 0
        sizes = sum(map(len, diffs))
        assert sizes == (min(sum(chain), direct) if place < 2 else sum(chain))
        if diffs:
            found = apply_all({sha256(held): held}.get, diffs)
            assert sha256(found) == sha256(last)


def test_one_direct_diff_is_taken_where_it_is_smaller(tmp_path):
    """The same few values move again and again: the chain says each of them four times."""
    model = drawn(0)
    tensors.write(tmp_path / "g.safetensors", model)
    line = Releases(tmp_path / "line")
    first = line.begin(tmp_path / "g.safetensors")
    for seed in range(1, 5):
        after = {"w": model["w"].clone()}
        after["w"][0] += 0.01 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        data = exact(model, after)
        line.add(sha256(model), sha256(after), data)
        model = after
    chain = sum(len((line.folder / f"{i:04}.diff").read_bytes()) for i in range(1, 5))
    (direct,) = line.deliver(first, None, line.names[-1])
    assert len(direct) < chain / 2
    assert sha256(apply(drawn(0), direct)) == sha256(model)


def test_who_holds_something_else_gets_the_whole_if_its_budget_allows(line):
    line, models = line
    full, last = size(models[-1]), line.names[-1]
    assert line.deliver("", None, last) is None
    assert line.deliver("ab" * 32, full, last) is None
    with pytest.raises(DiffError) as caught:
        line.deliver("ab" * 32, full - 1, last)
    assert str(caught.value) == (
        f"it holds abababababab; what leads from there to {line.names[-1][:12]} has {full} bytes, "
        f"and its budget is {full - 1} bytes"
    )
    with pytest.raises(DiffError, match="it holds no generation; what leads"):
        line.deliver("", 10, last)


def test_all_that_is_delivered_is_within_the_budget(line):
    line, models = line
    last = line.names[-1]
    each = [len((line.folder / f"{i:04}.diff").read_bytes()) for i in (1, 2, 3)]
    direct = len(exact(models[0], models[-1]))
    assert direct > sum(each) > max(each)
    diffs = line.deliver(line.names[0], sum(each), last)
    assert [len(data) for data in diffs] == each
    told = f"has {sum(each)} bytes, and its budget is {sum(each) - 1} bytes"
    with pytest.raises(DiffError, match=told):
        line.deliver(line.names[0], sum(each) - 1, last)


def test_the_size_of_a_release_is_that_of_its_diff(line):
    line, _models = line
    sizes = [(line.folder / f"{place:04}.diff").stat().st_size for place in (1, 2, 3)]
    assert [line.size(name) for name in line.names] == [0, *sizes]


def test_a_diff_that_took_anothers_place_is_told(line):
    line, models = line
    other = make(models[0], drawn(9, models[0]), budget=900)
    (line.folder / "0001.diff").write_bytes(other.data)
    found, said = sha256(other.result)[:12], line.names[1][:12]
    told = rf"0001\.diff: gives the model {found}, and line\.json says {said}"
    with pytest.raises(ModelError, match=told):
        line.model(line.names[1])


def test_a_release_after_an_earlier_one_takes_the_place_of_what_followed(line):
    line, models = line
    other = make(models[1], drawn(9, models[1]), budget=900)
    line.add(line.names[1], sha256(other.result), other.data, of="cd" * 32)
    assert line.names == (*map(sha256, models[:2]), sha256(other.result))
    assert line.made_of("cd" * 32) == sha256(other.result)
    assert line.made_of(sha256(models[0])) == sha256(models[0])
    assert line.made_of(sha256(models[3])) is None
    assert sha256(line.model(line.names[-1])) == sha256(other.result)
    with pytest.raises(ModelError, match="no release cdcdcdcd"):
        line.add("cd" * 32, "ef" * 32, other.data)


def test_damage_is_told(line):
    line, models = line
    with pytest.raises(ModelError, match="no release cdcdcdcd"):
        line.model("cd" * 32)
    tensors.write(line.folder.parent / "g.safetensors", drawn(8))
    with pytest.raises(ModelError, match=r"g\.safetensors: damaged: its hash differs"):
        line.model(line.names[2])
    tensors.write(line.folder.parent / "g.safetensors", models[0])
    (line.folder / "0001.diff").unlink()
    with pytest.raises(ModelError, match="a release is missing"):
        Releases(line.folder).deliver(line.names[0], None, line.names[-1])
    (line.folder / "line.json").write_text("[{")
    with pytest.raises(ModelError, match=r"line\.json: not readable"):
        line.names  # noqa: B018
    for other in ("[{}]", '["x"]', '{"a": 1}', '[{"model": "a"}]', '[{"model": "a", "file": 1}]'):
        (line.folder / "line.json").write_text(other)
        with pytest.raises(ModelError, match=r"line\.json: damaged: expected a list of releases"):
            line.names  # noqa: B018


def test_line_json_can_be_read_without_us(line):
    line, models = line
    said = json.loads((line.folder / "line.json").read_text())
    assert said[0] == {"model": sha256(models[0]), "file": "../g.safetensors"}
    assert said[1] == {"model": sha256(models[1]), "file": "0001.diff", "of": ""}


def test_exact_diffs_lose_nothing_where_addition_would():
    """1 + (1e-9 - 1) is 0 in float32: such a tensor starts from zero."""
    old = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    new = {"a": torch.tensor([1e-9, 2.0]), "b": torch.tensor([1.0, 2.5, 3.0])}
    assert not torch.equal(make(old, new).result["a"], new["a"])
    assert sha256(apply(old, exact(old, new))) == sha256(new)
    old, new = generations()
    assert sha256(apply(old, exact(old, new))) == sha256(new)
    assert exact({"a": torch.ones(2)}, {"a": torch.tensor([-0.0, 1.0])}) is None


def test_a_run_that_goes_on_with_an_earlier_release_is_delivered_that_one(line):
    line, models = line
    to = line.names[1]
    for held in (0, 2, 3):
        diffs = line.deliver(line.names[held], None, to)
        found = apply_all({line.names[held]: models[held]}.get, diffs)
        assert sha256(found) == to
