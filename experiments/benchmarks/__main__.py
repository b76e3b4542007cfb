"""`python -m experiments.benchmarks`."""

import sys

from experiments.benchmarks import run

if __name__ == "__main__":
    sys.exit(run.main(sys.argv[1:]))
