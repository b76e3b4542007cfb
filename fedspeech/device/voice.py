"""How the owner's speech is normalized: with mean and deviation of train_s, as in fine-tuning.

They are kept beside the models, so that the recordings need not be there for ever.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from fedspeech import features
from fedspeech.config.model import FeatureSettings
from fedspeech.errors import CorpusError, DiskError, ModelError
from fedspeech.features import Normalization
from fedspeech.tensors import write_whole

VOICE, TRAIN = "voice.json", "train.jsonl"


def of_owner(folder: Path, settings: FeatureSettings) -> Normalization | None:
    """What a device normalizes by, or None where each utterance is normalized by itself.

    Raises ModelError as `normalization` does.
    """
    return normalization(folder, settings) if settings.normalization == "speaker" else None


def normalization(folder: Path, settings: FeatureSettings) -> Normalization:
    """Of the speech that a device's folder trains on, kept there in `voice.json`.

    Raises ModelError where it is neither kept nor can be measured.
    """
    try:
        trained_on = (folder / TRAIN).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder / TRAIN}: no speaker's speech here: {error}") from None
    of = hashlib.sha256(settings.model_dump_json().encode() + trained_on).hexdigest()
    return _kept(folder / VOICE, of) or _measured(folder, settings, of)


def to_json(normalization: Normalization) -> dict[str, Any]:
    """What `from_json` reads."""
    return {
        "mean": normalization.mean.tolist(),
        "deviation": normalization.deviation.tolist(),
    }


def from_json(content: Mapping[str, Any]) -> Normalization:
    """Raises ModelError where the content is none."""
    try:
        return Normalization(torch.tensor(content["mean"]), torch.tensor(content["deviation"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not how a speaker sounds: {error!r}") from None


def _kept(path: Path, of: str) -> Normalization | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return from_json(kept) if kept["of"] == of else None
    except (ModelError, OSError, ValueError, KeyError, TypeError):
        return None


def _measured(folder: Path, settings: FeatureSettings, of: str) -> Normalization:
    try:
        cuts = list(CutSet.from_jsonl(folder / TRAIN))
        (first, *_) = features.prepare(cuts, settings, (), folder / "features")
    except (CorpusError, DiskError, OSError, ValueError) as error:
        raise ModelError(f"{folder}: how its speech sounds cannot be measured: {error}") from None
    found = first.normalization
    text = json.dumps({"of": of, **to_json(found)}) + "\n"
    write_whole(folder / VOICE, lambda part: part.write_text(text, encoding="utf-8"))
    return found
