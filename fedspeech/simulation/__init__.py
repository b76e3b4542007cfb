"""Flower's Grid on simulated devices: in one process, or on Ray workers."""

import fedspeech.cluster  # noqa: F401  (it settles what Ray looks for, before Flower imports it)
