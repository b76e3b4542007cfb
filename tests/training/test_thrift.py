"""Fine-tuning on a small box: within its memory, and with the same bits as on a large one."""

import small_box
from slow import slow

from fedspeech import machine
from fedspeech.models.tdnn import TDNN, Layer, Shape
from fedspeech.training import thrift

GIB = 2**30

COMMON = """
import sys, threading, time
from pathlib import Path
import torch
from fedspeech import machine, seeding
from fedspeech.config.model import FeatureSettings, UnitSettings
from fedspeech.config.training import PersonalSettings
from fedspeech.features import Normalization, Utterance
from fedspeech.models.description import ModelDescription
from fedspeech.tensors import sha256, state
from fedspeech.training.course import Course
from fedspeech.training.loop import Loop
from fedspeech.units import learn

torch.set_num_threads(1)
SPEEDS = PersonalSettings().augmentation.speeds
UNITS = learn(["abc"], UnitSettings(kind="characters"))

NORM = Normalization(torch.zeros(40), torch.ones(40))

def utterance(number, frames):
    heard = {speed: torch.randn(round(frames / speed), 40) for speed in SPEEDS}
    return Utterance(str(number), "s", "abc", heard, NORM)

def speech(count, frames):
    with seeding.scoped(0, 0, "", "speech"):
        return [utterance(number, frames) for number in range(count)]
"""

ONE_UPDATE = """
from fedspeech.models.tdnn import TDNN, Layer, Shape

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

def update(utterances):
    with seeding.scoped(0, 0, "", "g"):
        model = TDNN(40, len(UNITS), Shape(32, (Layer(1), *(Layer(3, 1),) * 12)))
    settings = PersonalSettings(epochs=1, batch_size=16)
    Loop(model, Course(settings, FeatureSettings(), UNITS, utterances, (0, 0, "s", "p"))).epoch(0)
    return sha256(state(model))

machine.memory_free_bytes = lambda: int(sys.argv[1])
update(speech(2, 50))  # whatever is loaded late
utterances = speech(16, 4_000)
peak = [0]
idle = anonymous()
threading.Thread(target=watch, daemon=True).start()
name = update(utterances)
print(name, peak[0] - idle)
"""


def test_with_little_memory_an_update_takes_less_than_half_and_gives_the_same_bits(child):
    found = []
    for free in (2**60, 2**20):
        done = child(COMMON + ONE_UPDATE, free)
        assert done.returncode == 0, done.stderr
        name, peak = done.stdout.split()
        found.append((name, int(peak)))
    (usual, plenty), (thrifty, little) = found
    print(f"one update: {plenty >> 20} MiB with plenty of memory, {little >> 20} with little")
    assert usual == thrifty
    assert 0 < little < 0.5 * plenty


WHOLE = """
from fedspeech.training.personal import fine_tune

about = ModelDescription("tdnn", FeatureSettings(), UNITS)
with seeding.scoped(0, 0, "", "g"):
    generic = state(about.empty())
settings = PersonalSettings(epochs=1)
utterances = speech(15, 2000)
judge = fine_tune(generic, about, settings, utterances[:12], (0, 0, "s", "validate"))
tuned = fine_tune(generic, about, settings, utterances, (0, 0, "s", "personalize"))
print(sum(tensor.numel() for tensor in tuned.model.values()), machine.memory_limit_bytes())
"""


@slow
def test_the_papers_model_is_fine_tuned_on_five_minutes_within_one_gib():
    """What judges alpha, then P_s, on 15 utterances of 20 s: as long as they may be."""
    done, peak = small_box.run(COMMON + WHOLE, GIB)
    assert done.returncode == 0, done.stderr
    values, limit = map(int, done.stdout.split())
    print(f"{values:,} values, {peak >> 20} MiB at most of {limit >> 20}")
    assert values > 13_900_000 and limit == GIB
    assert peak < GIB


def test_memory_decides_and_nothing_else(monkeypatch):
    model = TDNN(40, 5, Shape(32, (Layer(1), Layer(3))))
    kept = model.kept_bytes(16, 1000)
    # What it does to the allocator would stay in this process.
    monkeypatch.setattr(thrift, "_hand_back", lambda: None)
    enough = round(kept / thrift.SHARE)
    for free, recomputes in ((enough + 1, False), (enough - 1, True)):
        monkeypatch.setattr(machine, "memory_free_bytes", lambda free=free: free)
        thrift.settle(model, 16, 1000)
        assert model.recomputes is recomputes
