"""The clients of a campaign: each searches as a tenant, and writes rows of its own."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import make_conninfo

TENANTS = 4
ROLE = "pgrerank_chaos_reader"
SLACK = 0.1
"""Seconds by which an answer may outlast its deadline."""
HANG = 30
"""Seconds after which a search is taken for one that hangs."""
WORDS = ("cat", "day", "pool", "bread", "flour", "water", "salt", "time", "number", "one", "two")
TIMEOUTS = (0.3, 0.6, 1.0, 2.0)
OF_OURS = ("PGR01", "PGR02", "PGR03")


class Lag(threading.Thread):
    """How long this process was kept from running: a machine that is too busy is no fault."""

    def __init__(self) -> None:
        super().__init__(name="lag", daemon=True)
        self._late: list[tuple[float, float]] = []
        self.start()

    def run(self) -> None:
        """Sleep, and note by how much each sleep was too long."""
        before = time.monotonic()
        while True:
            time.sleep(0.005)
            now = time.monotonic()
            if now - before > 0.01:
                self._late.append((now, now - before - 0.005))
                del self._late[:-20_000]
            before = now

    def between(self, begin: float, end: float) -> float:
        """Seconds in all between two times."""
        lost = 0.0
        for when, late in reversed(self._late):
            if when < begin:
                break
            lost += late if when < end + 0.05 else 0.0
        return min(lost, end - begin)


def starved(pid: int) -> float:
    """Seconds that a process has waited for a processor since it began; 0 where none can tell."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text("utf-8").split()[1]) / 1e9
    return 0.0


class Model:
    """What must be in a table: texts by key, and the keys of which either text may be there."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.doubtful: dict[int, set[str | None]] = {}

    def commit(self, changes: dict[int, str | None]) -> None:
        """What has been done for certain."""
        for key, text in changes.items():
            if text is None:
                self.texts.pop(key, None)
            else:
                self.texts[key] = text

    def doubt(self, changes: dict[int, str | None]) -> None:
        """What may have been done; its keys are left alone from now on."""
        for key, text in changes.items():
            self.doubtful[key] = {self.texts.pop(key, None), text}


class Client(threading.Thread):
    """Searches and writes at random, by a seed, until told to stop."""

    def __init__(
        self, number: int, seed: str, dsn: str, lag: Lag, violate: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.number, self.tenant = number, number % TENANTS
        self.random = random.Random(f"{seed}-client-{number}")
        self.dsn, self._lag, self._violate = dsn, lag, violate
        self.model = Model()
        self.ending = threading.Event()
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.searched: list[tuple[float, float, bool]] = []
        self._keys = 0
        self._reader: psycopg.Connection[Any] | None = None
        self._writer: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        """One deed after the other. Postgres may be down at any time."""
        while not self.ending.wait(self.random.uniform(0, 0.4)):
            try:
                if self.random.random() < 0.6:
                    self.search()
                else:
                    self.write()
            except (psycopg.OperationalError, errors.AdminShutdown, errors.CrashShutdown):
                self.counts["connections lost"] += 1
                self._drop()
                self.ending.wait(0.2)
            except Exception as error:
                self._violate(f"{self.name}: {type(error).__name__}: {error}")
                self._drop()

    def _drop(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                with contextlib.suppress(psycopg.Error):
                    connection.close()
        self._reader = self._writer = None

    # Searching

    def search(self) -> None:
        """One search of this tenant, in an old session or a new one."""
        if self._reader is not None and self.random.random() < 0.3:
            self._reader.close()
            self._reader = None
        if self._reader is None:
            conninfo = make_conninfo(self.dsn, user=ROLE, password=ROLE)
            self._reader = psycopg.connect(conninfo, autocommit=True)
            self._reader.execute(
                "SELECT set_config('app.tenant', %s, false),"
                " set_config('statement_timeout', %s, false)",
                (str(self.tenant), f"{HANG}s"),
            )
        timeout = self.random.choice(TIMEOUTS)
        strict = self.random.choice((None, None, None, False, True))
        backend = self._reader.info.backend_pid
        waited = starved(backend)
        begun = time.monotonic()
        rows: list[tuple[int, bool, str | None, float]] = []
        failed = False
        try:
            rows = self._reader.execute(
                "SELECT id, degraded, reason,"
                " extract(epoch FROM clock_timestamp() - statement_timestamp())::float8"
                " FROM pgrerank.documents_search(%s,"
                " timeout => %s * interval '1 second', strict => %s)",
                (self.text(3), timeout, strict),
            ).fetchall()
        except psycopg.Error as error:
            if error.sqlstate not in OF_OURS:
                raise
            failed = True
            self.reasons[f"{timeout} s, raised: {error.diag.message_primary}"] += 1
        waited = max(0.0, starved(backend) - waited)
        self._judge(begun, timeout, waited, rows)
        if rows and rows[0][2]:
            self.reasons[f"{timeout} s: {rows[0][2]}"] += 1
        self.counts["searches"] += 1
        self.counts["failed"] += failed
        self.searched.append(
            (begun, time.monotonic(), not failed and not any(row[1] for row in rows))
        )

    def _judge(self, begun: float, timeout: float, waited: float, rows: list[Any]) -> None:
        ended = time.monotonic()
        time.sleep(0.01)  # in which the last lag is noted
        late = ended - begun - timeout - self._lag.between(begun, ended) - waited
        if late > SLACK:
            self._violate(
                f"deadline: {self.name} waited {ended - begun:.3f} s for {timeout} s,"
                f" lag {self._lag.between(begun, ended):.3f} s, backend starved {waited:.3f} s,"
                f" {len(rows)} rows, {rows[0][3] if rows else 0:.3f} s in the server"
            )
        if strangers := [key for key, *_ in rows if key % TENANTS != self.tenant]:
            self._violate(f"visibility: tenant {self.tenant} saw {strangers}")

    # Writing

    def text(self, words: int) -> str:
        """Some words; the key of a document makes it its own."""
        return " ".join(self.random.choices(WORDS, k=words))

    def _new_key(self) -> int:
        self._keys += 1
        return (self.number * 100_000 + self._keys) * TENANTS + self.tenant

    def write(self) -> None:
        """A transaction of some inserts, updates and deletes; one of ten is rolled back."""
        changes: dict[int, str | None] = {}
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            known = [key for key in self.model.texts if key not in changes]
            deed = self.random.random()
            if not known or deed < 0.45:
                changes[self._new_key()] = f"{self.text(8)} {self._keys}"
            elif deed < 0.8:
                changes[self.random.choice(known)] = f"{self.text(8)} changed"
            else:
                changes[self.random.choice(known)] = None
        roll_back = self.random.random() < 0.1
        self.transact(changes, "documents", roll_back=roll_back)

    def transact(
        self, changes: dict[int, str | None], table: str, *, roll_back: bool = False
    ) -> None:
        """Make the changes in one transaction, and note what became of it."""
        if self._writer is None:
            self._writer = psycopg.connect(self.dsn)
        for key, text in changes.items():
            if text is None:
                self._writer.execute(f"DELETE FROM {table} WHERE id = %s", (key,))
            else:
                self._writer.execute(
                    f"INSERT INTO {table} VALUES (%s, %s, %s)"
                    " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                    (key, text, key % TENANTS),
                )
        if roll_back:
            self._writer.rollback()
            return
        try:
            self._writer.commit()
        except psycopg.Error:
            self.model.doubt(changes)
            raise
        self.model.commit(changes)
        self.counts["writes"] += len(changes)


class Owner(Client):
    """Writes to a table of its own, empties it, and changes rerankers under way."""

    def run(self) -> None:
        """As a client."""
        self.dsn = make_conninfo(self.dsn, options="-c statement_timeout=60s")
        super().run()

    def search(self) -> None:
        """Change a reranker instead, now and then."""
        deed = self.random.random()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            if deed < 0.1:
                count = self.random.randint(20, 200)
                connection.execute(
                    "SELECT pgrerank.alter_reranker('documents', candidates => %s)", (count,)
                )
                self.counts["alter"] += 1
            elif deed < 0.15:
                pool = self.random.choice((1, 2, 3))
                connection.execute(
                    "SELECT pgrerank.alter_reranker('notes', token_pool => %s)", (pool,)
                )
                self.counts["generation"] += 1
            elif deed < 0.18:
                with contextlib.suppress(errors.ObjectNotInPrerequisiteState):
                    connection.execute("SELECT pgrerank.rollback_reranker('notes')")
                    self.counts["rollback"] += 1

    def write(self) -> None:
        """Rows of its own table, and now and then all of them at once."""
        if self.random.random() > 0.05:
            key = self._new_key()
            self.transact({key: f"{self.text(8)} {self._keys}"}, "notes")
            return
        if self._writer is None:
            self._writer = psycopg.connect(self.dsn)
        self._writer.execute("TRUNCATE notes")
        gone: dict[int, str | None] = dict.fromkeys([*self.model.texts, *self.model.doubtful])
        try:
            self._writer.commit()
        except psycopg.Error:
            for key, texts in self.model.doubtful.items():
                texts.add(None)
                gone.pop(key)
            self.model.doubt(gone)
            raise
        self.model.texts.clear()
        self.model.doubtful.clear()
        self.counts["truncates"] += 1
