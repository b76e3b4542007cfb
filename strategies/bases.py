"""M_s for every speaker: decided by a rule, built as a stream of tensors, sent to the device."""

from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from fedspeech import protocol
from fedspeech.aggregation import AggregationRule, ask_peers
from fedspeech.config import Config
from fedspeech.errors import ModelError, RuleError
from fedspeech.models.description import ModelDescription
from fedspeech.population import Population
from fedspeech.tensors import Tensors, check_like, sha256
from strategies.exchange import Exchange
from strategies.questions import Questions
from strategies.view import Federation, SpeakerView


class BaseModels:
    """Runs each rule once a round, for all speakers together, and sends out what comes of it.

    `installed` is the hash of the model that each device was sent last.
    """

    def __init__(
        self,
        rules: Mapping[str, AggregationRule],
        population: Population,
        description: ModelDescription,
        config: Config,
        exchange: Exchange,
        questions: Questions,
    ) -> None:
        self.installed: dict[str, str] = {}
        self._rules, self._population, self._description = rules, population, description
        self._config, self._exchange, self._questions = config, exchange, questions
        self._views: dict[str, dict[str, SpeakerView]] = {}

    def forget(self) -> None:
        """The personal models have changed."""
        self._views.clear()

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

    def install(self, grid: Grid, round: int, base: str, alpha: float | None) -> None:
        """Send every speaker its M_s or, where the server mixes, its mix at `alpha`.

        Raises RuleError where the rule gives weights or tensors that cannot be used.
        """
        if base not in self._views:
            self._views[base] = self._decide(grid, round, base)
        messages = self._messages(grid, round, base, alpha)
        replies = grid.send_and_receive(messages, timeout=self._exchange.timeout)
        for speaker, content in self._exchange.answers(round, protocol.INSTALL, replies):
            self.installed[speaker] = protocol.text(content)["installed"]

    def _decide(self, grid: Grid, round: int, base: str) -> dict[str, SpeakerView]:
        """Every speaker's view, with the weights that the rule answered."""
        federation = self.federation(round)
        views = {speaker: SpeakerView(federation, speaker) for speaker in federation.speakers}
        weights = ask_peers(
            self._rules[base], views, lambda asked: self._questions.ask(grid, round, asked)
        )
        for speaker, given in weights.items():
            views[speaker].decide(given)
        return {speaker: views[speaker] for speaker in weights}

    def _still_there(self, base: str) -> dict[str, SpeakerView]:
        return {s: view for s, view in self._views[base].items() if s in self._exchange.active}

    def _messages(
        self, grid: Grid, round: int, base: str, alpha: float | None
    ) -> Iterator[Message]:
        generic = dict(self._population.generic())
        generation = sha256(generic)
        for speaker, view in self._still_there(base).items():
            model = self._build(base, speaker, view, alpha, generic)
            name = sha256(model)
            sent = {} if name == generation else {"model": protocol.pack(model)}
            # Base and alpha make the same model in another cell of the table another question.
            said = {"base": base, "alpha": alpha, "model": name, "held": not sent}
            content = protocol.content(said, **sent)
            yield self._exchange.message(grid, round, protocol.INSTALL, speaker, content)

    def _build(
        self, base: str, speaker: str, view: SpeakerView, alpha: float | None, generic: Tensors
    ) -> Tensors:
        rule = self._rules[base]
        stream = rule.combine(speaker, view)
        if alpha is not None:
            stream = rule.mix(self._population.personal(speaker), stream, alpha)
        model = dict(stream)
        try:
            check_like(model, generic)
        except ModelError as error:
            raise RuleError(f"rule {base} built an unusable model for {speaker}: {error}") from None
        return model
