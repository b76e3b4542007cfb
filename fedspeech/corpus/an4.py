"""CMU AN4 (census) from a clone of its public source, github.com/cmusphinx/an4.

    etc/an4_{train,test}.transcription      wav/an4_clstk/SPEAKER/ID.wav  (test: an4test_clstk)

The fingerprint is that of commit b567d132 of 2022-10-03. It covers the number of speakers and of
utterances of both parts, and for the 56 speakers in `KNOWN` the ids, lengths and transcripts of all
their utterances; it does not cover the audio itself, nor the words of the other 28.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lhotse import CutSet, MonoCut

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.corpus.partition import by_speaker
from fedspeech.errors import CorpusError

FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
COUNTS = {"train": (74, 948), "test": (10, 130)}
"""Speakers and utterances of each part of the source."""

KNOWN = """
    fash:9aa5f4f5 fbbh:0211ff03 fclc:cbb27393 fejs:d415caa8 fjam:abbcfdc8 fjdn:cc286b1b
    fjmd:02c3faef fkai:984b2e9b flmm2:bc7482af flrp:64bcc843 fmjd:642df253 fnsv:acc6c71a
    fsaf2:73a82a68 fsrb:7833d227 ftmj:b71eb204 fvap:3a042200 marh:1b764fac mblb:66bdd9c5
    mbmg:fc551e9c mcel:1f5abab4 mcfl:128070a0 mcrt:83d137aa mdcs:3e5ed469 mdcs2:99d3283b
    mdms2:6416b26f mdxn:3269e40b meab:56cdaa3d meht:ba6579fd menk:56a09c55 mewl:692d591f
    mgah:8ed8f471 miry:42c326b8 mjda:d4277f31 mjdr:974c839c mjgk:df813ab6 mjgm:78f2abc9
    mjjs2:72bd6014 mjwl:826648fe mkem:91ea20b7 mmaf:9b153169 mmap:0ea35537 mmdg:e07c023f
    mmsh:074db32e mmtm:22ec0733 mnfe:78cc96d0 mnjl:636e1036 mrcb:1978bded mrjc2:a1ac258d
    mscg2:50a6eabd msct:7e37e0b2 msjr:ae510705 mskh:adc13392 msrb:0f9247be mtcv:b59a9714
    mtos:6934b589 mtxj:2006f948
"""
"""Speaker and the first 8 digits of its `fingerprint`."""

LINE = re.compile(r"(?P<text>.*)\((?P<id>\w+-(?P<speaker>\w+)-\w+)\)")
MARKS = {"<s>", "</s>", "<sil>"}


def prepare(settings: CorpusSettings) -> CutSet:
    """The utterances by speaker and id; each carries `source_split`.

    Raises CorpusError with every problem found, and where the fingerprint differs.
    """
    if settings.path is None:
        raise CorpusError("corpus.path: expected a clone of github.com/cmusphinx/an4")
    path = Path(settings.path)
    found, problems = read(path)
    return cuts.gather(found, problems or differences(found), str(path))


def read(path: Path) -> tuple[list[MonoCut], list[str]]:
    """What is usable of the tree, and what is wrong with the rest, one line each."""
    found: list[MonoCut] = []
    problems: list[str] = []
    for part in FOLDERS:
        listed = path / "etc" / f"an4_{part}.transcription"
        try:
            lines = listed.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{listed}: not a readable list: {error}") from None
        for number, line in enumerate(lines, 1):
            try:
                found.extend(_utterance(path, part, line))
            except CorpusError as error:
                problems.append(f"{listed}:{number}: {error}")
    return sorted(found, key=lambda cut: (cuts.speaker_of(cut), cut.id)), problems


def _utterance(path: Path, part: str, line: str) -> list[MonoCut]:
    if not line.strip():
        return []
    match = LINE.fullmatch(line.strip())
    if match is None:
        raise CorpusError(f"expected words and (id-speaker-b), found {line!r}")
    audio = path / "wav" / FOLDERS[part] / match["speaker"] / f"{match['id']}.wav"
    return [
        cuts.utterance(
            id=match["id"],
            source=cuts.recording(audio, None),
            text=" ".join(word for word in match["text"].split() if word not in MARKS),
            speaker=match["speaker"],
            custom={"source_split": part},
        )
    ]


def differences(found: Sequence[MonoCut]) -> list[str]:
    """Where the utterances differ from the source's fingerprint, one line each."""
    wrong = []
    for part, expected in COUNTS.items():
        speech = [cut for cut in found if cut.supervisions[0].custom["source_split"] == part]
        counts = len({cuts.speaker_of(cut) for cut in speech}), len(speech)
        if counts != expected:
            wrong.append(f"{part}: {_count(counts)}, the source has {_count(expected)}")
    speech_of = by_speaker(found)
    for speaker, digest in (entry.split(":") for entry in KNOWN.split()):
        if speaker not in speech_of:
            wrong.append(f"speaker {speaker} is missing")
        elif not fingerprint(speech_of[speaker]).startswith(digest):
            wrong.append(f"speaker {speaker}: ids, lengths or transcripts differ from the source's")
    return wrong


def fingerprint(speech: Sequence[MonoCut]) -> str:
    """SHA-256 over the lines "id samples text" of one speaker, sorted."""
    lines = sorted(f"{c.id} {c.recording.num_samples} {cuts.text_of(c)}\n" for c in speech)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _count(counts: tuple[int, int]) -> str:
    return f"{counts[0]} speakers with {counts[1]} utterances"
