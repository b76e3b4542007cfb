"""The command, where Flower, Ray and the training are not installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flwr", "ray") or name == "fedspeech.training":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Block())
from fedspeech.cli import main
main()
"""


def command(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
