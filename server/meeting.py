"""Which boxes a run is with: those that are there when it begins, and then the same ones again."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flwr.app import Message

from fedspeech import progress, protocol
from fedspeech.config import Config
from fedspeech.errors import RunError
from fedspeech.participation import REVOKED
from fedspeech.protocol import Member
from fedspeech.run_folder import RunFolder
from server.fleet import FleetGrid
from server.journal import Journal
from server.roster import Roster, ask, first_said, question, said_before

log = logging.getLogger("fedspeech")

FILE = "boxes.json"
"""Of a run's folder: the node of each speaker's box, as it was met first."""
LATER = "came after the run had begun"


def meet(grid: FleetGrid, journal: Journal, run: RunFolder, settings: Config) -> Roster:
    """Wait for the boxes, and ask each who it is and how much speech of its owner it can use.

    A box cuts train_s and test_s itself, as `partition.train` says, when a run begins; a run that
    is resumed is with the boxes of its beginning, whether they are back yet or not. Every other one
    that is registered is absent for a reason. Raises RunError where too few are there. Of those
    that say they are the same none counts, but the one that was it when the run began: a copy of
    its disk, or of its name, stops nobody else.
    """
    asked, known = settings.deployment, _known(run)
    assert asked is not None
    with progress.stage(asked.boxes) as shown:
        shown.start("boxes")
        for _ in grid.arrivals(asked.boxes, asked.wait):
            shown.advance("")
    parts = settings.partition.model_dump(mode="json", include={"train", "least_seconds"})
    standard = question({"partition": parts})
    found, reasons = ask(grid, {"partition": parts, "begins": not known}, asked.wait)
    members = {}
    for speaker, reply in _one_each(found, known, reasons, grid):
        if known and speaker not in known:
            log.warning("speaker %s %s; it is for the next one", speaker, LATER)
            continue
        said = first_said(journal, standard, reply)
        held = protocol.text(reply.content)["generation"]
        node = reply.metadata.src_node_id
        members[speaker] = Member(node=node, **{**said, "generation": held})
    boxes = grid.registered()
    for speaker in sorted(set(known) - set(members)):
        before = said_before(journal, protocol.identity(standard, speaker))
        if before is not None:
            why = reasons.pop(known[speaker], "") or boxes.get(known[speaker], REVOKED)
            log.warning("speaker %s is not back yet: %s", speaker, why)
            members[speaker] = Member(node=known[speaker], **before)
    others = _others(boxes, members.values(), reasons)
    absent = {grid.called(node): why for node, why in others.items()}
    _check_number(len(members), asked.boxes, settings.federation.quorum, absent)
    ordered = [members[speaker] for speaker in sorted(members)]
    run.write_json(FILE, {member.speaker: str(member.node) for member in ordered})
    return Roster(ordered, absent)


def _one_each(
    found: Mapping[str, Sequence[Message]],
    known: Mapping[str, int],
    reasons: dict[int, str],
    grid: FleetGrid,
) -> Iterator[tuple[str, Message]]:
    """The reply of each speaker; where several boxes say they are it, why others do not count."""
    for speaker, replies in found.items():
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        right = by_node.get(known[speaker]) if speaker in known else None
        if len(by_node) == 1:
            (right,) = by_node.values()
        else:
            who = " and ".join(grid.called(node) for node in sorted(by_node))
            why = f"{who} say that they are speaker {speaker}"
            kept = grid.called(known[speaker]) + " is kept" if right else "all are left out"
            log.warning("%s; %s", why, kept)
            reasons |= {node: why for node, reply in by_node.items() if reply is not right}
        if right is not None:
            yield speaker, right


def _others(
    boxes: Mapping[int, str], members: Iterable[Member], reasons: Mapping[int, str]
) -> dict[int, str]:
    """Why each box that is no member takes no part; `reasons` are of boxes that were asked."""
    taken = {member.node for member in members}
    unasked = {node: where or LATER for node, where in boxes.items() if node not in taken}
    return {**unasked, **reasons}


def _known(run: RunFolder) -> dict[str, int]:
    path = run.path / FILE
    try:
        return {s: int(node) for s, node in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: damaged, cannot be resumed: {error}") from None


def _check_number(there: int, boxes: int, quorum: float, absent: Mapping[str, str]) -> None:
    """Warn where boxes are missing. Raises RunError where they are too many."""
    lines = "".join(f"\n  {box}: {why}" for box, why in absent.items())
    if there < (least := max(quorum * boxes, 1)):
        raise RunError(
            f"{there} boxes are there and usable, expected at least {least:g} (federation.quorum "
            f"of federation.deployment.boxes = {boxes}){lines}"
        )
    if there < boxes:
        log.warning("%d of %d boxes take part (federation.deployment.boxes)%s", there, boxes, lines)
