"""A whole personalization on boxes with real speech, and what happens when things are killed."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import going_on, until
from federations import simulate
from fleet import BIN, CONNECTION, NGINX, NO_NGINX, SUPERLINK, Fleet
from owners import hand, rows
from slow import slow

from fedspeech import config
from fedspeech.corpus.partition import pseudonym
from fedspeech.device import personal

pytestmark = [
    pytest.mark.speech,
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.timeout(900),
]
DATA = Path(__file__).parents[3] / "shared" / "data" / "arabic-speech-commands"
GENERIC = ("asc01", "asc02", "asc05")
OWNERS = {"anna": "asc13", "ben": "asc14", "carla": "asc16", "dora": "asc17"}
SERVER = "operator"
SECONDS = 300.0
MOST_PAUSE = 15.0
"""Between two kills."""
ALL = os.environ.get("FEDSPEECH_FAULTS") == "all"
DIFFERENT = {"bytes", "corpus", "participation"}
EXPERIMENT = """
name = "boxes"
[corpus]
path = {corpus}
[partition]
generic = ["asc01", "asc02", "asc05"]
development = 1
clients = ["asc13", "asc14", "asc16", "asc17"]
train = {{ field = "round", values = [1, 2] }}
[units]
kind = "words"
[model]
name = "tdnn-tiny"
[generic]
epochs = 3
threads = 1
[personal]
epochs = 2
[federation]
bases = ["mean", "kbest"]
alphas = [0.0, 0.5, 1.0]
[budget]
base = "4x"
personal = "4x"
[rules.kbest]
k = 2
[engine]
grid = "in-process"
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three rounds of each speaker's words."""
    if not DATA.exists():
        pytest.skip(f"no real speech in {DATA}")
    folder = tmp_path_factory.mktemp("corpus")
    short = [row for row in rows(DATA) if row["round"] <= 3]
    for name, speakers in {"all": (*GENERIC, *OWNERS.values()), **OWNERS}.items():
        hand(folder / name, [row for row in short if row["speaker"] in speakers])
    return folder


@pytest.fixture(scope="module")
def experiment(corpus):
    path = corpus / "boxes.toml"
    path.write_text(EXPERIMENT.format(corpus=json.dumps(str(corpus / "all"))))
    return path


@pytest.fixture(scope="module")
def simulated(experiment, tmp_path_factory):
    """What comes of the same speakers, simulated."""
    return simulate(config.load(experiment), tmp_path_factory.mktemp("runs") / "simulated")


@pytest.fixture
def fleet(tmp_path, corpus):
    found = Fleet(tmp_path, list(OWNERS))
    try:
        found.start_superlink()
        found.start_proxy()
        found.register()
        for box in OWNERS:
            place(found, box, corpus)
        yield found
    finally:
        found.close()


def place(fleet, box, corpus):
    """Start a box with its owner's words."""
    fleet.start_box(box, corpus / box, "--name", pseudonym(0, OWNERS[box]))


def start(fleet, experiment, *more):
    command = [BIN / "fedspeech", "run", experiment, "--on", "deployment", CONNECTION]
    command += ["--out", fleet.folder / "run", "--set", "federation.deployment.boxes=4"]
    fleet.start(SERVER, [*command, *more])


def finish(fleet):
    status = fleet.wait_for_end(SERVER, SECONDS)
    assert status == 0, fleet.log(SERVER)[-4000:]


def reached(fleet, text):
    fleet.wait(SERVER, lambda: text in fleet.log(SERVER), SECONDS)


def results(folder):
    """All but what has to differ: boxes are brought a last M_s, and their speech is not here."""
    found = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in DIFFERENT}


def of(fleet, box, word):
    """The processes of a box in whose command line a word is."""
    return [number for number, line in fleet.processes(box).items() if word in line]


def forks(fleet, box):
    """The processes that answer a box's messages."""
    parents = {
        n: int(Path(f"/proc/{n}/stat").read_text().rsplit(")")[-1].split()[1])
        for n in of(fleet, box, "fedspeech")
    }
    return [number for number, parent in parents.items() if parent in parents]


@slow
def test_a_run_on_boxes_is_what_is_simulated(fleet, experiment, simulated):
    start(fleet, experiment)
    finish(fleet)
    assert results(fleet.folder / "run") == results(simulated)
    for box in OWNERS:
        found = personal.usual(personal.open_store(fleet.folder / "devices" / box))
        assert found.about in {"P_s", "M_s", "0.5 * P_s + 0.5 * M_s"}
        assert found.model


@pytest.mark.faults
def test_nothing_that_is_killed_changes_the_table(fleet, experiment, simulated):
    start(fleet, experiment)
    reached(fleet, "boxes: 4 in")
    (fork,) = fleet.wait("ben", lambda: forks(fleet, "ben"))
    os.kill(fork, signal.SIGKILL)
    (node,) = of(fleet, "anna", "clients.supernode")
    os.kill(node, signal.SIGKILL)
    reached(fleet, "train.personalize: 4 in")
    assert "killed by signal 9; once more" in fleet.log("ben")
    assert "the SuperNode has ended" in fleet.log("anna")
    reached(fleet, "evaluate.personal")
    fleet.kill(SERVER)
    fleet.kill(SUPERLINK)
    trained = fine_tuned(fleet)
    fleet.start_superlink()
    time.sleep(1)
    start(fleet, experiment, "--resume")
    finish(fleet)
    assert results(fleet.folder / "run") == results(simulated)
    assert fine_tuned(fleet) == trained, "what was finished is not trained again"


class Killer:
    """Kills parts of a fleet again and again, each in its turn, and brings back what no supervisor
    does; `killed` tells what and when."""

    def __init__(self, fleet, experiment, seed):
        self.fleet, self.experiment, self.draw = fleet, experiment, random.Random(seed)
        self.begin, self.killed = time.monotonic(), []
        self.kinds = {
            "client": self.client,
            "SuperNode": self.supernode,
            "box": self.box,
            "SuperLink": self.superlink,
            "server app": self.server,
        }

    def round(self):
        """Each kind once, in any order and at any moment; False where the run is over before."""
        for kind in self.draw.sample(sorted(self.kinds), len(self.kinds)):
            pause = time.monotonic() + self.draw.uniform(0, MOST_PAUSE)
            while time.monotonic() < pause or not self.kinds[kind](kind):
                if self.over():
                    return False
                time.sleep(0.05)
        return True

    def over(self):
        """Whether the run is finished; one that a dead SuperLink has ended goes on."""
        if (status := self.fleet.status(SERVER)) is None:
            return False
        assert self.fleet.wait_for_end(SERVER) == status
        if status:
            assert "SuperLink boxes" in self.fleet.log(SERVER).splitlines()[-1]
            self.go_on()
        return status == 0

    def go_on(self):
        start(self.fleet, self.experiment, *going_on(self.fleet.folder / "run"))

    def note(self, what):
        self.killed.append((round(time.monotonic() - self.begin, 1), what))
        return True

    def signal(self, kind, box, numbers):
        """Kill a process, if there is one."""
        with suppress(ProcessLookupError, IndexError):
            os.kill(self.draw.choice(numbers), signal.SIGKILL)
            return self.note(f"{kind} of {box}")
        return False

    def client(self, kind):
        box = self.draw.choice(self.fleet.boxes)
        return self.signal(kind, box, forks(self.fleet, box))

    def supernode(self, kind):
        box = self.draw.choice(self.fleet.boxes)
        return self.signal(kind, box, of(self.fleet, box, "clients.supernode"))

    def box(self, kind):
        box = self.draw.choice(self.fleet.boxes)
        self.fleet.kill(box)
        place(self.fleet, box, self.experiment.parent)
        return self.note(f"{kind} {box}")

    def superlink(self, kind):
        self.fleet.kill(SUPERLINK)
        self.fleet.start_superlink()
        return self.note(kind)

    def server(self, kind):
        if self.fleet.status(SERVER) is not None:
            return False
        self.fleet.kill(SERVER)
        self.go_on()
        return self.note(kind)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not ALL, reason="takes minutes; FEDSPEECH_FAULTS=all runs it")
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_moments_change_nothing(fleet, experiment, simulated, seed):
    """Client, SuperNode, whole box, SuperLink and server app, at least twice in one run."""
    start(fleet, experiment)
    killer = Killer(fleet, experiment, seed)
    try:
        done = 0
        while done < 2 and killer.round():
            done += 1
        assert done, "the run was over before everything had been killed"
        until(killer.over, 4 * SECONDS)
    finally:
        print(f"seed {seed}: {killer.killed}")
    assert results(fleet.folder / "run") == results(simulated)


def fine_tuned(fleet):
    return {box: fleet.log(box).count("train.personalize, round 1") for box in OWNERS}


@slow
def test_flowers_own_command_does_the_same(fleet, experiment, simulated):
    """Where the SuperLink starts server apps itself."""
    fleet.stop(SUPERLINK)
    fleet.start_superlink("--isolation", "subprocess")
    text = experiment.read_text().replace("in-process", "deployment")
    file = fleet.folder / "boxes.toml"
    file.write_text(f"{text}\n[federation.deployment]\nboxes = 4\n")
    asked = f'experiment="{file}" out="{fleet.folder / "run"}"'
    root = Path(__file__).parents[2]
    fleet.start(SERVER, ["flwr", "run", root, CONNECTION, "--run-config", asked, "--stream"])
    done = fleet.folder / "run" / "results.json"
    fleet.wait(SUPERLINK, done.exists, SECONDS)
    assert results(fleet.folder / "run") == results(simulated)
