"""A reranker that can't be worked at is set aside, and holds up neither writes nor the others."""

from __future__ import annotations

import threading
import time
from collections import Counter

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row

from pgrerank.install import schema
from pgrerank.worker.claim import Claim, Document
from tests.helpers.workers import settle

NAMES = ("broken", "sound")


@pytest.fixture
def two(db, source):
    """Two rerankers by words alone over tables of their own, with nothing pending."""
    for name in NAMES:
        db.execute(f"CREATE TABLE {name}_rows (id int PRIMARY KEY, body text)")
        db.execute(f"INSERT INTO {name}_rows VALUES (1, 'one')")
        db.execute("SELECT pgrerank.create_reranker(%s, %s, '{body}')", (name, f"{name}_rows"))
    settle(db)
    return db


def state(db, name: str):
    """Encoded and pending documents, the last error, and whether it is paused."""
    return db.execute(
        "SELECT encoded, pending, last_error, paused_until > now() FROM pgrerank.status"
        " WHERE reranker = %s",
        (name,),
    ).fetchone()


BREAKS = {
    "the documents are gone": "DROP FUNCTION pgrerank.broken_1_source CASCADE",
    "the side table is gone": "DROP TABLE pgrerank.broken_1 CASCADE",
    "the words' table is gone": "DROP TABLE pgrerank.broken_1_words CASCADE",
    "a check that no row passes": "ALTER TABLE pgrerank.broken_1 ADD CHECK (key < 0) NOT VALID",
}


@pytest.mark.parametrize("fault", BREAKS)
def test_one_broken_reranker_does_not_stop_the_others(two, fault: str) -> None:
    two.execute(BREAKS[fault])
    for name in NAMES:
        two.execute(f"INSERT INTO {name}_rows SELECT i, 'two' FROM generate_series(2, 900) i")
    for _ in range(60):
        row = two.execute("SELECT keys FROM pgrerank.claim()").fetchone()
        if row is None:
            break
    assert two.execute("SELECT count(*) FROM sound_rows").fetchone() == (900,)
    assert state(two, "sound")[:3] == (900, 0, None)


def test_a_setback_is_told_and_tried_again(two) -> None:
    two.execute("ALTER FUNCTION pgrerank.broken_1_source RENAME TO elsewhere")
    two.execute("INSERT INTO broken_rows VALUES (2, 'two')")
    settle(two)
    _, pending, error, is_paused = two.execute(
        "SELECT 1, count(*), (SELECT error FROM pgrerank.setbacks),"
        " (SELECT until > now() FROM pgrerank.setbacks) FROM pgrerank.pending"
    ).fetchone()
    assert pending == 1
    assert "function pgrerank.broken_1_source() does not exist" in error
    assert is_paused
    with pytest.raises(psycopg.errors.UndefinedFunction):  # who asks for it is told
        two.execute("SELECT pgrerank.claim(reranker => 'broken')")
    waits = []
    for _ in range(12):
        two.execute("SELECT pgrerank._set_back('broken', 1, 'again')")
        [wait] = two.execute(
            "SELECT round(extract(epoch FROM until - clock_timestamp())) FROM pgrerank.setbacks"
        ).fetchone()
        waits.append(wait)
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (4, 600)
    two.execute("ALTER FUNCTION pgrerank.elsewhere RENAME TO broken_1_source")
    two.execute("UPDATE pgrerank.setbacks SET until = now()")
    settle(two)
    assert state(two, "broken") == (2, 0, None, None)


def test_triggers_follow_a_renamed_column(two) -> None:
    two.execute("ALTER TABLE broken_rows RENAME COLUMN body TO content")
    two.execute("INSERT INTO broken_rows VALUES (2, 'two')")
    two.execute("UPDATE broken_rows SET content = 'changed' WHERE id = 1")
    two.execute("DELETE FROM broken_rows WHERE id = 2")
    assert state(two, "broken")[1:] == (1, None, None)
    settle(two)
    assert state(two, "broken")[:3] == (1, 0, None)
    assert "chang" in lexemes_of(two, 1)


def test_writes_go_on_while_a_side_table_is_locked_and_are_caught_up_with(two, dsn) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE pgrerank.broken_1")
        started = time.monotonic()
        two.execute("UPDATE broken_rows SET body = 'changed'")
        assert time.monotonic() - started < 5
        other.rollback()
    assert "lock timeout" in state(two, "broken")[2]
    two.execute("UPDATE pgrerank.setbacks SET until = now()")
    settle(two)
    settle(two)
    assert state(two, "broken") == (1, 0, None, None)
    assert "chang" in lexemes_of(two, 1)


def test_writes_go_on_beside_a_transaction_in_which_one_went_wrong(two, dsn) -> None:
    two.execute("ALTER TABLE pgrerank.broken_1 RENAME TO elsewhere")
    with psycopg.connect(dsn) as other:
        other.execute("UPDATE broken_rows SET body = 'first'")
        started = time.monotonic()
        two.execute("INSERT INTO broken_rows VALUES (2, 'second')")
        two.execute("DELETE FROM broken_rows WHERE id = 2")
        assert time.monotonic() - started < 5
        assert two.execute("SELECT FROM pgrerank.claim()").fetchone() is None


def test_a_setback_whose_cause_is_gone_is_forgotten_without_a_new_document(two) -> None:
    two.execute("SELECT pgrerank._set_back('broken', 1, 'it was so once')")
    assert state(two, "broken")[2] == "it was so once"
    two.execute("UPDATE pgrerank.setbacks SET until = now()")
    settle(two)
    assert state(two, "broken") == (1, 0, None, None)


def lexemes_of(db, key: int) -> list[str]:
    """The stems of a document of the first reranker."""
    [lexemes] = db.execute(
        "SELECT tsvector_to_array(lexemes) FROM pgrerank.broken_1_words WHERE key = %s", (key,)
    ).fetchone()
    return lexemes


def rows_read(connection, statement: str, *values: object) -> int:
    """How many rows of the queue a statement reads."""
    counted = (
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables"
        " WHERE relid = 'pgrerank.pending'::regclass"
    )
    with connection.transaction():
        [before] = connection.execute(counted).fetchone()
        connection.execute(statement, values)
        [after] = connection.execute(counted).fetchone()
    return int(after - before)


CLAIM = "SELECT reranker, generation, keys, tickets FROM pgrerank.claim(10, 'sound')"


@pytest.mark.parametrize("is_analysed", [False, True])
def test_nothing_reads_the_whole_queue(two, dsn, is_analysed: bool) -> None:
    two.execute("SELECT pgrerank.register_model('none', 'embedding', 'none', 4)")
    two.execute("SELECT pgrerank.drop_reranker('sound')")
    two.execute("INSERT INTO sound_rows SELECT i, 'two' FROM generate_series(2, 9000) i")
    two.execute(
        "SELECT pgrerank.create_reranker("
        "'sound', 'sound_rows', '{body}', embedding_model => 'none')"
    )
    if is_analysed:
        two.execute("ANALYZE pgrerank.pending")
    assert rows_read(two, CLAIM) < 100
    claim = two.execute(CLAIM).fetchone()
    assert rows_read(two, "SELECT pgrerank.finish(%s, %s, %s, %s)", *claim) < 100
    assert rows_read(two, "DELETE FROM sound_rows WHERE id = 8000") < 100
    with psycopg.connect(dsn, autocommit=True) as gone:
        gone.execute(CLAIM)
    assert rows_read(two, CLAIM) < 100


def test_a_document_that_is_committed_late_is_claimed_too(two, dsn) -> None:
    """Its ticket is older than those of documents that have been claimed before."""
    with psycopg.connect(dsn) as slow:
        slow.execute("INSERT INTO sound_rows VALUES (2, 'slow')")
        two.execute("INSERT INTO sound_rows SELECT i, 'two' FROM generate_series(3, 9) i")
        for _ in range(3):
            two.execute("SELECT FROM pgrerank.claim(2, 'sound')")
        slow.commit()
        settle(two)
    assert state(two, "sound")[:2] == (9, 0)


def test_nobody_who_stores_waits_for_who_counts_words(two, dsn) -> None:
    two.execute("INSERT INTO sound_rows VALUES (2, 'two')")
    with psycopg.connect(dsn) as counting:
        counting.execute("SELECT FROM pgrerank.word_statistics FOR UPDATE")
        two.execute("SET statement_timeout = '400ms'")
        settle(two)
    assert state(two, "sound")[:2] == (2, 0)


OTHERS = [f"t{number}" for number in range(1, 10)]
DOCUMENTS, CLAIMED = 200, 50


class Ten:
    """Ten rerankers in a database that a plain role owns: t0 with a model, nine by words alone."""

    def __init__(self, dsn: str, owner: str, writer: str) -> None:
        self.dsn, self.owner, self.writer = dsn, owner, writer

    def connect(self, role: str) -> psycopg.Connection:
        """A session that gives up where it would hang."""
        return psycopg.connect(
            make_conninfo(self.dsn, user=role, password=role),
            autocommit=True,
            options="-c statement_timeout=20s",
        )


@pytest.fixture(scope="module")
def ten_original(make_database, make_role) -> Ten:
    ten = Ten(make_database(), make_role(), make_role())
    with psycopg.connect(ten.dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        admin.execute(f"GRANT CREATE ON DATABASE {admin.info.dbname} TO {ten.owner}")
        admin.execute(f"GRANT CREATE ON SCHEMA public TO {ten.owner}")
    with ten.connect(ten.owner) as owner:
        schema.install(owner)
        owner.execute(
            "CREATE FUNCTION spelt(body text) RETURNS text IMMUTABLE LANGUAGE sql RETURN body"
        )
        owner.execute("SELECT pgrerank.register_model('gone', 'embedding', '/nowhere', 4)")
        for name in ["t0", *OTHERS]:
            owner.execute(f"CREATE TABLE {name}_rows (id int PRIMARY KEY, body text)")
            owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}_rows TO {ten.writer}")
            owner.execute(
                f"SELECT pgrerank.create_reranker('{name}', '{name}_rows',"
                " text_expression => 'spelt(body)', embedding_model => %s)",
                ("gone" if name == "t0" else None,),
            )
        owner.execute("INSERT INTO t0_rows SELECT i, 'zero' FROM generate_series(-9, 0) i")
        work(owner)
    return ten


@pytest.fixture
def ten(ten_original: Ten, make_database) -> Ten:
    return Ten(make_database(ten_original.dsn), ten_original.owner, ten_original.writer)


def work(connection, *, has_model: bool = True) -> Counter[str]:
    """What a worker does until there is nothing to claim; how many claims there were of each."""
    claims: Counter[str] = Counter()
    cursor = connection.cursor(row_factory=class_row(Claim))
    while claim := cursor.execute("SELECT * FROM pgrerank.claim(%s)", (CLAIMED,)).fetchone():
        claims[claim.reranker] += 1
        if claim.models and not has_model:
            connection.execute("SELECT pgrerank.release('the model is gone')")
            continue
        try:
            store(connection, claim, claim.documents)
        except psycopg.OperationalError as error:
            connection.execute("SELECT pgrerank.release(%s)", (str(error),))
    return claims


def store(connection, claim: Claim, documents: list[Document]) -> None:
    """Store documents, as if encoded; where that fails, each alone."""
    try:
        connection.execute(
            "SELECT pgrerank.store(%s, %s, %s, %s, %s)",
            (
                *(claim.reranker, claim.generation, [d.key for d in documents]),
                *([d.ticket for d in documents], [d.content_hash for d in documents]),
            ),
        )
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        if len(documents) == 1:
            key, ticket = documents[0][:2]
            arguments = (claim.reranker, claim.generation, key, ticket, str(error))
            connection.execute("SELECT pgrerank.fail(%s, %s, %s, %s, %s)", arguments)
        else:
            for document in documents:
                store(connection, claim, [document])


def write(connection, names: list[str]) -> None:
    """Write to their tables as users do."""
    for name in names:
        connection.execute(
            f"INSERT INTO {name}_rows SELECT i, 'text ' || i FROM generate_series(1, %s) i",
            (DOCUMENTS,),
        )


FAULTS = {
    "the documents are gone": "DROP FUNCTION pgrerank.t0_1_source CASCADE",
    "the side table is gone": "DROP TABLE pgrerank.t0_1",
    "the words' table is gone": "DROP TABLE pgrerank.t0_1_words",
    "the terms' table is gone": "DROP TABLE pgrerank.t0_1_terms",
    "a check that no row passes": "ALTER TABLE pgrerank.t0_1 ADD CHECK (key < -9) NOT VALID",
    "a trigger that raises": """
        CREATE FUNCTION raising() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'not here'; END $$;
        CREATE TRIGGER raising BEFORE INSERT ON pgrerank.t0_1_words
            FOR EACH ROW EXECUTE FUNCTION raising()""",
    "an expression that raises": """
        CREATE OR REPLACE FUNCTION spelt(body text) RETURNS text IMMUTABLE LANGUAGE sql
            RETURN CASE WHEN body LIKE 'zero%' THEN (1 / length(left(body, 0)))::text ELSE body END;
        UPDATE t0_rows SET body = 'zero ' || id""",
    "row-level security is forced": """
        ALTER TABLE t0_rows ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY everybody ON t0_rows USING (true)""",
    "the side table's is forced": "ALTER TABLE pgrerank.t0_1 FORCE ROW LEVEL SECURITY",
    "the source is gone": "DROP TABLE t0_rows",
    "the model is gone": "",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_of_ten_that_is_broken_holds_up_neither_writes_nor_the_nine(ten: Ten, fault) -> None:
    is_writable = fault != "the source is gone"
    with ten.connect(ten.owner) as owner, ten.connect(ten.writer) as writer:
        owner.execute(FAULTS[fault])
        write(writer, [*(["t0"] if is_writable else []), *OTHERS])
        claims = work(owner, has_model=fault != "the model is gone")
        assert {name: claims[name] for name in OTHERS} == dict.fromkeys(OTHERS, 4)
        assert claims["t0"] <= DOCUMENTS // CLAIMED
        assert indexed(owner) == dict.fromkeys(OTHERS, (DOCUMENTS, 0, None))
        [error] = owner.execute(
            "SELECT last_error FROM pgrerank.status WHERE reranker = 't0'"
        ).fetchone()
        assert error
        if is_writable:
            assert writer.execute("UPDATE t0_rows SET body = 'other'").rowcount == DOCUMENTS + 10
            assert writer.execute("DELETE FROM t0_rows").rowcount == DOCUMENTS + 10


def test_what_failed_ten_times_in_a_row_is_stored_once_the_cause_is_gone(ten: Ten) -> None:
    check = "a check that no row passes"
    with ten.connect(ten.owner) as owner, ten.connect(ten.writer) as writer:
        owner.execute(FAULTS[check])
        write(writer, ["t0"])
        assert work(owner) == {"t0": 1}
        assert owner.execute(
            "SELECT pending, failed, paused_until > now() FROM pgrerank.status"
            " WHERE reranker = 't0'"
        ).fetchone() == (DOCUMENTS, 0, True)
        owner.execute("ALTER TABLE pgrerank.t0_1 DROP CONSTRAINT t0_1_key_check")
        owner.execute("UPDATE pgrerank.setbacks SET until = now()")
        work(owner)
        assert indexed(owner, "t0") == {"t0": (DOCUMENTS + 10, 0, None)}


HOLDS = {
    "the source is locked": "LOCK TABLE t0_rows",
    "the side table is locked": "LOCK TABLE pgrerank.t0_1",
    "rows are locked": "SELECT FROM t0_rows FOR UPDATE",
    "rows are being changed": "UPDATE t0_rows SET body = 'zero, but other'",
    "rows are being deleted": "DELETE FROM t0_rows WHERE id > 100",
    "the source is being emptied": "TRUNCATE t0_rows",
    "the source is being dropped": "DROP TABLE t0_rows",
    "the reranker is being dropped": "SELECT pgrerank.drop_reranker('t0')",
}


@pytest.mark.parametrize("hold", HOLDS)
def test_a_transaction_that_holds_one_of_ten_holds_up_no_other(ten: Ten, hold: str) -> None:
    with (
        ten.connect(ten.owner) as owner,
        ten.connect(ten.owner) as holder,
        ten.connect(ten.writer) as writer,
    ):
        write(writer, ["t0", *OTHERS])
        with holder.transaction(force_rollback=True):
            holder.execute(HOLDS[hold])
            started = time.monotonic()
            claims = work(owner)
            took = time.monotonic() - started
            assert {name: claims[name] for name in OTHERS} == dict.fromkeys(OTHERS, 4)
            assert claims["t0"] <= DOCUMENTS // CLAIMED
            assert indexed(owner) == dict.fromkeys(OTHERS, (DOCUMENTS, 0, None))
            assert took < 10
        owner.execute("UPDATE pgrerank.setbacks SET until = now()")
        owner.execute("UPDATE pgrerank.pending SET claimed_until = now()")
        work(owner)
        assert indexed(owner, "t0") == {"t0": (DOCUMENTS + 10, 0, None)}


def indexed(connection, *names: str) -> dict[str, tuple]:
    """Encoded and pending documents of each, and the last error."""
    rows = connection.execute(
        "SELECT reranker, encoded, pending, last_error FROM pgrerank.status"
        " WHERE reranker = ANY (%s)",
        (list(names or OTHERS),),
    )
    return {name: tuple(rest) for name, *rest in rows}


def test_what_another_has_locked_for_a_moment_is_taken_off_the_queue_too(dsn, db, source):
    """A claim locks for its own time what it meant to take, though it was just taken."""
    source.create()
    claim = db.execute(
        "SELECT reranker, generation, keys, tickets FROM pgrerank.claim()"
    ).fetchone()
    assert len(claim[2]) > 2
    with psycopg.connect(dsn) as other, psycopg.connect(dsn, autocommit=True) as third:
        other.execute("SELECT FROM pgrerank.pending FOR UPDATE")
        finishing = threading.Thread(
            target=lambda: db.execute("SELECT pgrerank.finish(%s, %s, %s, %s)", claim)
        )
        finishing.start()
        asleep = (
            "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'",
            (db.info.backend_pid,),
        )
        while finishing.is_alive() and third.execute(*asleep).rowcount == 0:
            pass
        other.commit()
        finishing.join()
    assert db.execute("SELECT count(*) FROM pgrerank.pending").fetchone() == (0,)
