"""Benchmarks of the platform beside what else could be used: `python -m experiments.benchmarks`."""
