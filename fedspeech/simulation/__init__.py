"""Flower's Grid on simulated devices: in one process, or on Ray workers."""

import os
import secrets
import sys

# Ray listens on all interfaces: without this process's token nobody else can send it work. Ray
# looks for it once, when it is imported.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
