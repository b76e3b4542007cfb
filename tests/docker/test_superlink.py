import sqlite3
from contextlib import closing

import superlink
from flwr.supercore import sql_mixin


def test_the_database_waits_a_minute_for_its_turn_and_is_else_what_flower_wants(monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    superlink.be_patient()
    with closing(sqlite3.connect(":memory:")) as database:
        sql_mixin._set_sqlite_pragmas(database, None)
        asked = ("busy_timeout", "foreign_keys", "synchronous")
        found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]
    assert found == [60_000, 1, 1]
