"""The client app that is shipped, in a worker that also knows the benchmark's model sizes."""

from clients.app import app as app
from experiments.benchmarks import workload as workload
