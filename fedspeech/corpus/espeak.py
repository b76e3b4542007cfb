"""espeak-ng in a process of its own; run by path, and nothing of fedspeech is imported here.

    python -P espeak.py LIBRARY DATA

It first writes the sample rate (4 bytes, little-endian). Then it reads one JSON object per line,

    {"text": "open it", "voice": "en-us+f3", "rate": 175, "volume": 25, "pitch": 50, "range": 50}

and answers each with the number of bytes that follow (4 bytes) and the 16-bit samples.
"""

import ctypes
import json
import os
import struct
import sys
from typing import Any

SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4}
"""Numbers of espeak-ng's `espeak_PARAMETER`."""


def main(library_path: str, data_path: str) -> None:
    """Answer requests until standard input ends. Exits with a message where one is refused."""
    library = ctypes.CDLL(library_path)
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data_path.encode(), DO_NOT_EXIT)
    if rate <= 0:
        sys.exit(f"espeak-ng does not start with the data in {data_path}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the clock decides how a voice breathes
    library.espeak_ListVoices(None)  # else every child looks through all voices on disk
    _answer(struct.pack("<I", rate))
    for line in sys.stdin:
        # what espeak-ng says depends on what it said before: every utterance starts from one state
        child = os.fork()
        if child == 0:
            os._exit(_speak(library, json.loads(line)))
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"espeak-ng cannot speak {line.strip()} (status {status})")


def _speak(library: ctypes.CDLL, request: dict[str, Any]) -> int:
    chunks: list[bytes] = []

    def keep(samples: int | None, count: int, _: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    callback = kind(keep)
    library.espeak_SetSynthCallback(callback)
    status = int(library.espeak_SetVoiceByName(request["voice"].encode()))
    for name, number in PARAMETERS.items():
        status |= library.espeak_SetParameter(number, request[name], 0)
    text = request["text"].encode() + b"\0"
    status |= library.espeak_Synth(text, len(text), 0, 0, 0, UTF8, None, None)
    if status == 0:
        samples = b"".join(chunks)
        _answer(struct.pack("<I", len(samples)) + samples)
    return int(status != 0)


def _answer(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


if __name__ == "__main__":
    main(*sys.argv[1:])
