"""Writes that no trigger saw are found by comparing source and side table page by page."""

from __future__ import annotations

import json

import psycopg
import pytest
from typer.testing import CliRunner

from pgrerank.cli import app
from tests.helpers.workers import settle


@pytest.fixture
def parts(db, source):
    """A reranker by words alone over a partitioned table with 20 encoded documents."""
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (100)")
    db.execute("CREATE TABLE high PARTITION OF docs FOR VALUES FROM (100) TO (200)")
    db.execute("INSERT INTO docs SELECT i * 10, 'text ' || i FROM generate_series(0, 19) i")
    db.execute("SELECT pgrerank.create_reranker('parts', 'docs', '{body}')")
    settle(db)
    return db


def reconcile(db) -> int:
    """Compare all pages, of three documents each; how many there were."""
    for pages in range(1, 100):
        if db.execute("SELECT pgrerank.reconcile('parts', 3)").fetchone() == (True,):
            return pages
    raise AssertionError("reconciliation found no end in 99 pages")


UNSEEN = {
    "a partition emptied": ["TRUNCATE low"],
    "detached": ["ALTER TABLE docs DETACH PARTITION high"],
    "attached": [
        "CREATE TABLE more (id int PRIMARY KEY, body text)",
        "INSERT INTO more VALUES (205, 'new'), (-3, 'new')",
        "DELETE FROM more WHERE id < 0",
        "ALTER TABLE docs ATTACH PARTITION more FOR VALUES FROM (200) TO (300)",
    ],
    "disabled triggers": [
        "ALTER TABLE docs DISABLE TRIGGER USER",
        "UPDATE docs SET body = 'changed' WHERE id = 40",
        "DELETE FROM docs WHERE id IN (0, 190)",
        "ALTER TABLE docs ENABLE TRIGGER USER",
    ],
    "a replica's session": [
        "SET session_replication_role = replica",
        "INSERT INTO docs VALUES (199, 'new')",
        "UPDATE docs SET body = 'changed' WHERE id = 100",
        "RESET session_replication_role",
    ],
}


@pytest.mark.parametrize("case", UNSEEN)
def test_what_no_trigger_saw_is_found(parts, case: str) -> None:
    for statement in UNSEEN[case]:
        parts.execute(statement)
    assert parts.execute("SELECT count(*) FROM pgrerank.pending").fetchone() == (0,)
    assert reconcile(parts) > 3
    settle(parts)
    differing = parts.execute(
        "SELECT count(*) FROM docs d FULL JOIN pgrerank.parts_1 s ON s.key = d.id"
        " WHERE s.content_hash IS DISTINCT FROM sha256(convert_to(d.body, 'UTF8'))"
    ).fetchone()
    assert differing == (0,)
    reconcile(parts)
    assert parts.execute("SELECT count(*) FROM pgrerank.pending").fetchone() == (0,)
    assert parts.execute(
        "SELECT after_key, whole_at IS NOT NULL FROM pgrerank.reconciliations"
    ).fetchall() == [(None, True)]


def test_keys_may_hold_any_letters(db, source) -> None:
    db.execute("CREATE TABLE odd (id text PRIMARY KEY, body text)")
    db.execute("SELECT pgrerank.create_reranker('parts', 'odd', '{body}')")
    db.execute("ALTER TABLE odd DISABLE TRIGGER USER")
    keys = ["%1$s", "100 %", "it's", 'a "b"', "\\", "", "zz"]
    db.execute("INSERT INTO odd SELECT k, 'text' FROM unnest(%s::text[]) k", (keys,))
    reconcile(db)
    enqueued = db.execute("SELECT key FROM pgrerank.pending").fetchall()
    assert sorted(key for (key,) in enqueued) == sorted(keys)


def pending(db) -> set[str]:
    return {key for (key,) in db.execute("SELECT key FROM pgrerank.pending")}


def test_what_is_written_to_a_partition_by_its_name_is_seen(parts) -> None:
    parts.execute("INSERT INTO low VALUES (5, 'new'), (7, 'new')")
    parts.execute("UPDATE low SET body = 'changed' WHERE id = 10")
    parts.execute("UPDATE low SET body = body WHERE id = 20")
    parts.execute("DELETE FROM low WHERE id = 30")
    assert pending(parts) == {"5", "7", "10"}
    assert parts.execute("SELECT count(*) FROM pgrerank.parts_1").fetchone() == (19,)
    parts.execute("INSERT INTO docs VALUES (8, 'through the parent, seen once')")
    assert pending(parts) == {"5", "7", "8", "10"}


def test_a_partition_gets_triggers_once_attached_and_loses_them_once_detached(parts) -> None:
    parts.execute("CREATE TABLE more (body text, id int PRIMARY KEY)")
    parts.execute("ALTER TABLE docs ATTACH PARTITION more FOR VALUES FROM (200) TO (300)")
    parts.execute("ALTER TABLE docs DETACH PARTITION high")
    parts.execute("DELETE FROM high WHERE id = 120")
    parts.execute("INSERT INTO docs SELECT id + 100, body FROM high")
    settle(parts)
    reconcile(parts)
    assert parts.execute("SELECT count(*) FROM pgrerank.parts_1").fetchone() == (19,)
    parts.execute("INSERT INTO more VALUES ('new', 205)")
    assert pending(parts) == {"205"}
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal"
    assert [parts.execute(triggers, (t,)).fetchone() for t in ("more", "low", "high")] == [
        (4,),
        (4,),
        (0,),
    ]
    parts.execute("SELECT pgrerank.drop_reranker('parts')")
    assert parts.execute(triggers, ("low",)).fetchone() == (0,)


def test_a_child_of_an_inherited_table_is_seen_by_its_name(db) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("CREATE TABLE letters (sender text, PRIMARY KEY (id)) INHERITS (docs)")
    db.execute("SELECT pgrerank.create_reranker('parts', 'docs', '{body}')")
    db.execute("INSERT INTO letters VALUES (1, 'a word', 'she')")
    assert pending(db) == {"1"}


def test_an_idle_worker_looks_for_it(parts) -> None:
    parts.execute("ALTER TABLE low DISABLE TRIGGER USER")
    parts.execute("INSERT INTO low VALUES (5, 'new')")
    parts.execute("UPDATE pgrerank.reconciliations SET whole_at = now() - interval '11 minutes'")
    settle(parts)
    assert parts.execute("SELECT count(*) FROM pgrerank.parts_1 WHERE key = 5").fetchone() == (1,)


def test_what_another_session_compares_is_left_to_it(parts, dsn) -> None:
    assert reconcile(parts) > 1
    with psycopg.connect(dsn) as other:
        other.execute("SELECT pgrerank.reconcile('parts', 3)")
        assert parts.execute("SELECT pgrerank.reconcile('parts', 100)").fetchone() == (False,)
    assert reconcile(parts) > 1


def test_the_command_compares_all_and_says_what_it_found(parts, dsn) -> None:
    parts.execute("SELECT pgrerank.reconcile('parts', 3)")
    parts.execute("ALTER TABLE low DISABLE TRIGGER USER")
    parts.execute("INSERT INTO low VALUES (1, 'before where it stands'), (7, 'new')")
    done = CliRunner().invoke(app, ["reconcile", "parts", "--dsn", dsn, "--page", "5", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == [{"reranker": "parts", "compared": 22, "pending": 2}]
    [compared_at] = parts.execute("SELECT compared_at FROM pgrerank.status").fetchone()
    assert compared_at is not None
