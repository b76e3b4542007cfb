"""The speakers of a cohort, fine-tuned as one stack by the worker that simulates them.

Each device keeps its own result, so that the client app, when it is asked, has finished already.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

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
"""Of each step with one speaker."""
T = TypeVar("T")


class _Opened(NamedTuple):
    me: Speaker
    asked: Mapping[str, Any]
    answers: bool
    """Whether it was sent a message now."""


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
    tries = [_tried(partial(_open, context, message, stack)) for context, message in cohort]
    opened = [one for one in tries if one is not None]
    rounds = {_round(one.asked) for one in opened if one.answers}
    there = [one for one in opened if _round(one.asked) in rounds]
    members = [_tried(partial(_member, one)) for one in there]
    return [member for member in members if member is not None]


def _open(context: Context, message: Message | None, stack: ExitStack) -> _Opened:
    with ExitStack() as own:
        own.enter_context(locked(folder(context) / MODELS))
        me = speaker.open_folder(folder(context))
        asked = me.store.state().get("asked", {}) if message is None else receive(me, message)
        stack.push(own.pop_all())
    return _Opened(me, asked, message is not None)


def _round(asked: Mapping[str, Any]) -> tuple[Any, Any]:
    return asked.get("generation"), asked.get("round")


def _member(opened: _Opened) -> _Member:
    return _Member(opened.me, opened.asked, opened.me.tunings(opened.asked))


def _tried(step: Callable[[], T]) -> T | None:
    """What comes of a step, None where it cannot be done: the stack is another one without a
    speaker, so that has to stay so. Raises DiskError.
    """
    for _ in range(TRIES):
        with _left_out():
            return step()
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
    _tried(partial(member.me.keep_tuned, member.asked, judge, tuned))
