"""Who trains the generic model, who is a client, and what of a client's speech trains and tests."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut

from fedspeech import seeding
from fedspeech.config.corpus import HeldOut, PartitionSettings, TrainPart
from fedspeech.corpus.cuts import speaker_of
from fedspeech.errors import ConfigError, CorpusError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Client:
    """One speaker's speech: `train` is train_s, `test` is test_s."""

    speaker: str
    train: tuple[MonoCut, ...]
    test: tuple[MonoCut, ...]


@dataclass(frozen=True)
class Partition:
    """Disjoint by speaker: no client's speech is in `generic` or `development`."""

    generic: CutSet
    development: CutSet
    clients: tuple[Client, ...]
    left_out: Mapping[str, str]
    """Clients that cannot take part, and why."""


def public(corpus: CutSet, settings: PartitionSettings) -> Partition:
    """The generic part and its development speakers, where the clients' speech is on their boxes.

    Raises as `partition` does.
    """
    speech = by_speaker(corpus)
    generic, development = _generic(speech, settings)
    return Partition(_cuts(generic, speech), _cuts(development, speech), (), {})


def partition(corpus: CutSet, settings: PartitionSettings) -> Partition:
    """Cut a corpus into the generic part, its development speakers and the clients.

    A speaker that only a list file names is left out with a warning. Raises ConfigError where a
    speaker is named twice or is not in the corpus, CorpusError where a part has no speech.
    """
    speech = by_speaker(corpus)
    training, development = _generic(speech, settings)
    generic = [*training, *development]
    rest = sorted(set(speech) - set(generic))
    named = isinstance(settings.clients, (tuple, str)) and settings.clients != "rest"
    pool = sorted(speech) if named else rest
    chosen = _choose("partition.clients", settings.clients, pool, last=False)
    if not chosen:
        raise ConfigError("partition.clients: no speaker is left beside partition.generic")
    if both := sorted(set(generic) & set(chosen)):
        raise ConfigError(f"speaker {both[0]} is in partition.generic and in partition.clients")
    clients = [client(speaker, speech[speaker], settings.train) for speaker in chosen]
    left_out = {c.speaker: why for c in clients if (why := too_little(c, settings))}
    kept = tuple(c for c in clients if c.speaker not in left_out)
    if not kept:
        speaker, why = min(left_out.items())
        raise CorpusError(f"none of {len(left_out)} clients has enough speech; {speaker}: {why}")
    return Partition(_cuts(training, speech), _cuts(development, speech), kept, left_out)


def _generic(
    speech: Mapping[str, Sequence[MonoCut]], settings: PartitionSettings
) -> tuple[list[str], list[str]]:
    """The speakers that train G, and those that judge it while it trains."""
    generic = _choose("partition.generic", settings.generic, sorted(speech), last=False)
    development = _choose("partition.development", settings.development, generic, last=True)
    training = [speaker for speaker in generic if speaker not in set(development)]
    if not training:
        raise ConfigError("partition: all generic speakers are development speakers")
    return training, development


def train_and_test(
    corpus: Iterable[MonoCut], settings: HeldOut
) -> tuple[list[MonoCut], list[MonoCut]]:
    """What trains and what tests, by speaker, each in the corpus's order; nobody is in both.

    Raises ConfigError where a speaker is named twice or is not in the corpus or no utterance has a
    value that was asked for, CorpusError where a part has no speech, a speaker is in both, or an
    utterance lacks the field that decides.
    """
    speech = by_speaker(corpus)
    every = [cut for cuts in speech.values() for cut in cuts]
    if settings.speakers is not None:
        chosen = set(_choose("test.speakers", settings.speakers, sorted(speech), last=True))
        tests = [speaker_of(cut) in chosen for cut in every]
    else:
        tests = _with_values(every, settings.field or "", settings.values)
    train = [cut for cut, test in zip(every, tests, strict=True) if not test]
    test = [cut for cut, test in zip(every, tests, strict=True) if test]
    if both := sorted({speaker_of(cut) for cut in train} & {speaker_of(cut) for cut in test}):
        raise CorpusError(f"test: speaker {both[0]} has speech that trains and speech that tests")
    if not train or not test:
        raise CorpusError(f"test: {len(train)} utterances train and {len(test)} test")
    return train, test


def _with_values(cuts: Sequence[MonoCut], field: str, values: Sequence[Any]) -> list[bool]:
    """Which utterances have one of the values there."""
    found = [field_of(cut, field, "test.field") for cut in cuts]
    if missing := [value for value in values if value not in found]:
        there = ", ".join(sorted({repr(value) for value in found}))
        raise ConfigError(
            f"test.values: no utterance has {field} = {missing[0]!r}; there are {there}"
        )
    return [value in values for value in found]


def by_speaker(corpus: Iterable[MonoCut]) -> dict[str, list[MonoCut]]:
    """The cuts of each speaker, in the corpus's order."""
    speech: dict[str, list[MonoCut]] = {}
    for cut in corpus:
        speech.setdefault(speaker_of(cut), []).append(cut)
    return speech


def field_of(cut: MonoCut, name: str, setting: str) -> Any:
    """What the manifest says of an utterance under this name. Raises CorpusError where nothing."""
    known = cut.supervisions[0].custom or {}
    if name not in known:
        raise CorpusError(
            f"{setting}: utterance {cut.id} has no field {name!r}, "
            f"it has {', '.join(known) or 'none'}"
        )
    return known[name]


def client(speaker: str, cuts: Sequence[MonoCut], part: TrainPart) -> Client:
    """One speaker's speech, cut into train_s and test_s.

    Raises CorpusError where an utterance lacks the field that decides.
    """
    train = _train_part(cuts, part)
    taken = {cut.id for cut in train}
    return Client(speaker, tuple(train), tuple(cut for cut in cuts if cut.id not in taken))


def pseudonym(seed: int, speaker: str) -> str:
    """The name under which the server knows a speaker.

    It follows from seed and name, for repeatability; whoever knows the seed can try out names.
    """
    return f"s{seeding.key(seed, 0, speaker, 'pseudonym'):016x}"


def _train_part(cuts: Sequence[MonoCut], part: TrainPart) -> list[MonoCut]:
    if part.fraction is not None:
        return list(cuts[: round(part.fraction * len(cuts))])
    if part.field is not None:
        return [
            cut for cut in cuts if field_of(cut, part.field, "partition.train.field") in part.values
        ]
    seconds = 0.0
    train = []
    for cut in cuts:
        seconds += cut.duration
        if seconds > (part.seconds or 0.0) + 1e-6:
            break
        train.append(cut)
    return train


def too_little(client: Client, settings: PartitionSettings) -> str | None:
    """What a client lacks to take part, or None."""
    seconds = sum(cut.duration for cut in client.train)
    if seconds < settings.least_seconds or len(client.train) < 2:
        return (
            f"train_s has {seconds:.1f} s in {len(client.train)} utterances, "
            f"expected at least {settings.least_seconds:g} s in 2"
        )
    return None if client.test else "test_s has no utterance"


def _choose(
    setting: str, wanted: int | tuple[str, ...] | str, pool: Sequence[str], last: bool
) -> list[str]:
    if wanted == "rest":
        return list(pool)
    if isinstance(wanted, int):
        if wanted > len(pool):
            raise ConfigError(f"{setting}: {wanted} speakers, but there are only {len(pool)} left")
        return list(pool[-wanted:] if last else pool[:wanted])
    ids = list(wanted) if isinstance(wanted, tuple) else _listed(setting, Path(wanted), set(pool))
    for speaker, times in Counter(ids).items():
        if speaker not in pool:
            raise ConfigError(f"{setting}: no speech of speaker {speaker!r} to choose from")
        if times > 1:
            raise ConfigError(f"{setting}: speaker {speaker} is named twice")
    return sorted(ids)


def _listed(setting: str, path: Path, pool: Set[str]) -> list[str]:
    """What a list names of the pool. The rest is warned of: a copy of a corpus may lack some."""
    try:
        ids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: cannot read the list of speakers {path}: {error}") from None
    missing = [speaker for speaker in ids if speaker not in pool]
    first = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    found = (
        f"{setting}: {len(missing)} of the {len(ids)} speakers in {path} have no speech ({first})"
    )
    if len(missing) == len(ids):
        raise ConfigError(found if ids else f"{setting}: {path} names no speaker")
    if missing:
        LOG.warning("%s", found)
    return [speaker for speaker in ids if speaker in pool]


def _cuts(speakers: Sequence[str], speech: Mapping[str, Sequence[MonoCut]]) -> CutSet:
    return CutSet.from_cuts([cut for speaker in speakers for cut in speech[speaker]])
