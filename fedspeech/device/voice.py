"""How the owner's speech is normalized: with mean and deviation of train_s, as in fine-tuning.

They are kept beside the models, so that the recordings need not be there for ever.
"""

import hashlib
import json
from pathlib import Path

import torch
from lhotse import CutSet

from fedspeech import features
from fedspeech.config.model import FeatureSettings
from fedspeech.errors import CorpusError, DiskError, ModelError
from fedspeech.features import Normalization
from fedspeech.tensors import write_whole

VOICE, TRAIN = "voice.json", "train.jsonl"


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


def _kept(path: Path, of: str) -> Normalization | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] != of:
            return None
        return Normalization(torch.tensor(kept["mean"]), torch.tensor(kept["deviation"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measured(folder: Path, settings: FeatureSettings, of: str) -> Normalization:
    try:
        cuts = list(CutSet.from_jsonl(folder / TRAIN))
        (first, *_) = features.prepare(cuts, settings, (), folder / "features")
    except (CorpusError, DiskError, OSError, ValueError) as error:
        raise ModelError(f"{folder}: how its speech sounds cannot be measured: {error}") from None
    found = first.normalization
    kept = {"of": of, "mean": found.mean.tolist(), "deviation": found.deviation.tolist()}
    text = json.dumps(kept) + "\n"
    write_whole(folder / VOICE, lambda part: part.write_text(text, encoding="utf-8"))
    return found
