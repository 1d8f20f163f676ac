"""The worker as a process, and what becomes of searches and claims when it is killed or stopped."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgrerank.errors import SettingsError
from pgrerank.worker.settings import worker_settings
from tests.helpers.sources import Source
from tests.helpers.workers import asking, unstorable, wait_for, worker

SEARCH = "SELECT id, stage, degraded, reason FROM pgrerank.documents_search('bread of flour'"
TIMEOUT = 0.5
SLACK = 3.0
"""The promise is 0.1 s; benchmarks/rpc.py measures it. Here a hang is what must not happen."""


@pytest.fixture
def encoded(dsn, db, tiny_models, tmp_path):
    """A worker that has encoded the three documents."""
    source = Source(db)
    source.models(**tiny_models)
    source.create(timeout="20 s")
    with worker(dsn, tmp_path) as process:
        wait_for(db, "pending = 0")
        assert [row[1:3] for row in db.execute(SEARCH + ")").fetchall()] == (
            [("cross_encoder", False)] * 3
        )
        yield process


def timed_search(connection: psycopg.Connection, arguments: str = "") -> list[tuple]:
    started = time.monotonic()
    rows = connection.execute(f"{SEARCH}, timeout => '{TIMEOUT} s' {arguments})").fetchall()
    assert time.monotonic() - started < TIMEOUT + SLACK
    return rows


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_search_degrades_in_time_when_the_worker_is_gone_or_frozen(dsn, db, encoded, signal_):
    vector = db.execute(
        "SELECT embedding::text FROM pgrerank.documents_1_passages LIMIT 1"
    ).fetchone()[0]
    encoded.signal(signal_)
    with psycopg.connect(dsn, autocommit=True) as fresh:
        for connection in (db, fresh, db, fresh):
            rows = timed_search(connection)
            assert {(stage, degraded) for _, stage, degraded, _ in rows} == {("lexical", True)}
            assert rows[0][0] == 3
            assert rows[0][3]
            rows = timed_search(connection, f", query_embedding => '{vector}'")
            assert len(rows) == 3
            assert {(stage, degraded) for _, stage, degraded, _ in rows} == {("lexical", True)}
            rows = timed_search(connection, ", keys => '{2, 1}'")
            assert [(row[0], row[1], row[2]) for row in rows] == (
                [(2, "dense", True), (1, "dense", True)]
            )
            with pytest.raises(psycopg.Error) as error:
                timed_search(connection, ", strict => true")
            assert error.value.sqlstate in ("PGR01", "PGR02")


def test_search_recovers_after_a_freeze_and_never_takes_a_late_answer_for_its_own(db, encoded):
    encoded.signal(signal.SIGSTOP)
    assert timed_search(db)[0][1] == "lexical"
    encoded.signal(signal.SIGCONT)
    for _ in range(5):
        rows = db.execute(SEARCH + ", strict => true)").fetchall()
        assert [row[1] for row in rows] == ["cross_encoder"] * 3


def test_statement_timeout_and_cancel_end_a_search_at_once(db, encoded):
    encoded.signal(signal.SIGSTOP)
    db.execute("SET statement_timeout = '200ms'")
    started = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled):
        db.execute(SEARCH + ", timeout => '30 s')")
    assert time.monotonic() - started < 0.2 + SLACK
    encoded.signal(signal.SIGCONT)
    db.execute("RESET statement_timeout")
    assert db.execute(SEARCH + ", strict => true)").fetchone()[1] == "cross_encoder"


def test_a_restarted_worker_is_found_again_by_open_sessions(dsn, db, encoded, tmp_path):
    address = db.execute(
        "SELECT array_to_string(srvoptions, ' ') FROM pg_foreign_server"
    ).fetchone()[0]
    encoded.signal(signal.SIGTERM)
    assert encoded.wait(30) == 0
    assert timed_search(db)[0][1] == "lexical"
    port = address.split("port=")[1].split()[0]
    (tmp_path / "second").mkdir()
    with worker(dsn, tmp_path / "second", listen=f"127.0.0.1:{port}"):
        assert db.execute(SEARCH + ", strict => true)").fetchone()[1] == "cross_encoder"


def test_an_end_user_with_nothing_but_select_on_the_source_searches(dsn, db, encoded, make_role):
    reader = make_role()
    db.execute(f"GRANT SELECT ON documents TO {reader}")
    with psycopg.connect(make_conninfo(dsn, user=reader, password=reader), autocommit=True) as user:
        rows = user.execute(SEARCH + ", strict => true)").fetchall()
        assert [row[1] for row in rows] == ["cross_encoder"] * 3
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute("SELECT umoptions FROM pg_user_mapping")
        assert user.execute("SELECT umoptions FROM pg_user_mappings").fetchone() == (None,)


def test_stages_still_pending_rank_by_recall_and_are_not_dropped(db, encoded):
    db.execute("DELETE FROM pgrerank.documents_1_tokens WHERE key = 2")
    rows = db.execute(SEARCH + ", stages => '{dense,maxsim}', strict => true)").fetchall()
    assert [(row[0], row[1]) for row in rows][-1] == (2, "dense")
    assert len(rows) == 3


def test_a_killed_workers_claims_are_taken_up_by_the_next(dsn, db, tiny_models, tmp_path):
    source = Source(db)
    db.execute(
        "INSERT INTO documents (title, body)"
        " SELECT 'n ' || i, repeat('one two three ', 9) FROM generate_series(1, 150) i"
    )
    source.models(**tiny_models)
    source.create()
    (tmp_path / "a").mkdir()
    with unstorable(dsn, 99), worker(dsn, tmp_path / "a", "--no-serve") as first:
        wait_for(db, "encoded > 0")
        first.signal(signal.SIGKILL)
        left = db.execute("SELECT pending, failed FROM pgrerank.status").fetchone()
    assert left[0] > 0
    (tmp_path / "b").mkdir()
    with worker(dsn, tmp_path / "b", "--no-serve"):
        wait_for(db, "pending = 0")
    assert db.execute("SELECT encoded, failed FROM pgrerank.status").fetchone() == (153, 0)


def test_a_document_that_fails_alone_is_put_aside_with_its_error(dsn, db, tiny_models, tmp_path):
    source = Source(db)
    source.models(**tiny_models)
    source.create()
    db.execute("ALTER TABLE pgrerank.documents_1 ADD CONSTRAINT no_cats CHECK (key <> 2)")
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0")
        status = db.execute("SELECT encoded, failed, last_error FROM pgrerank.status").fetchone()
        assert status[:2] == (2, 1)
        assert "no_cats" in status[2]
        assert db.execute("SELECT attempts FROM pgrerank.pending").fetchone() == (3,)
        db.execute("ALTER TABLE pgrerank.documents_1 DROP CONSTRAINT no_cats")
        assert db.execute("SELECT pgrerank.enqueue('documents')").fetchone() == (0,)
        db.execute("SELECT pgrerank.enqueue('documents', retry_failed => true)")
        wait_for(db, "encoded = 3 AND failed = 0")


def test_a_document_that_kills_its_workers_is_put_aside_and_takes_no_other_along(dsn, db, source):
    source.create()
    for _ in range(3):
        with psycopg.connect(dsn, autocommit=True) as doomed:
            claimed = doomed.execute("SELECT keys FROM pgrerank.claim(10)").fetchall()
            assert claimed
            pid = doomed.info.backend_pid
        while db.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
            time.sleep(0.01)
    claims = [db.execute("SELECT keys FROM pgrerank.claim(10)").fetchall() for _ in range(3)]
    assert sorted(len(keys) for claim in claims for (keys,) in claim) == [1, 1]
    failed = db.execute("SELECT key, last_error FROM pgrerank.pending WHERE failed_at IS NOT NULL")
    [(_, error)] = failed.fetchall()
    assert "no worker survived" in error


def test_a_model_that_cannot_be_loaded_is_not_held_against_the_documents(dsn, db, source, tmp_path):
    source.create()  # models that are nowhere
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "last_error IS NOT NULL")
        time.sleep(0.5)
    status = db.execute("SELECT pending, failed, last_error FROM pgrerank.status").fetchone()
    assert status[:2] == (3, 0)
    assert "/nowhere/embedding" in status[2]
    assert db.execute("SELECT max(attempts) FROM pgrerank.pending").fetchone() == (0,)


def test_a_model_that_cannot_be_loaded_holds_up_no_other_reranker(dsn, db, tiny_models, tmp_path):
    source = Source(db)
    source.models(**tiny_models)
    source.create()
    db.execute("SELECT pgrerank.register_model('nowhere', 'embedding', '/nowhere', 32)")
    db.execute("CREATE TABLE others AS SELECT * FROM documents")
    db.execute("ALTER TABLE others ADD PRIMARY KEY (id)")
    db.execute(
        "SELECT pgrerank.create_reranker('others', 'others', '{body}',"
        " embedding_model => 'nowhere')"
    )
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "reranker <> 'documents' OR encoded = 3")
        wait_for(db, "reranker <> 'others' OR (pending, failed) = (3, 0) AND paused_until > now()")
        db.execute("INSERT INTO documents (body) VALUES ('a document more')")
        wait_for(db, "reranker <> 'documents' OR encoded = 4")


def test_nothing_is_encoded_again_whose_text_stands(db, encoded):
    stored = "SELECT key, encoded_at FROM pgrerank.documents_1 ORDER BY 1"
    before = db.execute(stored).fetchall()
    with db.transaction():
        db.execute("UPDATE documents SET body = body || '!' WHERE id < 3")
        db.execute("UPDATE documents SET body = left(body, -1) WHERE id = 1")
    wait_for(db, "pending = 0")
    after = db.execute(stored).fetchall()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_a_worker_whose_sessions_are_ended_opens_new_ones(db, encoded):
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name ~ '^pgrerank' AND datname = current_database()"
    )
    db.execute("INSERT INTO documents (title, body) VALUES ('Rye', 'Rye makes dark bread.')")
    wait_for(db, "pending = 0 AND encoded = 4")
    assert len(db.execute(SEARCH + ", strict => true)").fetchall()) == 4


def test_dropping_a_reranker_while_it_is_encoded_harms_nothing(dsn, db, tiny_models, tmp_path):
    source = Source(db)
    db.execute(
        "INSERT INTO documents (title, body)"
        " SELECT 'n ' || i, repeat('one two three ', 60) FROM generate_series(1, 200) i"
    )
    source.models(**tiny_models)
    source.create("doomed")
    source.create("kept", text_columns=["title"])
    with worker(dsn, tmp_path, "--no-serve") as process:
        wait_for(db, "encoded > 0 OR reranker = 'kept'")
        db.execute("SELECT pgrerank.drop_reranker('doomed')")
        wait_for(db, "pending = 0 AND encoded = source_rows AND failed = 0")
        assert process.process.is_alive()


def test_a_second_worker_on_the_same_port_says_so(dsn, db, encoded, tmp_path):
    port = db.execute(
        "SELECT o.option_value FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o"
        " WHERE o.option_name = 'port'"
    ).fetchone()[0]
    (tmp_path / "other").mkdir()
    with (
        pytest.raises(AssertionError, match="address already in use"),
        worker(dsn, tmp_path / "other", listen=f"127.0.0.1:{port}"),
    ):
        pass


def test_psql_asks_the_worker_what_it_has(db, encoded):
    with asking(db) as ask:
        assert [row[:2] for row in ask("SHOW models;")] == [
            ("embedding", "embedding"),
            ("reranker", "cross_encoder"),
            ("tokens", "late_interaction"),
        ]
        lanes = {"encode", "maxsim", "cross_encode", "ingest"}
        assert {row[0] for row in ask("show status")} == lanes
        assert "not a request" in ask("SELECT 1")[0][0]
        assert "malformed: JSON is malformed" in ask("{nonsense")[0][0]
        assert "Invalid value 'x' - at `$.request.call`" in ask('{"request": {"call": "x"}}')[0][0]
        assert (
            "no model"
            in ask(
                '{"request": {"call": "cross_encode", "model": "x", "query": "q", "documents": []}}'
            )[0][0]
        )
        assert (
            "hexadecimal"
            in ask('{"request": {"call": "maxsim", "query": "zz", "documents": []}}')[0][0]
        )
        assert (
            "magic"
            in ask(
                '{"request": {"call": "maxsim", "query": "' + "00" * 40 + '", "documents": ["00"]}}'
            )[0][0]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"listen": "nowhere"}, "HOST:PORT expected"),
        ({"listen": "127.0.0.1:99999"}, "HOST:PORT expected"),
        ({"password": None}, "set PGRERANK_WORKER_PASSWORD"),
        ({"listen": "0.0.0.0:1", "register": True}, "--register can't write 0.0.0.0"),
        ({"ingest": False, "serve": False}, "nothing to do"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    settings = {
        "listen": "127.0.0.1:0",
        "password": "x",
        "ingest": True,
        "serve": True,
        "preload": False,
        "register": False,
        "queue": 1,
    } | arguments
    with pytest.raises(SettingsError, match=message):
        worker_settings("", settings.pop("listen"), settings.pop("password"), **settings)


def test_a_request_costs_bounded_memory_and_gives_it_back(db, encoded):
    """A tokenizer takes 200 bytes for each character of a query."""

    def resident() -> int:
        status = Path(f"/proc/{encoded.process.pid}/status").read_text("utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    documents = json.dumps(["bread " * 30_000])
    with asking(db) as ask:
        before = resident()
        for query, texts in (
            ("bread " * 700_000, '["bread"]'),
            ("bread", json.dumps(["bread " * 300_000] * 5)),
        ):
            [(said,)] = ask(
                '{"request": {"call": "cross_encode", "model": "reranker",'
                f' "query": "{query}", "documents": {texts}}}}}'
            )
            assert "at most" in said
        ask(
            '{"timeout_ms": 5000, "request": {"call": "cross_encode", "model": "reranker",'
            f' "query": "bread", "documents": {documents}}}}}'
        )
        assert resident() - before < 300
