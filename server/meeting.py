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
from server.recorded_grid import content_of
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
    boxes = grid.registered()
    there = {s: node for s, node in known.items() if node in boxes}
    members = {}
    for speaker, reply in _one_each(found, there, reasons, grid):
        if known and speaker not in known:
            log.warning("speaker %s %s; it is for the next one", speaker, LATER)
            continue
        said, now = first_said(journal, standard, reply), protocol.text(reply.content)
        held = {"generation": now["generation"], "personal": now.get("personal", "")}
        members[speaker] = Member(node=reply.metadata.src_node_id, **{**said, **held})
        _ask_again_where_gone(journal, members[speaker])
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
    """The reply of each speaker; where other boxes say they are it, why these do not count.

    `known` are the boxes with which the run began, as far as their keys count still: of those that
    got another key, another one may be the speaker's.
    """
    for speaker, replies in found.items():
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        own = known.get(speaker)
        right = next(iter(by_node)) if own is None and len(by_node) == 1 else own
        if others := sorted(by_node.keys() - {right}):
            same = sorted({*by_node, *([] if own is None else [own])})
            why = f"{' and '.join(map(grid.called, same))} say that they are speaker {speaker}"
            kept = "all are left out" if right is None else f"{grid.called(right)} is kept"
            log.warning("%s; %s", why, kept)
            reasons |= dict.fromkeys(others, why)
        if right in by_node:
            yield speaker, by_node[right]


def _ask_again_where_gone(journal: Journal, member: Member) -> None:
    """A box that another run has used meanwhile does not hold the P_s that it has sent to this."""
    if (row := journal.last(protocol.PERSONALIZE, member.speaker)) is None:
        return
    sent = protocol.text(content_of(row.answer))
    if member.personal != (sent.get("personal") or sent.get("kept")):
        log.warning("speaker %s holds another P_s than it has sent: asked again", member.speaker)
        for kind in (protocol.PERSONALIZE, protocol.WORD_ERRORS):
            journal.ask_again(kind, member.speaker)


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
