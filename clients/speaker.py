"""What one speaker's device does with its speech and its models; nothing here speaks Flower."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, MonoCut

from fedspeech import evaluation, features, machine, tensors
from fedspeech.config.model import AugmentationSettings
from fedspeech.config.training import PersonalSettings
from fedspeech.corpus.cuts import text_of
from fedspeech.device import voice
from fedspeech.device.personal import install as install_recognizer
from fedspeech.device.store import (
    BASE,
    DESCRIPTION,
    DIFFERENCE,
    GENERIC,
    MODELS,
    VALIDATION,
    Store,
)
from fedspeech.diff.budget import make
from fedspeech.diff.methods import METHODS
from fedspeech.errors import BudgetError, CorpusError, DiffError, LacksError, ModelError
from fedspeech.evaluation import Counts
from fedspeech.features import Normalization, Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import Tensors, add, check_like, interpolate, sha256, subtract
from fedspeech.training.personal import FineTuned, Tuning, fine_tune, validation_split

TRAIN, TEST = "train", "test"
ASIDE = 0.05
"""Of what memory is free, more than that is not held for later."""


class Speaker:
    """A device folder: `device.json`, `train.jsonl`, `test.jsonl`, features and models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = self._read_about()
        self.name = str(about["speaker"])
        self._budgets = about.get("budgets", {})
        pool = about.get("pool")
        self.store = Store(folder / MODELS, folder / pool if pool else None)

    def _read_about(self) -> dict[str, Any]:
        path = self.folder / "device.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}: no speaker's speech here: {error}") from None

    def describe(self) -> dict[str, Any]:
        """Pseudonym, how much speech trains, the hash of the generation held, and own budgets."""
        train = self._cuts[TRAIN]
        return {
            "speaker": self.name,
            "seconds": round(sum(cut.duration for cut in train), 3),
            "utterances": len(train),
            "generation": self.store.hash(GENERIC) or "",
            "budgets": self._budgets,
        }

    def receive_generic(self, description: Mapping[str, Any], model: Tensors) -> None:
        """Take over G, and with it what it needs to be used."""
        self.store.put(GENERIC, model, **{DESCRIPTION: dict(description)})

    def check_generic(self, generation: str) -> None:
        """Raise LacksError unless the G that is held is this one."""
        if self.store.hash(GENERIC) != generation:
            raise LacksError(
                f"expected generation {generation[:12]}, "
                f"this device holds {str(self.store.hash(GENERIC))[:12]}"
            )

    def held(self, name: str) -> Tensors:
        """G or the M_s that is installed, by its hash. Raises LacksError where it is neither."""
        for role in (GENERIC, BASE):
            if self.store.hash(role) == name:
                return self.store.get(role)
        raise LacksError(f"expected to hold {name[:12]}, this device does not")

    def describe_model(self, description: Mapping[str, Any]) -> None:
        """Note architecture, features and vocabulary of the G that is held, unless they are."""
        if self.store.state().get(DESCRIPTION) != dict(description):
            self.store.note(**{DESCRIPTION: dict(description)})

    def personalize(self, asked: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """Fine-tune P_s; its difference from G, and how it went.

        `asked` says seed, round (and the one that it began in, if that is another), settings, and
        start: from G (None), or from alpha * P_s + (1 - alpha) * M_s. What was finished already is
        not trained again. P_s is always G + difference, here as on the server, to the bit.
        """
        if not self.has_finished(asked):
            settings = PersonalSettings.model_validate(asked["settings"])
            tuned = (
                fine_tune(each.start, self.description, settings, each.utterances, each.name)
                for each in self.tunings(asked)
            )
            judge = self._aside(next(tuned))
            self.keep_tuned(asked, judge, next(tuned))
        self._normalization()
        return self.store.get(DIFFERENCE), self.store.state()["answered"]

    def _aside(self, judge: FineTuned) -> FineTuned:
        """The same in a file, where its model takes memory that P_s wants: both are kept at once,
        when P_s is there."""
        size = sum(tensor.nbytes for tensor in judge.model.values())
        if size < ASIDE * machine.memory_free_bytes():
            return judge
        file = self.folder / f"{VALIDATION}.aside"
        for left in self.folder.glob(f".{file.name}.*.part"):  # of a process that was killed
            left.unlink()
        tensors.write(file, judge.model)
        found = tensors.read(file)  # mapped, and there as long as somebody has it
        file.unlink()
        return replace(judge, model=found)

    def _normalization(self) -> Normalization | None:
        """How the owner sounds, kept for `transcribe`: recordings need not be there for ever."""
        return voice.of_owner(self.folder, self.description.features)

    def has_finished(self, asked: Mapping[str, Any]) -> bool:
        """Whether this very fine-tuning on this very speech is done, and what came of it is here
        undamaged."""
        state = self.store.state()
        same = _tuned(state.get("asked", {})) == _tuned(asked)
        finished = same and state.get("heard") == self._heard
        return finished and self.store.holds(DIFFERENCE) and self.store.holds(VALIDATION)

    @cached_property
    def _heard(self) -> str:
        """Which utterances train_s has: an owner goes on recording from run to run."""
        return tensors.sha256_of_file(self.folder / f"{TRAIN}.jsonl")

    def tunings(self, asked: Mapping[str, Any]) -> tuple[Tuning, Tuning]:
        """What is to be fine-tuned: what will judge alpha, on part of train_s, and P_s on all.

        In later rounds either goes on from what it was itself: the judge has never learned the last
        part of train_s, except from an M_s that the server has mixed with P_s.
        """
        settings = PersonalSettings.model_validate(asked["settings"])
        utterances = self.utterances(TRAIN, settings.augmentation)
        first, _ = validation_split(utterances)
        name = (asked["seed"], asked.get("began", asked["round"]), self.name)
        judge, begin = self._starts(asked["start"])
        return (
            Tuning(judge, first, (*name, "validate")),
            Tuning(begin, utterances, (*name, "personalize")),
        )

    def _starts(self, start: Mapping[str, Any] | None) -> tuple[Tensors, Tensors]:
        if start is None:
            generic = self.store.get(GENERIC)
            return generic, generic
        base, alpha = self._installed(start["installed"]), start["alpha"]
        return (
            mixed(self.store.get(VALIDATION), base, alpha),
            mixed(self.personal(), base, alpha),
        )

    def keep_tuned(self, asked: Mapping[str, Any], judge: FineTuned, tuned: FineTuned) -> None:
        """Keep what came of `tunings`."""
        self.store.put_together(
            {VALIDATION: judge.model, DIFFERENCE: self.difference(tuned.model)},
            asked=dict(asked),
            heard=self._heard,
            answered={"losses": tuned.losses, "skipped": tuned.skipped},
        )

    def difference(self, model: Tensors) -> Tensors:
        """What has to be added to G to get a model."""
        return dict(subtract(sorted(model.items()), self.store.get(GENERIC)))

    def personal_diff(self, budget: int, method: str) -> tuple[bytes, str]:
        """P_s as the diff from G that fits the budget and loses least, and the hash of P_s.

        Raises BudgetError where nothing fits.
        """
        generic, personal = self.store.get(GENERIC), self.personal()
        try:
            made = make(generic, personal, budget, METHODS[method](sha256(generic)))
        except DiffError as error:
            raise BudgetError(f"P_s: {error}") from None
        return made.data, sha256(personal)

    def _installed(self, expected: str) -> Tensors:
        if (held := self.store.hash(BASE)) != expected:
            raise LacksError(f"expected M_s {expected[:12]}, this device holds {str(held)[:12]}")
        return self.store.get(BASE)

    def personal(self) -> Tensors:
        """P_s. Raises ModelError where this device has not fine-tuned yet."""
        return dict(add(self.store.get(GENERIC).items(), self.store.get(DIFFERENCE)))

    def personal_hash(self) -> str:
        """The hash of the P_s that is here, undamaged; empty where none is."""
        there = self.store.holds(GENERIC) and self.store.holds(DIFFERENCE)
        return sha256(self.personal()) if there else ""

    def install(self, model: Tensors | None) -> str:
        """Keep M_s (None: G, which is held); its hash. Raises ModelError where it does not fit."""
        return self.store.put(BASE, self._fitting(model))

    def has(self, role: str, expected: str) -> bool:
        """Whether the model with this hash is here in its role, undamaged."""
        return self.store.hash(role) == expected and self.store.holds(role)

    def base_model(self, expected: str, model: Tensors | None) -> Tensors:
        """M_s as it was sent (None: G, which is held), without keeping it.

        Raises ModelError where it does not fit G or has another hash than expected.
        """
        base = self._fitting(model)
        if (found := sha256(base)) != expected:
            raise ModelError(f"expected M_s {expected[:12]}, found {found[:12]}")
        return base

    def _fitting(self, model: Tensors | None) -> Tensors:
        generic = self.store.get(GENERIC)
        if model is not None:
            check_like(model, generic)
        return generic if model is None else model

    def judge(
        self, candidates: Iterable[Tensors], part: str, chosen: Sequence[int] | None = None
    ) -> list[Counts]:
        """Word errors of G + each difference on train_s, or on the utterances with chosen indices.

        Raises ModelError where a difference does not fit G, or another part is asked for.
        """
        if part != TRAIN:
            raise ModelError(f"candidates are judged on {TRAIN}_s only, not on {part!r}")
        generic, utterances = self.store.get(GENERIC), self.utterances(part)
        if chosen is not None:
            utterances = [utterances[i] for i in chosen]
        return self._errors((_candidate(generic, each) for each in candidates), utterances)

    def words(self, part: str) -> np.ndarray:
        """Words of reference of each utterance of train_s or test_s, int64 (utterances,)."""
        return np.array([len(text_of(cut).split()) for cut in self._cuts[part]], dtype=np.int64)

    def test_errors(self, base: Tensors, alphas: Sequence[float], expected: str) -> list[Counts]:
        """Word errors of alpha * P_s + (1 - alpha) * M_s on test_s, for each alpha.

        Raises ModelError unless P_s is the model with the expected hash.
        """
        utterances, personal = self.utterances(TEST), self.personal()
        if (found := sha256(personal)) != expected:
            raise ModelError(f"expected P_s {expected[:12]}, this device holds {found[:12]}")
        return self._errors((mixed(personal, base, alpha) for alpha in alphas), utterances)

    def choose_alpha(self, base: Tensors, alphas: Sequence[float]) -> float:
        """The alpha with the fewest errors on the last part of train_s.

        There the model that was fine-tuned on the rest of train_s stands for P_s. Of several equal
        ones the middle one: it lies farthest from where it gets worse.
        """
        _, held_out = validation_split(self.utterances(TRAIN))
        judge = self.store.get(VALIDATION)
        counts = self._errors((mixed(judge, base, alpha) for alpha in alphas), held_out)
        errors = [int(each.errors.sum()) for each in counts]
        best = [alpha for alpha, wrong in zip(alphas, errors, strict=True) if wrong == min(errors)]
        return best[(len(best) - 1) // 2]

    def put_to_use(self, alphas: Sequence[float]) -> None:
        """Let the owner be recognized with P_s and the installed M_s, at the alpha that is chosen;
        of none, the server has mixed already and P_s has no weight any more.
        """
        alpha = self.choose_alpha(self.store.get(BASE), alphas) if alphas else 0.0
        install_recognizer(self.store, alpha, self._normalization())

    def improve(
        self,
        begin: Tensors,
        description: ModelDescription,
        settings: PersonalSettings,
        seed: int,
        round: int,
        proximal: float,
    ) -> tuple[Tensors, float]:
        """Fine-tune a G that is not kept, nor its description, on train_s for a strategy that
        averages it; the model and its mean loss.

        `proximal` is the mu of FedProx; 0 leaves the model free.
        """
        utterances = self.utterances(TRAIN, settings.augmentation, description)
        name = (seed, round, self.name, "improve")
        tuned = fine_tune(begin, description, settings, utterances, name, proximal)
        return tuned.model, tuned.losses[-1]

    def model_errors(self, model: Tensors, description: ModelDescription) -> Counts:
        """Word errors of a model that is not kept on test_s."""
        utterances = self.utterances(TEST, description=description)
        return evaluation.word_errors_of([model], description, utterances)[0]

    def _errors(self, models: Iterable[Tensors], utterances: Sequence[Utterance]) -> list[Counts]:
        return evaluation.word_errors_of(models, self.description, utterances)

    @property
    def description(self) -> ModelDescription:
        """What G needs to be used. Raises ModelError where no G was received."""
        return ModelDescription.from_json(self.store.state().get(DESCRIPTION, {}))

    @cached_property
    def _cuts(self) -> dict[str, list[MonoCut]]:
        return {
            part: list(CutSet.from_jsonl(self.folder / f"{part}.jsonl")) for part in (TRAIN, TEST)
        }

    def utterances(
        self,
        part: str,
        augmentation: AugmentationSettings | None = None,
        description: ModelDescription | None = None,
    ) -> list[Utterance]:
        """train_s or test_s with the features of a model, or of G; mean and variance are those of
        train_s."""
        return features.prepare(
            self._cuts[part],
            (description or self.description).features,
            augmentation.speeds if augmentation else (),
            self.folder / "features",
            reference=self._cuts[TRAIN],
        )


def _tuned(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a fine-tuning depends on: of the rounds, the one in which it began."""
    return {**asked, "began": asked.get("began", asked.get("round")), "round": None}


def mixed(personal: Tensors, base: Tensors, alpha: float) -> Tensors:
    """alpha * P_s + (1 - alpha) * M_s."""
    return dict(interpolate(sorted(personal.items()), sorted(base.items()), alpha))


@lru_cache(maxsize=16)
def open_folder(folder: Path) -> Speaker:
    """The speaker whose device folder this is. Raises CorpusError where there is none."""
    return Speaker(folder)


def _candidate(generic: Tensors, difference: Tensors) -> Tensors:
    check_like(difference, generic)
    return dict(add(generic.items(), difference))


def as_lists(counts: Sequence[Counts]) -> list[list[int]]:
    """Errors of each utterance, for each model, as JSON takes them."""
    return [np.asarray(each.errors).tolist() for each in counts]
