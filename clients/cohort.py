"""The speakers of a cohort, fine-tuned as one stack by the worker that simulates them.

Each device keeps its own result, so that the client app, when it is asked, has finished already.
"""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from flwr.app import Context, Message

from clients import speaker
from clients.app import folder, receive
from clients.speaker import Speaker
from fedspeech.config.training import PersonalSettings
from fedspeech.device.lock import locked
from fedspeech.device.store import MODELS
from fedspeech.errors import DiskError
from fedspeech.training.personal import FineTuned, Tuning, fine_tune_together

REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What the system says where there is no room or no more files may be open."""
TRIES = 3
"""For a speaker's recordings to be read."""


class _Member(NamedTuple):
    me: Speaker
    asked: Mapping[str, Any]
    tunings: tuple[Tuning, Tuning]


def prepare(cohort: Sequence[tuple[Context, Message | None]]) -> None:
    """Fine-tune all speakers of a cohort, in the order of their ids.

    A cohort is whole or it is another one: a speaker that is not asked, since it answered before
    an interruption, is fine-tuned along with the others, and its stack is what it was. What it has
    finished it keeps: by now it would begin with another P_s. Who cannot be fine-tuned, whatever
    was raised, is left out, and says why when the client app asks. Raises DiskError where the
    system refuses what it may give next time: the stack would be another one then.
    """
    with ExitStack() as stack:
        members = _members(cohort, stack)
        if all(member.me.has_finished(member.asked) for member in members):
            return
        settings = PersonalSettings.model_validate(members[0].asked["settings"])
        description = members[0].me.description
        judges, tuned = (
            fine_tune_together(description, settings, [member.tunings[part] for member in members])
            for part in (0, 1)
        )
        for member, judge, model in zip(members, judges, tuned, strict=True):
            if judge is not None and model is not None and not member.me.has_finished(member.asked):
                _keep(member, judge, model)


def _members(cohort: Sequence[tuple[Context, Message | None]], stack: ExitStack) -> list[_Member]:
    """Those that can be fine-tuned together, with their folders locked until the stack is left."""
    opened: list[tuple[Speaker, Mapping[str, Any]]] = []
    rounds = set()
    for context, message in cohort:
        with _left_out():
            stack.enter_context(locked(folder(context) / MODELS))
            me = speaker.open_folder(folder(context))
            if message is None:
                opened.append((me, me.store.state().get("asked", {})))
            else:
                asked = receive(me, message)
                opened.append((me, asked))
                rounds.add((asked["generation"], asked["round"]))
    there = [one for one in opened if (one[1].get("generation"), one[1].get("round")) in rounds]
    members = [_member(me, asked) for me, asked in there]
    return [member for member in members if member is not None]


def _member(me: Speaker, asked: Mapping[str, Any]) -> _Member | None:
    """None where it cannot be fine-tuned, and that stays so: the stack would be another one."""
    for _ in range(TRIES):
        with _left_out():
            return _Member(me, asked, me.tunings(asked))
    return None


@contextmanager
def _left_out() -> Iterator[None]:
    """Let a speaker that cannot be fine-tuned be left out. Raises DiskError."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in REFUSED:
            raise DiskError(str(error)) from error


def _keep(member: _Member, judge: FineTuned, tuned: FineTuned) -> None:
    """Raises DiskError: a run on a full disk would lose speaker after speaker."""
    with _left_out():
        member.me.keep_tuned(member.asked, judge, tuned)
