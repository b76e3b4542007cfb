"""The speakers of a cohort, fine-tuned as one stack by the worker that simulates them.

Each device keeps its own result, so that the client app, when it is asked, has finished already.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from flwr.app import Context, Message

from clients import speaker
from clients.app import folder, locked, receive
from clients.speaker import Speaker
from fedspeech.config.training import PersonalSettings
from fedspeech.errors import FedSpeechError
from fedspeech.training.personal import Tuning, fine_tune_together


class _Member(NamedTuple):
    me: Speaker
    asked: Mapping[str, Any]
    tunings: tuple[Tuning, Tuning]


def prepare(cohort: Sequence[tuple[Context, Message | None]]) -> None:
    """Fine-tune all speakers of a cohort, in the order of their ids.

    A cohort is whole or it is another one: a speaker that is not asked, since it answered before
    an interruption, is fine-tuned along with the others, and its stack is what it was. What it has
    finished it keeps: by now it would begin with another P_s. Who cannot be fine-tuned is left out,
    and says why when the client app asks.
    """
    with ExitStack() as stack:
        for context, _ in cohort:
            stack.enter_context(locked(folder(context)))
        members = _members(cohort)
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
                member.me.keep_tuned(member.asked, judge, model)


def _members(cohort: Sequence[tuple[Context, Message | None]]) -> list[_Member]:
    speakers = [speaker.open_folder(folder(context)) for context, _ in cohort]
    now: list[Mapping[str, Any] | None] = []
    for me, (_, message) in zip(speakers, cohort, strict=True):
        try:
            now.append(None if message is None else receive(me, message))
        except FedSpeechError:
            now.append({})
    rounds = {(asked["generation"], asked["round"]) for asked in now if asked}
    members = []
    for me, asked in zip(speakers, now, strict=True):
        asked = me.store.state().get("asked", {}) if asked is None else asked
        if (asked.get("generation"), asked.get("round")) not in rounds:
            continue
        try:
            members.append(_Member(me, asked, me.tunings(asked)))
        except FedSpeechError:
            continue
    return members
