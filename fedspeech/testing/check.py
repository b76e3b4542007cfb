"""What every aggregation rule promises, as one test."""

from collections.abc import Mapping
from typing import Any

from fedspeech.aggregation import AggregationRule
from fedspeech.errors import FedSpeechError
from fedspeech.tensors import Tensors, check_like, sha256
from fedspeech.testing.federation import DummyFederation, collect

SIZES = (2, 3, 8)
"""With how many speakers a rule is tried."""

Outcome = tuple[dict[str, dict[str, float]], dict[str, str]]
"""For each speaker the weights, and the SHA-256 of M_s."""


def check_rule(rule: type[AggregationRule], **settings: Any) -> None:
    """Hold what every rule promises, for a rule made with these settings.

    Among 2, 3 and 8 dummy speakers: the weights are valid and not more than `largest_group`; M_s
    and its mix with P_s are finite and have the model's names, shapes and dtypes; asking again or
    in another order changes no byte; no model is changed, and none is read whole into memory.
    Raises AssertionError that says which promise is broken.
    """
    for size in SIZES:
        try:
            _check_among(size, rule, settings)
        except Exception as error:  # whatever somebody else's rule raises is a broken promise
            kind = "" if isinstance(error, FedSpeechError) else f"{type(error).__name__}: "
            told = error if isinstance(error, AssertionError) else f"{kind}{error}"
            raise AssertionError(f"{rule.__name__} among {size} speakers: {told}") from error


def _check_among(size: int, rule: type[AggregationRule], settings: Mapping[str, Any]) -> None:
    assert issubclass(rule, AggregationRule), "it does not derive from AggregationRule"
    federation = DummyFederation(size)
    before = federation.fingerprint()
    made = rule(**settings)
    first = _outcome(made, federation, federation.peers(made))
    after = federation.fingerprint()
    changed = [what for what in before if before[what] != after[what]]
    assert not changed, f"it changes what it reads: {', '.join(changed)}"
    again = _outcome(made, federation, federation.peers(made))
    _assert_equal(first, again, "when it is asked a second time")
    fresh = rule(**settings)
    federation.backwards = True
    alone = {s: federation.peers(fresh, [s])[s] for s in reversed(federation.speakers)}
    backwards = _outcome(fresh, federation, alone)
    _assert_equal(first, backwards, "when speakers are asked and answer in another order")


def _outcome(
    rule: AggregationRule, federation: DummyFederation, answers: dict[str, dict[str, float]]
) -> Outcome:
    """The weights and the SHA-256 of M_s for each speaker, all checked."""
    most = rule.largest_group() or len(federation.speakers)
    hashes = {}
    for speaker, weights in answers.items():
        assert len(weights) <= most, (
            f"it gave {speaker} {len(weights)} peers, but its largest group is {most}"
        )
        base = _lazily(rule, federation, speaker, weights)
        _assert_model(base, federation.generic, f"M_s of {speaker}")
        for alpha in (0, 0.5, 1):
            mixed = collect(rule.mix(federation.personal[speaker].items(), base.items(), alpha))
            _assert_model(mixed, federation.generic, f"alpha = {alpha}: the mix of {speaker}")
        hashes[speaker] = sha256(base)
    return answers, hashes


def _lazily(
    rule: AggregationRule, federation: DummyFederation, speaker: str, weights: Mapping[str, float]
) -> Tensors:
    """M_s, collected while watching what the rule holds of the models that it reads."""
    federation.readings.clear()
    model = len(federation.generic)
    base: Tensors = {}
    for name, tensor in rule.combine(speaker, federation.view(speaker, weights)):
        assert name not in base, f"M_s of {speaker} has tensor {name} twice"
        readings = federation.readings
        eager = not base and readings and all(reading.read == model for reading in readings)
        assert not eager, f"it read every model to its end before it gave the first tensor: {name}"
        base[name] = tensor.clone()
    for reading in federation.readings:
        # Two are alive when the next tensor is read before the last is dropped; half is generous.
        assert reading.most <= model // 2, (
            f"it had {reading.most} of {model} tensors of {reading.what} in memory at once; "
            "expected one at a time"
        )
    return base


def _assert_model(tensors: Tensors, model: Tensors, what: str) -> None:
    try:
        check_like(tensors, model)
    except FedSpeechError as error:
        raise AssertionError(f"{what}: {error}") from error
    assert list(tensors) == sorted(tensors), f"{what}: tensors are not in the order of names"
    for name, tensor in tensors.items():
        assert tensor.dtype == model[name].dtype, (
            f"{what}: tensor {name} is {tensor.dtype}, the model has {model[name].dtype}"
        )


def _assert_equal(first: Outcome, second: Outcome, when: str) -> None:
    for speaker in sorted(first[0]):
        peers, others = first[0][speaker], second[0][speaker]
        assert peers == others, f"the peers of {speaker} differ {when}: {peers} and {others}"
        assert first[1][speaker] == second[1][speaker], f"M_s of {speaker} differs {when}"
