"""Flower's Grid on simulated devices: in one process, or on Ray workers."""
