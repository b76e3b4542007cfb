"""Run benchmarks, keep what they find, show it.

    python -m experiments.benchmarks [--quick] [NAME ...]

All of them write `results.json`, `results.svg` and the tables of `README.md` beside this file as
they go; those that were not asked for stay as they were measured on this machine before. `--quick`
is for development: smaller cases, written to `runs/benchmarks/quick` instead.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.benchmarks import figure, tables
from experiments.benchmarks.harness import Channel, Child, Failed, Row, Setting, say
from fedspeech import interrupts, machine
from fedspeech.run_folder import processor
from fedspeech.tensors import write_whole

BENCHMARKS = {
    name: f"experiments.benchmarks.{name}"
    for name in (
        "engine_overhead",
        "fine_tuning",
        "start_to_end",
        "cohorts",
        "scaling",
        "kbest_search",
        "averaging",
        "memory",
        "diffs",
        "deployment",
        "distillation",
        "data_parallel",
        "straggler",
        "simulation",
    )
}
"""Modules by name: `rows`, `FULL` and `QUICK` plans, `LIMIT` in seconds, `PANELS`."""
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "benchmarks"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # As the `fedspeech` command has it: threads that spin slow a busy machine down many times.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def measure(channel: Channel, module_name: str, quick: bool, setting: Setting) -> None:
    """Answer one row after another; in a process of its own."""
    module = importlib.import_module(module_name)
    for row in module.rows(setting, module.QUICK if quick else module.FULL):
        channel.answer(row)


class Report:
    """What has been measured so far, in a folder; written again with each row."""

    def __init__(self, folder: Path, command: str, seed: int) -> None:
        self.folder, self._command = folder, command
        about = {"machine": about_machine(), "seed": seed}
        self.results: dict[str, Any] = {**about, "benchmarks": {}}
        with suppress(OSError, ValueError, KeyError):
            before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            if before["machine"] == self.results["machine"]:
                self.results["benchmarks"] = before["benchmarks"]

    def begin(self, name: str) -> dict[str, Any]:
        """Forget what was measured of a benchmark before."""
        date = time.strftime("%Y-%m-%d")
        one = {"date": date, "command": self._command, "seconds": 0.0, "rows": []}
        self.results["benchmarks"].pop(name, None)
        self.results["benchmarks"][name] = one
        return one

    def write(self) -> None:
        """results.json."""
        text = json.dumps(self.results, indent=1, ensure_ascii=False) + "\n"
        write_whole(
            self.folder / "results.json", lambda part: part.write_text(text, encoding="utf-8")
        )

    def show(self) -> None:
        """The figure, and the README's tables where there is one."""
        found = self.results["benchmarks"]
        modules = [
            importlib.import_module(path) for name, path in BENCHMARKS.items() if name in found
        ]
        panels = [panel for module in modules for panel in module.PANELS]
        rows = [row for one in found.values() for row in one["rows"]]
        figure.draw(self.folder / "results.svg", panels, rows)
        if (readme := self.folder / "README.md").exists():
            tables.update(readme, self.results)


def run(names: Sequence[str], quick: bool, report: Report, scratch: Path) -> list[Row]:
    """All rows; those of a benchmark that failed end with one that says why."""
    everything: list[Row] = []
    for name in names:
        say(f"{name} begins")
        one = report.begin(name)
        folder = scratch / name
        folder.mkdir(parents=True)
        setting = Setting(folder, report.results["seed"])
        child = Child(measure, BENCHMARKS[name], quick, setting)
        try:
            for row in child.answers(importlib.import_module(BENCHMARKS[name]).LIMIT):
                one["rows"].append(row)
                one["seconds"] = round(child.age, 1)
                report.write()
            child.close()
        except Failed as reason:
            one["rows"].append({"table": name, "failed": str(reason)})
        except KeyboardInterrupt:
            child.kill()
            raise
        one["seconds"] = round(child.age, 1)
        report.write()
        report.show()
        print(f"\n## {name}\n\n{tables.tables(one['rows'])}", flush=True)
        everything += one["rows"]
        _clear(folder)
    return everything


def _clear(folder: Path) -> None:
    """Remove what a benchmark wrote; its processes' own words stay."""
    logs = folder / "logs"
    kept = RUNS / "logs" / folder.name
    shutil.rmtree(kept, ignore_errors=True)
    if logs.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        logs.rename(kept)
    shutil.rmtree(folder, ignore_errors=True)


def about_machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": machine.cores(),
        "processor": processor(),
        "memory GiB": round(machine.memory_limit_bytes() / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "flwr", "ray")},
    }


def main(arguments: Sequence[str]) -> int:
    """The command; 1 where a benchmark failed as a whole, 130 where it was interrupted."""
    parser = argparse.ArgumentParser("python -m experiments.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="smaller cases, for development")
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.names) - set(BENCHMARKS)):
        known = ", ".join(BENCHMARKS)
        parser.error(f"unknown benchmark {unknown[0]}, expected some of {known}")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(QUIET, PYTHONPATH=os.pathsep.join(paths))
    scratch = RUNS / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    folder = RUNS / "quick" if asked.quick else HERE
    command = " ".join(["python -m experiments.benchmarks", *arguments])
    names = asked.names or list(BENCHMARKS)
    try:
        rows = run(names, asked.quick, Report(folder, command, 0), scratch)
    except KeyboardInterrupt:
        say("interrupted: what has finished is written")
        return interrupts.STATUS
    return int(any(row["table"] in BENCHMARKS for row in rows))
