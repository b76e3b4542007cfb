"""TED-LIUM release 3 (openslr.org/51): one talk stands for one speaker.

    TEDLIUM_release-3/data/{stm,sph}/TALK.{stm,sph}     or   …/legacy/train/{stm,sph}/…

A line of an stm file is `talk channel speaker start end <labels> words`. The words are joined as in
Kaldi's recipe for this corpus ("it 's" becomes "it's"), and marks that are not words are dropped:
`(2)` for a pronunciation, `<unk>`, `{NOISE}`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet, MonoCut, Recording

from fedspeech.config.corpus import CorpusSettings
from fedspeech.corpus import cuts
from fedspeech.errors import CorpusError

FOLDERS = ("data", "legacy/train")
"""Where the talks lie; the first that is there is taken."""

NOT_SPEECH = {"ignore_time_segment_in_scoring", "inter_segment_gap"}
MARKS = re.compile(r"<[^>]*>|\{[^}]*\}|\([^)]*\)")
SUFFIXES = re.compile(r" '(s|m|re|ve|ll|d|t)\b")

OVERHANG = 1.0
"""Seconds by which an aligned segment may end after its recording; it is cut there."""


def prepare(settings: CorpusSettings) -> CutSet:
    """All talks of the release in `path`; utterances in the order of time.

    Raises CorpusError with every problem found, each with file and line.
    """
    if settings.path is None:
        raise CorpusError("corpus.path: expected the folder TEDLIUM_release-3")
    path = Path(settings.path)
    folders = [path / name for name in FOLDERS if (path / name / "stm").is_dir()]
    if not folders:
        raise CorpusError(f"{path}: expected a folder {' or '.join(f'{n}/stm' for n in FOLDERS)}")
    found: list[MonoCut] = []
    problems: list[str] = []
    for stm in sorted((folders[0] / "stm").glob("*.stm")):
        try:
            source = cuts.recording(folders[0] / "sph" / f"{stm.stem}.sph", settings.channel)
        except CorpusError as error:
            problems.append(str(error))
        else:
            _read(stm, source, found, problems)
    return cuts.gather(found, problems, str(folders[0]))


def _read(stm: Path, source: Recording, found: list[MonoCut], problems: list[str]) -> None:
    try:
        lines = stm.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{stm}: not readable: {error}")
        return
    for number, line in enumerate(lines, 1):
        try:
            found.extend(_utterance(stm.stem, number, line, source))
        except CorpusError as error:
            problems.append(f"{stm}:{number}: {error}")


def _utterance(talk: str, number: int, line: str, source: Recording) -> Iterator[MonoCut]:
    """The utterance on a line, or nothing where it is a comment or holds no word."""
    if not line.strip() or line.startswith(";;"):
        return
    name, _, speaker, first, last, *rest = [*line.split(maxsplit=5), *[""] * 5][:6]
    try:
        start, end = float(first), float(last)
    except ValueError:
        raise CorpusError(f"expected talk, channel, speaker, start, end, found {line!r}") from None
    if name != talk:
        raise CorpusError(f"expected talk {talk}, found {name}")
    text = SUFFIXES.sub(r"'\1", " ".join(MARKS.sub(" ", rest[0]).split()))
    if speaker in NOT_SPEECH or text in NOT_SPEECH or not text:
        return
    if start < source.duration < end <= source.duration + OVERHANG:
        end = source.duration
    id = f"{talk}-{number:04d}"
    yield cuts.utterance(id, source, text, speaker=talk, span=(start, end - start))
