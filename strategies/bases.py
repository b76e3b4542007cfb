"""M_s for every speaker: decided by a rule, built as a stream of tensors, sent to the device."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from flwr.app import Message
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.aggregation import AggregationRule, ask_peers
from fedspeech.config import Config
from fedspeech.errors import BudgetError, DiffError, ModelError, RuleError
from fedspeech.models.description import ModelDescription
from fedspeech.population import Population
from fedspeech.tensors import Tensors, TensorStream, check_like, size
from strategies.exchange import Exchange
from strategies.outcome import Decodings, Pushed, at_budget
from strategies.pushes import Pushes, Records
from strategies.questions import Questions
from strategies.view import Federation, SpeakerView

BUILT_TOGETHER_BYTES = 2**29
"""Of the M_s that are built side by side and wait to be sent."""
MOST_MAPPED = 2**14
"""Files that are read for them at once. Linux lets a process map 65,530."""


class BaseModels:
    """Runs each rule once a round, for all speakers together, and sends out what comes of it.

    `installed` is the hash of the model that each device was sent last; `decodings` says what each
    base had decoded in this round; `pushed` what its models took that were sent to be judged.
    """

    def __init__(
        self,
        rules: Mapping[str, AggregationRule],
        population: Population,
        description: ModelDescription,
        config: Config,
        exchange: Exchange,
        questions: Questions,
        pushes: Pushes,
    ) -> None:
        self.installed: dict[str, str] = {}
        self.decodings: dict[str, Decodings] = {}
        self.pushed: dict[tuple[str, float | None], dict[str, Pushed]] = {}
        self._rules, self._population, self._description = rules, population, description
        self._config, self._exchange, self._questions = config, exchange, questions
        self._pushes = pushes
        self._views: dict[str, dict[str, SpeakerView]] = {}

    def forget(self) -> None:
        """The personal models have changed."""
        self._views.clear()
        self.decodings.clear()

    def mixed_on_server(self, base: str) -> bool:
        """Whether devices are sent the mix: the settings say so, or the rule has its own `mix`."""
        own_mix = type(self._rules[base]).mix is not AggregationRule.mix
        return own_mix or self._config.federation.mix_on == "server"

    def peers(self, base: str) -> dict[str, Mapping[str, float]]:
        """The weights that a rule gave in this round, for the speakers that are still there."""
        return {speaker: view.weights for speaker, view in self._still_there(base).items()}

    def federation(self, round: int) -> Federation:
        """What all views of this moment share."""
        seconds = {speaker: member.seconds for speaker, member in self._exchange.active.items()}
        layers = self._description.layers()
        return Federation(self._population, seconds, layers, self._config.seed, round)

    def install(
        self,
        grid: Grid,
        round: int,
        base: str,
        alpha: float | None,
        to: Collection[str],
        choose: Sequence[float] | None = None,
    ) -> None:
        """Send those of `to` that have a P_s their M_s or, where the server mixes, their mix at
        `alpha`.

        With `choose` it is for the owner's use, and the device notes which of these alphas it
        takes; none of them where the server has mixed. Raises RuleError where the rule gives
        weights or tensors that cannot be used.
        """
        self.decide(grid, round, base, to)

        def messages(speakers: Collection[str]) -> protocol.Messages:
            made = self._installs(grid, round, base, alpha, choose, speakers)
            return protocol.Messages(made, len(speakers))

        def anew(lacking: list[str]) -> protocol.Messages:
            for speaker in lacking:
                self.installed.pop(speaker, None)
            return messages(lacking)

        replies = self._exchange.replies(grid, messages(self._still_there(base)), anew)
        for speaker, content in self._exchange.answers(round, protocol.INSTALL, replies):
            self.installed[speaker] = protocol.text(content)["installed"]

    def decide(self, grid: Grid, round: int, base: str, to: Collection[str] | None = None) -> None:
        """Let the rule answer for all speakers, or for those of `to`, unless it has in this round.

        Raises RuleError where it gives weights that cannot be used.
        """
        if base not in self._views:
            self._views[base] = self._decide(grid, round, base, to)

    def models(
        self, round: int, base: str, alpha: float | None, at: str | None = None
    ) -> Iterator[tuple[str, str, Records]]:
        """Speaker, hash of what the device will have, and M_s as a message carries it, one by one.

        Where the server mixes, its mix at `alpha` instead of M_s; `at` is one more budget. Who has
        a budget of its own that nothing fits drops out. Raises RuleError where the rule gives
        tensors that cannot be used.
        """
        took = self.pushed.setdefault((at_budget(base, at), alpha), {})
        for speaker, model in self._built(base, alpha, self._still_there(base)):
            with self._naming(speaker, round, protocol.EVALUATE):
                name, records, took[speaker] = self._pushes.once(speaker, model, at)
            if speaker in self._exchange.active:
                yield speaker, name, records

    def _built(
        self, base: str, alpha: float | None, speakers: Collection[str]
    ) -> Iterator[tuple[str, Tensors]]:
        """M_s, or the mix, of those of some speakers who are still there."""
        generic = dict(self._population.generic())
        there = {s: view for s, view in self._still_there(base).items() if s in speakers}
        views = iter(list(there.items()))
        peers = max((len(view.weights) for view in there.values()), default=0)
        fitting = min(BUILT_TOGETHER_BYTES // size(generic), MOST_MAPPED // (peers + 1))
        together = max(1, fitting)
        while some := dict(itertools.islice(views, together)):
            yield from self._build(base, some, alpha, generic)

    def _decide(
        self, grid: Grid, round: int, base: str, to: Collection[str] | None
    ) -> dict[str, SpeakerView]:
        """The views of those whose M_s is wanted, with the weights that the rule answered."""
        federation = self.federation(round)
        wanted = [s for s in federation.speakers if to is None or s in to]
        views = {speaker: SpeakerView(federation, speaker) for speaker in wanted}
        weights = ask_peers(
            self._rules[base], views, lambda asked: self._questions.ask(grid, round, asked)
        )
        self.decodings[base] = self._questions.decodings()
        for speaker, given in weights.items():
            views[speaker].decide(given)
        return {speaker: views[speaker] for speaker in weights}

    def _still_there(self, base: str) -> dict[str, SpeakerView]:
        return {s: view for s, view in self._views[base].items() if s in self._exchange.active}

    def _installs(
        self,
        grid: Grid,
        round: int,
        base: str,
        alpha: float | None,
        choose: Sequence[float] | None,
        speakers: Collection[str],
    ) -> Iterator[Message]:
        own = {} if choose is None else {"choose": list(choose)}
        for speaker, model in self._built(base, alpha, speakers):
            with self._naming(speaker, round, protocol.INSTALL):
                name, sent, _ = self._pushes.to_keep(speaker, model, self.installed.get(speaker))
            if speaker not in self._exchange.active:
                continue
            # Base and alpha make the same model in another round another question.
            said = {"base": base, "alpha": alpha, "model": name, "held": not sent, **own}
            content = protocol.content(said, **sent)
            yield self._exchange.message(grid, round, protocol.INSTALL, speaker, content)

    @contextmanager
    def _naming(self, speaker: str, round: int, kind: str) -> Iterator[None]:
        """Say of whom it is that M_s does not fit its budget; with one of its own it drops out."""
        try:
            yield
        except BudgetError as refusal:
            self._exchange.drop(speaker, round, kind, str(refusal))
        except DiffError as error:
            raise DiffError(f"budget of M_s for {speaker}: {error}") from None

    def _build(
        self,
        base: str,
        views: Mapping[str, SpeakerView],
        alpha: float | None,
        generic: Tensors,
    ) -> Iterator[tuple[str, Tensors]]:
        """Some speakers' models, tensor by tensor side by side.

        Speakers share peers: what one of them reads is still in the system's file cache for the
        others.
        """
        streams = [self._stream(base, speaker, view, alpha) for speaker, view in views.items()]
        models: list[Tensors] = [{} for _ in streams]
        for items in itertools.zip_longest(*streams):
            for model, item in zip(models, items, strict=True):
                if item is not None:
                    model[item[0]] = item[1]
        for speaker in views:
            model = models.pop(0)
            try:
                check_like(model, generic)
            except ModelError as error:
                raise RuleError(
                    f"rule {base} built an unusable model for {speaker}: {error}"
                ) from None
            yield speaker, model

    def _stream(
        self, base: str, speaker: str, view: SpeakerView, alpha: float | None
    ) -> TensorStream:
        rule = self._rules[base]
        stream = rule.combine(speaker, view)
        if alpha is None:
            return stream
        return rule.mix(self._population.personal(speaker), stream, alpha)
