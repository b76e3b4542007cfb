"""Flower's SuperLink, with more patience for its database.

Boxes that send at once take turns in writing, and by default a turn that does not come within five
seconds fails: on a busy machine an answer was lost by that.
"""

import sys

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

MILLISECONDS = "60000"


def be_patient() -> None:
    """Let every connection to the database that is opened from now on wait for its turn."""
    usual = dict(sql_mixin.SQLITE_PRAGMAS)
    sql_mixin.SQLITE_PRAGMAS = tuple({**usual, "busy_timeout": MILLISECONDS}.items())


if __name__ == "__main__":
    be_patient()
    sys.exit(flower_superlink())
