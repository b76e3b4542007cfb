"""Our engine: Ray workers, the journal, the strategy; each P_s ends up on the server's disk.

`how` is "fp32" or "bf16".
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from experiments.benchmarks.harness import Channel
from experiments.benchmarks.workload import Job, Workload
from fedspeech import protocol, tensors
from fedspeech.aggregation import AggregationRule
from fedspeech.budgets import Budgets
from fedspeech.config import Config
from fedspeech.config.budget import BudgetSettings
from fedspeech.models.description import ModelDescription
from fedspeech.participation import PERSONALIZATION, Round
from fedspeech.population import Population
from fedspeech.protocol import Member
from fedspeech.releases import Releases
from fedspeech.run_folder import RunFolder
from fedspeech.simulation.launch import make_grid
from server.journal import Journal
from server.recorded_grid import Keeper, RecordedGrid
from server.roster import describe
from strategies.bases import BaseModels
from strategies.exchange import Exchange
from strategies.personalization import Personalization
from strategies.pushes import Pushes
from strategies.questions import Questions

NO_BUDGETS = Budgets(BudgetSettings(), 0, {})


class Engine(NamedTuple):
    """What of the engine's settings is not its default; a cohort of one is the plain loop."""

    workers: int
    cohort: int = 1


CLIENT = "experiments.benchmarks.contestants.our_client:app"


def serve(channel: Channel, folder: Path, engine: Engine) -> None:
    """Answer each job with the seconds that it took."""
    held, run = Workload(folder), RunFolder(folder)
    grid = make_grid(Config.model_validate({"engine": engine._asdict()}), run, CLIENT)
    try:
        with closing(Journal(run.journal)) as journal:
            recorded = RecordedGrid(grid, journal, folder)
            members = describe(grid, journal, [path.name for path in held.devices], 1.0).members
            recorded.know(members)
            channel.answer("ready")
            for job in channel:
                strategy = _of_job(held, run, journal, members[: job.speakers], job)
                started = perf_counter()
                personalize(strategy, recorded, ArrayRecord(held.generic(job.size)))
                channel.answer(perf_counter() - started)
    finally:
        grid.close()


def _of_job(
    held: Workload, run: RunFolder, journal: Journal, members: list[Member], job: Job
) -> Personalization:
    population = Population(run.models / job.size)
    if not population.generic_path.exists():
        tensors.write(population.generic_path, held.generic(job.size))
    personal = job.settings(job.how).model_dump(mode="json")
    settings = Config.model_validate({"seed": job.seed, "personal": personal})
    about = held.description(job.size)
    return strategy_of(population, about, members, settings, journal)


def strategy_of(
    population: Population,
    about: ModelDescription,
    members: Sequence[Member],
    settings: Config,
    journal: Journal,
) -> Personalization:
    """The strategy of a run with one round, in which everybody takes part."""
    asked = {member.speaker: 0.0 for member in members}
    rounds = [Round(PERSONALIZATION, 1, asked, arrived={}, absent={}, seconds=0.0)]
    line = Releases(population.folder / "releases")
    line.begin(population.generic_path)
    return Personalization(
        *({}, population, about, members, settings, journal, rounds), *(line, NO_BUDGETS)
    )


def base_models(
    rules: Mapping[str, AggregationRule],
    population: Population,
    about: ModelDescription,
    members: Sequence[Member],
) -> BaseModels:
    """What builds M_s in a run."""
    settings, exchange = Config(), Exchange(members, 1.0, [])
    exchange.admit(member.speaker for member in members)
    questions = Questions(population, exchange, settings.seed)
    pushes = Pushes(population, Releases(population.folder / "releases"), NO_BUDGETS, "sparse")
    return BaseModels(rules, population, about, settings, exchange, questions, pushes)


def personalize(strategy: Personalization, grid: RecordedGrid, generic: ArrayRecord) -> None:
    """The round of fine-tuning of a run. Raises RuntimeError where a speaker dropped out."""
    kept = strategy.personal

    def still_there(speaker: str, content: RecordDict) -> bool:
        return kept.lost(speaker, protocol.text(content)["kept"]) is None

    grid.keep(protocol.PERSONALIZE, Keeper(kept.keep, still_there))
    messages = strategy.configure_train(1, generic, ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    for failure in strategy.outcome.failures:
        raise RuntimeError(f"{failure.speaker} dropped out: {failure.reason}")
