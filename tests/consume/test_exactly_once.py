"""Exactly once: a consumer that commits its LSN together with its effect, and is killed again and again."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

from tests.support import Channel, Start, until
from walpool import Cursor, WALEntry, WALReader, WALWriter

KILLS = 12


def open_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    database.execute("CREATE TABLE IF NOT EXISTS accounts (name BLOB PRIMARY KEY, balance INTEGER)")
    database.execute("CREATE TABLE IF NOT EXISTS effects (lsn INTEGER)")
    database.execute("CREATE TABLE IF NOT EXISTS done (one INTEGER PRIMARY KEY CHECK (one = 1), lsn INTEGER)")
    database.execute("INSERT OR IGNORE INTO done VALUES (1, 0)")
    return database


def consume(channel: Channel, log: Path, path: Path) -> None:
    """Add up amounts, each once: what the database has done already is passed by."""
    database = open_database(path)
    with Cursor(log, "accounts") as cursor:
        (done,) = database.execute("SELECT lsn FROM done").fetchone()
        assert cursor.position <= done, "the effect comes first"
        channel.send(None)
        for entry in cursor.follow(timeout=60):
            if entry.lsn > done:
                assert entry.lsn == done + 1
                database.execute("BEGIN")
                database.execute(
                    "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET balance = balance + ?",
                    (entry.key, int(entry.value), int(entry.value)),
                )
                database.execute("INSERT INTO effects VALUES (?)", (entry.lsn,))
                database.execute("UPDATE done SET lsn = ?", (entry.lsn,))
                database.execute("COMMIT")
                done = entry.lsn
            cursor.commit(entry.lsn, sync=entry.lsn % 16 == 0)


def test_an_effect_that_commits_with_its_lsn_happens_once_whatever_is_killed(
    memory: Path, child: Start, seed: int
) -> None:
    log, path = memory / "events.wal", memory / "effects.db"
    chance = random.Random(seed)
    balances = dict.fromkeys((b"ada", b"bob", b"eve"), 0)
    with WALWriter(log, size_limit=4096) as writer:
        open_database(path).close()
        writer.put(b"ada", b"0")
        for _ in range(KILLS):
            consumer = child(consume, log, path)
            consumer.receive()
            for _ in range(40):
                name, amount = chance.choice(list(balances)), chance.randrange(-50, 50)
                writer.append_batch([WALEntry.put(name, b"%d" % amount)] * 2)
                balances[name] += 2 * amount
            time.sleep(chance.random() * 0.02)
            consumer.kill()
            consumer.died()
        last_lsn = writer.sync()
        consumer = child(consume, log, path)
        until(lambda: writer.metrics.snapshot().cursors[0].position == last_lsn, "all was committed")
        consumer.kill()
    database = open_database(path)
    assert database.execute("SELECT lsn FROM effects ORDER BY rowid").fetchall() == [
        (lsn,) for lsn in range(1, last_lsn + 1)
    ]
    assert dict(database.execute("SELECT name, balance FROM accounts")) == balances
    database.close()
    with WALReader(log) as reader:
        assert len(reader.read_all()) == last_lsn
