"""The server's way through a run: corpus, G, federation, results, report."""

import logging
from collections.abc import Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp

from fedspeech import config as configuration
from fedspeech import corpus, models, participation, protocol, report, rules, tensors, traces
from fedspeech.aggregation import AggregationRule
from fedspeech.budgets import Budgets
from fedspeech.config import Config
from fedspeech.corpus import partition as cutting
from fedspeech.corpus import statistics
from fedspeech.corpus.partition import Client, Partition, pseudonym
from fedspeech.errors import ConfigError
from fedspeech.participation import IMPROVE, PERSONALIZATION, Round
from fedspeech.population import Population
from fedspeech.protocol import Member
from fedspeech.run_folder import RunFolder, cache_folder
from fedspeech.simulation import devices, sizing
from fedspeech.simulation.grid import SimulatedGrid
from fedspeech.tensors import Tensors
from server import attendance, generic, improve, ledger, meeting, results
from server.attended_grid import AttendedGrid
from server.detail import detail
from server.fleet import FleetGrid
from server.generic import Generic
from server.journal import Journal
from server.left_behind import LeftBehind, check_races, check_states
from server.metrics import Metrics
from server.recorded_grid import RecordedGrid
from server.releases import release
from server.roster import Roster, describe
from server.stages import Stages
from strategies.outcome import Failure
from strategies.personalization import Personalization

app = ServerApp()
log = logging.getLogger("fedspeech")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration names, into the folder that it names."""
    asked = context.run_config
    path = Path(str(asked["experiment"]))
    settings = configuration.load(path)
    if not isinstance(settings, Config):
        raise ConfigError(f"{path}: kind = {settings.kind!r} has no clients; use `fedspeech run`")
    if not isinstance(grid, SimulatedGrid):
        settings = _one_by_one(settings)
    run = RunFolder(Path(str(asked["out"])).absolute())
    run.open(settings, resume=bool(asked.get("resume", False)))
    try:
        if settings.deployment is not None:
            name = settings.engine.superlink or "of the run"
            grid = FleetGrid(grid, name, run.path / "spool", settings.deployment.deadline)
        found = rules.of_experiment(settings)
        models.find(settings.model.name, settings.model.sizes)
        if settings.federation.improve is not None:
            improve.strategy(settings.federation.improve)
        generic.check(settings)
        stages = Stages(run)
        with stages.stage("corpus"):
            speech = _read_corpus(settings, run)
        with closing(Journal(run.journal)) as journal, closing(Metrics(run.metrics)) as metrics:
            _Run(settings, run, speech, journal, metrics, stages).go(grid, found)
        report.write(run.path)
    finally:
        run.close()


def _one_by_one(settings: Config) -> Config:
    """The settings on a grid that is not our own."""
    if settings.engine.cohort_size > 1:
        raise ConfigError(
            f"engine.cohort = {settings.engine.cohort}: Flower asks every client by itself; "
            "expected 1, or a run by `fedspeech run`"
        )
    return sizing.with_cohort(settings, 1)


@dataclass(frozen=True)
class _Speech:
    partition: Partition
    table: list[dict[str, Any]]
    rounds: tuple[Round, ...]
    """Who takes part in each round; on boxes, that is not known yet."""
    budgets: Mapping[str, Mapping[str, str]]
    """Of each speaker's device, as `budget.speakers` has them."""


def _read_corpus(settings: Config, run: RunFolder) -> _Speech:
    speech = corpus.load(settings.corpus)
    if settings.deployment is not None:
        run.write_environment(settings.seed, statistics.fingerprint(speech))
        public = cutting.public(speech, settings.partition)
        return _Speech(public, statistics.table(public), (), {})
    partition = cutting.partition(speech, settings.partition)
    _warn_of_left_out(partition.left_out)
    rounds = attendance.plan(settings, partition.clients, set(cutting.by_speaker(speech)))
    improve.check(settings.federation, attendance.of(IMPROVE, rounds))
    budgets = _read_budgets(settings, partition.clients, set(cutting.by_speaker(speech)))
    run.write_environment(settings.seed, statistics.fingerprint(speech))
    devices.lay_out(partition.clients, run.devices, settings.seed)
    if settings.federation.participation is not None:
        attendance.keep(rounds, run)
    return _Speech(partition, statistics.table(partition), rounds, budgets)


def _read_budgets(
    settings: Config, clients: Sequence[Client], known: Set[str]
) -> dict[str, dict[str, str]]:
    """The lines of `budget.speakers`, by the pseudonyms of the clients."""
    if settings.budget.speakers is None:
        return {}
    found = traces.budgets(Path(settings.budget.speakers), known)
    return {
        pseudonym(settings.seed, client.speaker): found[client.speaker]
        for client in clients
        if client.speaker in found
    }


@dataclass(frozen=True)
class _Run:
    """One run; every step finds what an interrupted one left behind."""

    settings: Config
    run: RunFolder
    speech: _Speech
    journal: Journal
    metrics: Metrics
    stages: Stages

    def go(self, grid: Grid, found: Mapping[str, AggregationRule]) -> None:
        """From the corpus to the results."""
        if self.settings.deployment is None:
            check_states(self.run.devices)
            check_races(self.run.devices, self.journal)
        with self.stages.stage("generic model"):
            trained = self._obtain_generic()
        with self.stages.stage("federation"):
            members, absent = self._meet(grid)
            recorded = RecordedGrid(grid, self.journal, self.run.path)
            recorded.know(members)
            if isinstance(grid, FleetGrid):
                attendance.watch(grid, self.journal, members)
            plan = self.speech.rounds or attendance.everybody(self.settings, members)
            rounds = attendance.of(PERSONALIZATION, plan)
            _warn_of_large_groups(found, len({s for one in rounds for s in one.answers}))
            population = Population(self.run.models)
            model, failures = self._improve(recorded, trained, members, plan)
            line = release(self.settings, model, trained.description, population)
            trained.description.write(population.generic_path.with_suffix(".json"))
            strategy = Personalization(
                *(found, population, trained.description, members, self.settings),
                *(self.journal, rounds, line, self._budgets(members, trained.model)),
            )
            away = (Failure(s, 0, protocol.DESCRIBE, why) for s, why in absent.items())
            strategy.outcome.failures.extend(away)
            simulated = self.run.devices if self.settings.deployment is None else None
            ended = (self.journal.last_round() or {}).get("active", ())
            left = LeftBehind(strategy.personal, simulated, ended)
            recorded.keep(protocol.PERSONALIZE, left.keeper())
            recorded.before_sending = left.check
            speakers = {member.node: member.speaker for member in members}
            recorded.detail = lambda reply: self._tell_losses(speakers, reply)
            arrays = ArrayRecord(dict(population.generic()))
            if self.settings.deployment is None:
                sizing.tell(self.settings)
            strategy.start(recorded, arrays, self.settings.federation.rounds)
            strategy.outcome.failures[:0] = failures  # of a stage that drops nobody from this one
            _warn_of_skipped(strategy.outcome.skipped)
            self.stages.deaths = getattr(grid, "deaths", 0)
            self.stages.errors = getattr(grid, "errors", 0)
        with self.stages.stage("results"):
            self._write(strategy, trained, members)

    def _meet(self, grid: Grid) -> Roster:
        if isinstance(grid, FleetGrid):
            return meeting.meet(grid, self.journal, self.run, self.settings)
        seed, clients = self.settings.seed, self.speech.partition.clients
        expected = {pseudonym(seed, client.speaker) for client in clients}
        roster = describe(grid, self.journal, expected, self.settings.federation.quorum)
        for speaker, why in roster.absent.items():
            log.warning("speaker %s is not there: %s", speaker, why)
        return roster

    def _obtain_generic(self) -> Generic:
        features = cache_folder() / "features"
        return generic.obtain(
            self.speech.partition, self.settings, self.run, features, self.metrics.epoch
        )

    def _tell_losses(self, speakers: Mapping[int, str], reply: Message) -> str:
        """What the progress line says of a reply."""
        if reply.metadata.message_type == protocol.PERSONALIZE:
            losses = protocol.text(reply.content)["losses"]
            speaker = speakers[reply.metadata.src_node_id]
            self.metrics.fine_tuning(speaker, int(reply.metadata.group_id), losses)
        return detail(reply)

    def _improve(
        self,
        recorded: RecordedGrid,
        trained: Generic,
        members: Sequence[Member],
        plan: Sequence[Round],
    ) -> tuple[Tensors, list[Failure]]:
        """G, improved where the settings say so, and who did not answer meanwhile."""
        rounds = attendance.of(IMPROVE, plan)
        if not rounds:
            return trained.model, []
        improve.check(self.settings.federation, attendance.among(members, rounds))
        nodes = {member.speaker: member.node for member in members}
        quorum = self.settings.federation.quorum
        grid = AttendedGrid(recorded, nodes, rounds, quorum, self.journal)
        return improve.run(grid, trained.model, trained.description, self.settings), grid.failures

    def _budgets(self, members: Sequence[Member], model: Tensors) -> Budgets:
        """Of the run, with what a device's line in a file says and what it says itself."""
        lines = self.speech.budgets
        own = {m.speaker: (m.budgets, lines.get(m.speaker, {})) for m in members}
        return Budgets(self.settings.budget, tensors.size(model), own)

    def _write(
        self, strategy: Personalization, trained: Generic, members: Sequence[Member]
    ) -> None:
        traffic = ledger.write(self.run.path / "ledger.csv", self.journal)
        curves = {
            "generic": {
                "train_loss": [epoch.loss for epoch in trained.epochs],
                "dev_wer": [epoch.word_error_rate for epoch in trained.epochs],
            }
        }
        self.metrics.outcome(strategy.outcome)
        content = results.assemble(
            strategy.outcome,
            self.settings,
            self.speech.table,
            {member.speaker: member.seconds for member in members},
            {**traffic, "full_model": tensors.size(trained.model)},
            curves,
            self._participation(members, strategy.outcome.failures),
        )
        self.run.write_json("results.json", content)

    def _participation(
        self, members: Sequence[Member], failures: Sequence[Failure]
    ) -> dict[str, Any] | None:
        """Who took part in each round, where that is not everybody in all of them."""
        if self.settings.federation.participation is not None:
            return participation.summary(self.speech.rounds)
        if self.settings.deployment is None:
            return None
        rounds = attendance.as_it_was(self.journal, members, failures)
        self.run.write_json(attendance.FILE, participation.record(rounds))
        return participation.summary(rounds)


def _warn_of_left_out(left_out: Mapping[str, str]) -> None:
    for speaker, why in sorted(left_out.items()):
        log.warning("speaker %s is left out: %s", speaker, why)


def _warn_of_large_groups(found: Mapping[str, AggregationRule], speakers: int) -> None:
    for base, rule in found.items():
        k = rule.largest_group()
        if k is not None and k >= speakers - 1:
            log.warning(
                "rules.%s: k = %d takes all %d other speakers: M_s is that of `mean`",
                base,
                k,
                speakers - 1,
            )


def _warn_of_skipped(skipped: Mapping[str, int]) -> None:
    for speaker, count in sorted(skipped.items()):
        if count:
            log.warning(
                "speaker %s: %d utterances of train_s were skipped; the vocabulary of G does not "
                "spell them, or with too many units for their length",
                speaker,
                count,
            )
