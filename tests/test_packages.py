"""Somebody else's rule: two packages of their own, installed beside fedspeech."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = sorted(path.parent for path in Path(__file__).parent.glob("packages/*/pyproject.toml"))
OTHERS = ("pytest", "strategies", "clients", "server", "flwr", "ray", "torchaudio")
LOOK = f"""
import json, sys
import fedspeech.testing
loaded = [name for name in {OTHERS} if name in sys.modules]
from fedspeech.rules import available, find
rules = [find("by-seconds", {{"least": 7.5}}), find("coordinate-median", {{}})]
print(json.dumps([loaded] + [[type(r).__name__, vars(r)] for r in rules] + available()))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with both packages installed by setuptools, from their pyproject.toml alone."""
    target = tmp_path_factory.mktemp("site")
    for package in PACKAGES:
        source = shutil.copytree(package, tmp_path_factory.mktemp("source") / package.name)
        install = "import setuptools; setuptools.setup()"
        steps = ["build_py", "--build-lib", target, "egg_info", "--egg-base", target]
        python(["-c", install, "-q", *steps], folder=source)
    return target


def python(arguments, folder, path=()):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_are_found_by_name_with_their_settings(site, tmp_path):
    loaded, by_seconds, median, *rules = json.loads(python(["-c", LOOK], tmp_path, [site]))
    assert loaded == [], "fedspeech.testing needs more than fedspeech"
    assert by_seconds == ["BySeconds", {"least": 7.5}]
    assert median == ["CoordinateMedian", {}]
    assert [
        "by-seconds",
        "fedspeech-by-seconds, by_seconds:BySeconds",
        "All others that spoke for at least `least` seconds, weighted by their seconds of speech.",
    ] in rules
    assert [
        "coordinate-median",
        "fedspeech-coordinate-median, coordinate_median:CoordinateMedian",
        "Each value of M_s is the median of that value in the models of all others.",
    ] in rules


def test_their_own_tests_pass_on_what_was_installed(site, tmp_path):
    tests = [test for package in PACKAGES for test in package.glob("test_*.py")]
    # Away from the sources, so that only the installed modules can be imported.
    copies = [shutil.copy(test, tmp_path) for test in tests]
    told = python(["-m", "pytest", "-v", "-p", "no:cacheprovider", *copies], tmp_path, [site])
    assert all(f"{test.name}::" in told for test in tests)
    assert len(tests) == len(PACKAGES) == 2
