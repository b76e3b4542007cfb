"""Boxes on this machine behind a SuperLink and its proxy: an exchange, and a personalization.

Each box has five minutes of synthesized speech. Everything shares the cores, as on no deployment:
four boxes that fine-tune wait for each other here.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message

from experiments.benchmarks.figure import Panel
from experiments.benchmarks.harness import Failed, Row, Setting, say, spread
from fedspeech import config, corpus, protocol
from fedspeech.config.corpus import PartitionSettings
from fedspeech.corpus import handing_out, partition
from server import superlink
from server.fleet import FleetGrid

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers", ROOT / "docker"
"""Where the tests find a fleet, too (`pythonpath` of pyproject.toml)."""
TABLE = "Boxes"
LIMIT = 3600.0
RUN_LIMIT = 1800.0
PANELS = (Panel(TABLE, "what", "seconds", ()),)
EXPERIMENT = """
extends = "{base}"
name = "deployment"
[corpus.synthetic]
speakers = {speakers}
train_utterances = {train}
[partition]
generic = {generic}
development = 1
[model]
name = "{model}"
[generic]
epochs = 2
[federation]
bases = ["mean", "kbest"]
deployment = {{ boxes = {boxes}, wait = 120.0 }}
[rules]
kbest = {{ k = 2 }}
"""


@dataclass(frozen=True)
class Plan:
    """How many boxes with how much speech and which model; exchanges are repeated."""

    boxes: int = 4
    train: int = 210  # utterances of 1.4 s or more: five minutes
    generic: int = 4
    model: str = "tdnn-small"
    exchanges: int = 5


FULL = Plan()
QUICK = Plan(boxes=2, train=12, generic=3, model="tdnn-tiny", exchanges=2)


def rows(setting: Setting, plan: Plan) -> Iterator[Row]:
    """An exchange in which boxes only say who they are; then a whole run."""
    sys.path[:0] = map(str, HELPERS)
    from fleet import BIN, CONNECTION, NGINX, NO_NGINX, Fleet

    if NGINX is None:
        yield {"table": TABLE, "what": "all", "failed": f"skipped: {NO_NGINX}"}
        return
    setting.folder.mkdir(parents=True, exist_ok=True)
    file = setting.folder / "deployment.toml"
    text = EXPERIMENT.format(
        base=ROOT / "experiments" / "demo.toml",
        speakers=plan.generic + plan.boxes,
        **vars(plan),
    )
    file.write_text(text, encoding="utf-8")
    speech = _speech(file, setting.folder / "speech")
    fleet = Fleet(setting.folder / "fleet", [f"box{i}" for i in range(len(speech))])
    try:
        fleet.start_superlink()
        fleet.start_proxy()
        fleet.register()
        for box, folder in zip(fleet.boxes, speech, strict=True):
            fleet.start_box(box, folder, "--name", box)
        fleet.wait_until_online()
        row: Row = {"table": TABLE, "boxes": plan.boxes, "model": plan.model}
        os.environ["FLWR_HOME"] = fleet.environment()["FLWR_HOME"]
        say("exchanges")
        seconds = _exchanges(CONNECTION, setting.folder / "spool", plan.exchanges)
        yield {**row, "what": "an exchange that asks who is there", "seconds": spread(seconds)}
        say("a personalization")
        begin = time.monotonic()
        command = [BIN / "fedspeech", "run", file, "--out", "run"]
        fleet.start("operator", [*command, "--on", "deployment", CONNECTION])
        if fleet.wait_for_end("operator", RUN_LIMIT) != 0:
            raise Failed(fleet.log("operator")[-2000:])
        took = {"seconds": spread([time.monotonic() - begin])}
        yield {**row, "what": "a personalization, from start to end", **took}
    finally:
        fleet.close()


def _speech(file: Path, folder: Path) -> list[Path]:
    """A folder for each box."""
    settings = config.load(file)
    assert isinstance(settings, config.Config)
    parts = partition.partition(corpus.load(settings.corpus), settings.partition)
    written = [path for path, _ in handing_out.hand_out(parts, folder)]
    return [path for path in written if path.name != handing_out.PUBLIC]


def _exchanges(name: str, spool: Path, count: int) -> list[float]:
    """Seconds from the first question to the last answer, after one that counts for nothing."""
    asked = PartitionSettings(train={"fraction": 0.7}).model_dump(mode="json")  # type: ignore[arg-type]
    content = protocol.content({"partition": asked, "seed": 0, "begins": False})
    taken = []
    with superlink.joined(name) as http:
        grid = FleetGrid(http, name, spool, deadline=120.0)
        for _ in range(count + 1):
            nodes = grid.get_node_ids()
            begin = time.monotonic()
            messages = [Message(content, n, protocol.DESCRIBE, group_id="0") for n in nodes]
            replies = list(grid.send_and_receive(messages))
            if wrong := [why for reply in replies if (why := protocol.failure(reply))]:
                raise Failed(wrong[0])
            taken.append(time.monotonic() - begin)
    return taken[1:]
