"""The Flower strategy that runs any aggregation rule.

A round fine-tunes every speaker's P_s; then, for each base model that is compared, M_s is built by
its rule, installed, and judged by every device on its own test_s over a grid of alphas. Journal and
ledger are the grid's (`server/recorded_grid.py`): this class only says what is asked of whom.

Who takes part in a round is planned beforehand (`fedspeech/participation.py`). The others keep the
P_s of their last round; a speaker that has none yet is unknown to the rules, and begins with G. A
device that is late is asked in the round in which it will be done, for the round in which it began:
nothing reaches it in between. Where late answers are dropped it is not asked for one. M_s goes to
those who are asked in the next round; after the last one everybody who has a P_s is judged.

Boxes have no plan. Who was not there is asked in the next round again, for the round in which it
began unless late answers are dropped; and in the end each is brought what its owner will use.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedspeech import protocol, signed_line
from fedspeech.aggregation import AggregationRule
from fedspeech.budgets import Budgets
from fedspeech.config import Config
from fedspeech.errors import DiffError, RunError
from fedspeech.models.description import ModelDescription
from fedspeech.participation import Round
from fedspeech.population import Population
from fedspeech.protocol import Member
from fedspeech.releases import Releases
from fedspeech.rules import GENERIC
from fedspeech.tensors import sha256
from strategies.bases import BaseModels
from strategies.delivery import deliver
from strategies.exchange import Exchange
from strategies.judging import Judged, file, judgements
from strategies.outcome import Failure, Outcome
from strategies.personal import Personal, PersonalModels
from strategies.pushes import Pushes, Records
from strategies.questions import BYTES_PER_MESSAGE, BYTES_TO_A_BOX, Questions
from strategies.relations import relate


class Rounds(Protocol):
    """Where the strategy notes how a round ended, for a run that is resumed in a later one."""

    def last_round(self) -> dict[str, Any] | None:
        """What was noted of the last round that ended, or None."""

    def end_round(self, round: int, state: Mapping[str, Any]) -> None:
        """Note it; `state` is what JSON can say."""


class Personalization(Strategy):
    """Fine-tune, build every M_s by each rule, mix, judge.

    `outcome` is what was found out; `personal` keeps the models that arrive.
    """

    def __init__(
        self,
        rules: Mapping[str, AggregationRule],
        population: Population,
        description: ModelDescription,
        members: Sequence[Member],
        config: Config,
        rounds: Rounds,
        plan: Sequence[Round],
        releases: Releases,
        budgets: Budgets,
    ) -> None:
        self.rules = dict(rules)
        self.outcome = Outcome()
        self._description, self._config = description, config
        self._rounds, self._plan = rounds, plan
        self._overdue: dict[str, int] = {}
        """The round that each box owes a P_s of."""
        failures = self.outcome.failures
        returning = config.deployment is not None
        self._exchange = Exchange(members, config.federation.quorum, failures, returning)
        at_most = BYTES_TO_A_BOX if returning else BYTES_PER_MESSAGE
        self._questions = Questions(population, self._exchange, config.seed, at_most)
        self._generation = sha256(dict(population.generic()))
        self.personal = PersonalModels(population, budgets, config.budget.method)
        self._pushes = Pushes(population, releases, budgets, config.budget.method)
        self._signed = signed_line.statements(releases, self._generation)
        self._bases = BaseModels(
            *(self.rules, population, description, config),
            *(self._exchange, self._questions, self._pushes),
        )
        self._personal: dict[str, Personal] = {}
        """The P_s that each speaker sent last."""
        self._judged = Judged(GENERIC, None, {}, ())

    def summary(self) -> None:
        """Nothing: the run's own report says it."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 1,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds of the plan, and after the last one compare all base models.

        A device that does not answer within `timeout` seconds drops out. Raises RunError where
        fewer speakers than the quorum are left, RuleError where a rule answers something that is
        not allowed.
        """
        self._exchange.timeout = timeout
        go_on = self._config.federation.continue_from
        for round in range(self._go_on() + 1, num_rounds + 1):
            messages = self.configure_train(round, initial_arrays, ConfigRecord(), grid)
            anew = partial(self._anew, round, initial_arrays, grid)
            self.aggregate_train(round, self._exchange.replies(grid, messages, anew))
            if round < num_rounds and go_on is not None:
                on_server = self._bases.mixed_on_server(go_on.base)
                alpha = go_on.alpha if on_server else None
                self._bases.install(grid, round, go_on.base, alpha, self._plan[round].asked)
                self._end(round)
        for base in self.rules:
            self._compare(grid, num_rounds, base)
        federation = self._bases.federation(num_rounds)
        relate(grid, num_rounds, self._config, federation, self._questions, self.outcome)
        self._finish()
        if self._config.deployment is not None:
            deliver(grid, num_rounds, self._config.federation, self._bases, self.outcome)
        return Result()

    def _go_on(self) -> int:
        """The last round that has ended, with everything as it was then; 0 at the start."""
        state = self._rounds.last_round()
        if state is None:
            return 0
        if missing := sorted(self._state(0).keys() - state.keys()):
            raise RunError(
                f"the journal is damaged: of the last round it does not say {', '.join(missing)}; "
                "move it away to ask every device anew: what the devices have finished is kept"
            )
        if state["generation"] != self._generation:
            return 0
        self._bases.installed = dict(state["installed"])
        self._exchange.restore(state["active"], [Failure(**one) for one in state["failures"]])
        self._personal = {s: Personal(*hashes) for s, hashes in state["personal"].items()}
        self.outcome.skipped = dict(state["skipped"])
        self._overdue = dict(state["overdue"])
        self._check_kept(self._plan[state["round"]])
        return int(state["round"])

    def _check_kept(self, next: Round) -> None:
        """Raise RunError unless the P_s of those who sit the next round out are what they sent."""
        for speaker in sorted(set(self._exchange.active) - set(next.answers)):
            lost = self.personal.lost(speaker, self._personal[speaker].here)
            if lost is not None:
                raise RunError(
                    f"{lost}: missing or damaged, and the round that it is from has ended; without "
                    "it the run cannot be resumed"
                )

    def _end(self, round: int) -> None:
        self._rounds.end_round(round, self._state(round))

    def _state(self, round: int) -> dict[str, Any]:
        """What the next round starts from."""
        return {
            "round": round,
            "generation": self._generation,
            "active": list(self._exchange.active),
            "installed": self._bases.installed,
            "personal": self._personal,
            "skipped": self.outcome.skipped,
            "overdue": self._overdue,
            "failures": [vars(failure) for failure in self.outcome.failures],
        }

    # Fine-tuning.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> protocol.Messages:
        """One `train.personalize` for each answer; G goes along where it is not held."""
        answers = self._answers(server_round)
        self._exchange.admit(answers)
        count = len(answers.keys() & self._exchange.active)
        return protocol.Messages(self._train(server_round, arrays, grid), count)

    def _anew(
        self, server_round: int, arrays: ArrayRecord, grid: Grid, lacking: Collection[str]
    ) -> protocol.Messages:
        """One `train.personalize` for each speaker whose box lost what it went on from: from G."""
        for speaker in lacking:
            self._personal.pop(speaker, None)
            self._bases.installed.pop(speaker, None)
        made = self._train(server_round, arrays, grid, lacking)
        return protocol.Messages(made, len(lacking))

    def _train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        grid: Grid,
        lacking: Collection[str] | None = None,
    ) -> Iterator[Message]:
        """To everybody who is to answer, or to those alone who lack G and all else."""
        answers = self._answers(server_round)
        said = {
            "description": self._description.to_json(),
            "generation": self._generation,
            "round": server_round,
            "seed": self._config.seed,
            "settings": self._config.personal.model_dump(mode="json"),
        }
        for speaker, member in list(self._exchange.active.items()):
            if speaker not in answers or (lacking is not None and speaker not in lacking):
                continue
            held = member.generation if lacking is None else ""
            try:
                sent = self._bring_generic(speaker, held, arrays)
            except DiffError as refusal:
                self._exchange.drop(speaker, server_round, protocol.PERSONALIZE, str(refusal))
                continue
            late = {} if (began := answers[speaker]) == server_round else {"began": began}
            own = {"start": self._start(speaker), "budget": self.personal.budget(speaker), **late}
            content = protocol.content({**said, **own}, **sent)
            if self._signed:
                content[protocol.SIGNED] = protocol.write_text({protocol.SIGNED: self._signed})
            kind = protocol.PERSONALIZE
            yield self._exchange.message(grid, server_round, kind, speaker, content)

    def _answers(self, round: int) -> dict[str, int]:
        """Whose P_s is asked for in a round, and the round that it belongs to."""
        return {**self._plan[round - 1].answers, **self._overdue}

    def _owe(self, answers: Mapping[str, int], answered: Collection[str]) -> None:
        deployment = self._config.deployment
        if deployment is not None and deployment.late == "next-round":
            self._overdue = {s: began for s, began in answers.items() if s not in answered}

    def _bring_generic(self, speaker: str, held: str, whole: ArrayRecord) -> Records:
        if speaker in self._personal:
            return {}
        return self._pushes.generic(speaker, held, whole)

    def _start(self, speaker: str) -> dict[str, Any] | None:
        """Where a round begins: G (None), later alpha * P_s + (1 - alpha) * what is installed."""
        go_on = self._config.federation.continue_from
        installed = speaker in self._personal and speaker in self._bases.installed
        if not installed or go_on is None:
            return None
        mixed_already = self._bases.mixed_on_server(go_on.base)
        alpha = 0.0 if mixed_already else go_on.alpha
        return {"installed": self._bases.installed[speaker], "alpha": alpha}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note who answered; the models themselves were kept by `personal` as they arrived."""
        kind, one = protocol.PERSONALIZE, self._plan[server_round - 1]
        answered = set()
        for speaker, content in self._exchange.answers(server_round, kind, replies):
            said = protocol.text(content)
            self.outcome.skipped[speaker] = said["skipped"]
            self._personal[speaker] = self.personal.found(speaker, said)
            answered.add(speaker)
        self._owe(self._answers(server_round), answered)
        if one.asked:
            there, what = len(answered.intersection(one.asked)), "that were asked answered in time"
            self._exchange.check_quorum(server_round, kind, there, len(one.asked), what)
        self._questions.forget()
        self._bases.forget()
        return None, None

    # Base models.

    def _compare(self, grid: Grid, round: int, base: str) -> None:
        """Judge a base as the budgets have it, and within each budget that is compared."""
        self._bases.decide(grid, round, base)
        within = self._config.budget.compare if base != GENERIC else ()
        for at in (None, *within):
            on_server = self._bases.mixed_on_server(base)
            for judged in judgements(base, self._config.federation.alphas, on_server, at):
                self._judge(grid, round, judged)

    # Judging.

    def _judge(self, grid: Grid, round: int, judged: Judged) -> None:
        """Ask for the errors at alphas of the device, and file each under the cell's alpha."""
        self._judged = judged
        messages = self.configure_evaluate(round, ArrayRecord(), ConfigRecord(), grid)
        replies = grid.send_and_receive(messages, timeout=self._exchange.timeout)
        self.aggregate_evaluate(round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> protocol.Messages:
        """One `evaluate.personal` for each speaker; its M_s goes along."""
        count = len(self._bases.peers(self._judged.base))
        return protocol.Messages(self._evaluate(server_round, grid), count)

    def _evaluate(self, server_round: int, grid: Grid) -> Iterator[Message]:
        judged = self._judged
        models = self._bases.models(server_round, judged.base, judged.mixed, judged.at)
        for speaker, name, sent in models:
            said = {
                "base": judged.name,
                "model": name,
                "personal": self._personal[speaker].there,
                "alphas": list(judged.cells),
                "choose": list(judged.choose),
            }
            content = protocol.content(said, **sent)
            yield self._exchange.message(grid, server_round, protocol.EVALUATE, speaker, content)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """File the answers; the word error rate over all of them, in percent, by alpha."""
        cells = self._judged.cells
        words, wrong = 0, dict.fromkeys(cells.values(), 0)
        for speaker, content in self._exchange.answers(server_round, protocol.EVALUATE, replies):
            said = protocol.text(content)
            if not file(self.outcome, self._judged, speaker, said):
                why = "its test_s has other words than in an answer of before"
                self._exchange.drop(speaker, server_round, protocol.EVALUATE, why)
                continue
            words += sum(said["words"])
            for alpha, errors in zip(cells.values(), said["errors"], strict=True):
                wrong[alpha] += sum(errors)
        rates = {alpha: 100 * n / max(words, 1) for alpha, n in wrong.items()}
        return MetricRecord({f"alpha-{alpha:g}": rate for alpha, rate in rates.items()})

    def _finish(self) -> None:
        self.outcome.speakers = tuple(self._exchange.active)
        self.outcome.decodings = dict(self._bases.decodings)
        self.outcome.pushed = dict(self._bases.pushed)
        self.outcome.peers = {base: self._bases.peers(base) for base in self.rules}
