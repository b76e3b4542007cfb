"""The server's way through a run: corpus, G, federation, results, report."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp

from fedspeech import config as configuration
from fedspeech import corpus, protocol, report, rules, tensors
from fedspeech.config import Config
from fedspeech.corpus import partition as cutting
from fedspeech.corpus import statistics
from fedspeech.population import Population
from fedspeech.run_folder import RunFolder, cache_folder
from fedspeech.simulation import devices
from fedspeech.training.generic import Epoch
from server import generic, improve, ledger, results
from server.generic import Generic
from server.journal import Journal
from server.metrics import Metrics
from server.recorded_grid import Keeper, RecordedGrid
from server.roster import describe
from strategies.personalization import Personalization

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration names, into the folder that it names."""
    asked = context.run_config
    settings = configuration.load(Path(str(asked["experiment"])))
    run = RunFolder(Path(str(asked["out"])).absolute())
    run.open(settings, resume=bool(asked.get("resume", False)))
    try:
        _Run(settings, run).go(grid)
    finally:
        run.close()


class _Run:
    """One run; every step finds what an interrupted one left behind."""

    def __init__(self, settings: Config, run: RunFolder) -> None:
        self.settings, self.run = settings, run
        self.metrics = Metrics(run.metrics)
        self.journal = Journal(run.journal)
        self.stages: list[dict[str, Any]] = []

    def go(self, grid: Grid) -> None:
        """From the corpus to the report."""
        tables = self.settings.rules
        found = {base: rules.find(base, tables.get(base, {})) for base in self._bases()}
        with self._stage("corpus"):
            self._read_corpus()
        with self._stage("generic model"):
            trained = self._obtain_generic()
        recorded = RecordedGrid(grid, self.journal, self.run.path)
        with self._stage("federation"):
            members = describe(grid, self.journal, len(self.partition.clients))
            recorded.know(members)
            population = self._improve(recorded, trained)
            strategy = Personalization(
                found, population, trained.description, members, self.settings
            )
            recorded.keep(protocol.PERSONALIZE, Keeper(strategy.keep, strategy.still_there))
            recorded.detail = _last_loss
            model = ArrayRecord(dict(population.generic()))
            strategy.start(recorded, model, self.settings.federation.rounds)
        with self._stage("results"):
            self._write(strategy, trained, {m.speaker: m.seconds for m in members})

    def _bases(self) -> list[str]:
        """Every base to compare; G itself always comes first, for its WER and that of P_s."""
        return ["generic", *(b for b in self.settings.federation.bases if b != "generic")]

    def _read_corpus(self) -> None:
        speech = corpus.load(self.settings.corpus)
        self.partition = cutting.partition(speech, self.settings.partition)
        devices.lay_out(self.partition.clients, self.run.devices, self.settings.seed)
        self.table = statistics.table(self.partition)
        self.run.write_environment(self.settings.seed, statistics.fingerprint(speech))

    def _obtain_generic(self) -> Generic:
        features = cache_folder() / "features"
        total = self.settings.generic.epochs
        with generic.shown(total) as show:
            return generic.obtain(
                self.partition,
                self.settings,
                self.run,
                features,
                lambda epoch: self._tell(epoch, show),
            )

    def _tell(self, epoch: Epoch, show: Callable[[Epoch], None]) -> None:
        self.metrics.epoch(epoch)
        show(epoch)

    def _improve(self, grid: RecordedGrid, trained: Generic) -> Population:
        population = Population(self.run.models)
        model = improve.run(grid, trained.model, trained.description, self.settings)
        tensors.write(population.generic_path, model)
        trained.description.write(population.generic_path.with_suffix(".json"))
        return population

    def _write(
        self, strategy: Personalization, trained: Generic, seconds: dict[str, float]
    ) -> None:
        traffic = ledger.write(self.run.path / "ledger.csv", self.journal)
        full = sum(t.numel() * t.element_size() for t in trained.model.values())
        curves = {
            "generic": {
                "train_loss": [epoch.loss for epoch in trained.epochs],
                "dev_wer": [epoch.word_error_rate for epoch in trained.epochs],
            }
        }
        self.metrics.outcome(strategy.outcome)
        self.metrics.close()
        content = results.assemble(
            strategy.outcome,
            self.settings,
            self.table,
            seconds,
            {**traffic, "full_model": full},
            curves,
        )
        self.run.write_json("results.json", content)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stages.append({"stage": name, "seconds": round(time.monotonic() - started, 2)})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.run.write_json("timing.json", {"stages": self.stages, "peak_memory_mib": round(peak)})
        if name == "results":
            report.write(self.run.path)


def _last_loss(reply: Message) -> str:
    losses = protocol.text(reply.content).get("losses", [])
    return f"loss {losses[-1]:.2f}" if losses else ""
