"""A model is swapped by a new generation, which takes over whole, and can be taken back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import psycopg
import pytest

from pgrerank import embedded
from pgrerank.install import schema
from tests.helpers.sources import Source
from tests.helpers.workers import unstorable, wait_for, worker

SIDES = "SELECT relname::text FROM pg_class WHERE relname ~ '^documents_[0-9]$' ORDER BY 1"
STATUS = "SELECT generation, next_generation, pending, previous_generation FROM pgrerank.status"
FIND = "SELECT id FROM pgrerank.documents_search(NULL, query_embedding => %s)"
VECTOR = str([1.0] + [0.0] * 31)


def sides(db: psycopg.Connection) -> list[str]:
    return [name for (name,) in db.execute(SIDES).fetchall()]


@pytest.fixture
def altered(db, source):
    """Two generations: the second, of titles alone, has taken over."""
    source.create(late_interaction_model=None, cross_encoder_model=None)
    source.encode_by_hand()
    db.execute("SELECT pgrerank.alter_reranker('documents', text_columns => '{title}')")
    source.encode_by_hand()
    assert db.execute(STATUS).fetchone() == (2, None, 0, 1)
    return source


def test_a_new_generation_takes_over_when_complete(db, source):
    source.create(grace_period="0")
    source.encode_by_hand()
    db.execute("SELECT pgrerank.alter_reranker('documents', text_columns => '{title}')")
    assert db.execute(STATUS).fetchone() == (1, 2, 3, None)
    assert len(db.execute("SELECT * FROM pgrerank.documents_search('cat')").fetchall()) == 1
    db.execute("UPDATE documents SET body = 'no title, no matter' WHERE title = 'Cats'")
    source.encode_by_hand()
    source.encode_by_hand()
    assert db.execute(STATUS).fetchone() == (2, None, 0, None)
    assert sides(db) == ["documents_2"]
    assert (
        db.execute("SELECT * FROM pgrerank.documents_search('body', strict => false)").fetchall()
        == []
    )


def test_a_search_holds_its_generation_and_nobody_waits_for_it(dsn, db, source):
    source.create(late_interaction_model=None, cross_encoder_model=None, grace_period="0")
    source.encode_by_hand()
    with psycopg.connect(dsn) as reader:
        before = reader.execute(FIND, (VECTOR,)).fetchall()
        db.execute("SELECT pgrerank.alter_reranker('documents', text_columns => '{title}')")
        source.encode_by_hand()
        assert db.execute("SELECT generation FROM pgrerank.rerankers").fetchone() == (2,)
        assert sides(db) == ["documents_1", "documents_2"]
        assert len(db.execute(FIND, (VECTOR,)).fetchall()) == len(before) == 3
    db.execute("SELECT * FROM pgrerank.claim()")
    assert sides(db) == ["documents_2"]


def test_rollback_is_one_call_and_can_be_taken_back_itself(db, altered):
    assert db.execute("SELECT pgrerank.rollback_reranker('documents')").fetchone() == (1,)
    assert db.execute(STATUS).fetchone() == (1, None, 0, 2)
    db.execute("SELECT * FROM pgrerank.claim()")
    assert db.execute(STATUS).fetchone() == (1, None, 0, 2), "it must not switch by itself again"
    assert len(db.execute("SELECT * FROM pgrerank.documents_search('sleeps')").fetchall()) == 1
    assert db.execute("SELECT pgrerank.settings('documents') ->> 'text_columns'").fetchone() == (
        '["title", "body"]',
    )
    assert db.execute("SELECT pgrerank.rollback_reranker('documents')").fetchone() == (2,)
    assert (
        db.execute("SELECT * FROM pgrerank.documents_search('sleeps', strict => false)").fetchall()
        == []
    )


def test_the_old_generation_follows_changes_until_its_grace_period_is_over(db, altered):
    db.execute("INSERT INTO documents (title, body) VALUES ('Rain', 'Rain falls.')")
    db.execute("DELETE FROM documents WHERE title = 'Cats'")
    for _ in range(2):
        altered.encode_by_hand()
    assert db.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone() == (3,)
    db.execute("SELECT pgrerank.rollback_reranker('documents')")
    assert len(db.execute("SELECT * FROM pgrerank.documents_search('falls')").fetchall()) == 1
    db.execute("SELECT pgrerank.rollback_reranker('documents')")
    db.execute("SELECT * FROM pgrerank.claim()")
    assert sides(db) == ["documents_1", "documents_2"]
    db.execute("SELECT pgrerank.alter_reranker('documents', grace_period => '0')")
    db.execute("SELECT * FROM pgrerank.claim()")
    assert sides(db) == ["documents_2"]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="before 2 to go back to"):
        db.execute("SELECT pgrerank.rollback_reranker('documents')")


def test_rollback_gives_up_a_generation_that_is_being_made(db, altered):
    db.execute("SELECT pgrerank.alter_reranker('documents', text_columns => '{body}')")
    assert db.execute(STATUS).fetchone()[:3] == (2, 3, 3)
    assert sides(db) == ["documents_2", "documents_3"], "a third one replaces the one kept"
    assert db.execute("SELECT pgrerank.rollback_reranker('documents')").fetchone() == (2,)
    assert db.execute(STATUS).fetchone() == (2, None, 0, None)
    assert sides(db) == ["documents_2"]


def test_a_model_stays_registered_as_long_as_a_generation_can_come_back(db, altered):
    db.execute("SELECT pgrerank.register_model('other', 'embedding', '/other', 32)")
    db.execute("SELECT pgrerank.alter_reranker('documents', embedding_model => 'other')")
    altered.encode_by_hand()
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        db.execute("SELECT pgrerank.drop_model('embedding')")
    db.execute("SELECT pgrerank.alter_reranker('documents', grace_period => '0')")
    db.execute("SELECT * FROM pgrerank.claim()")
    db.execute("SELECT pgrerank.drop_model('embedding')")


def test_searches_across_the_switch_and_back_see_one_generation_whole(dsn, db, altered):
    other = str([0.0, 1.0] + [0.0] * 30)
    db.execute("UPDATE pgrerank.documents_1_passages SET embedding = %s::halfvec", (VECTOR,))
    db.execute("UPDATE pgrerank.documents_2_passages SET embedding = %s::halfvec", (other,))
    one, two = (1.0,) * 3, (0.0,) * 3
    seen: Counter[tuple[float, ...]] = Counter()
    stop = threading.Event()
    find = "SELECT score FROM pgrerank.documents_search(NULL, query_embedding => %s)"

    def search() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stop.is_set():
                scores = [score for (score,) in connection.execute(find, (VECTOR,)).fetchall()]
                seen[tuple(round(score, 3) for score in scores)] += 1

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    swaps = 0
    # A loaded machine may run all swaps before any search: go on until searches met both often.
    while (swaps < 60 or min(seen[one], seen[two]) < 100) and time.monotonic() < deadline:
        db.execute("SELECT pgrerank.rollback_reranker('documents')")
        swaps += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {one, two}


@pytest.mark.timeout(240)
def test_a_killed_worker_and_a_killed_server_in_the_middle_lose_and_mix_nothing(
    tiny_models, tmp_path, open_folder
):
    """Each is killed while a new generation is encoded, which takes over nevertheless."""
    data = open_folder / "data"
    with embedded.start(data) as server, psycopg.connect(server.dsn, autocommit=True) as db:
        schema.install(db)
        source = Source(db)
        db.execute(
            "INSERT INTO documents (title, body)"
            " SELECT 'title ' || i, repeat('words about it ', 9) FROM generate_series(1, 300) i"
        )
        source.models(**tiny_models)
        source.create(cross_encoder_model=None)
        with worker(server.dsn, tmp_path, "--no-serve"):
            wait_for(db, "pending = 0")
        expected = hashes(db, 1)
        db.execute("SELECT pgrerank.alter_reranker('documents', token_precision => 'float16')")
        with (
            unstorable(server.dsn, 99),
            worker(server.dsn, tmp_path, "--no-serve") as process,
        ):
            wait_for(db, "encoded > 0")
            process.signal(signal.SIGKILL)
            assert still(db, 1, expected)
        with worker(server.dsn, tmp_path, "--no-serve") as process:
            db.execute("UPDATE documents SET body = 'changed meanwhile' WHERE id <= 64")
            wait_for(db, "encoded > 64")
            os.kill(server.pid, signal.SIGKILL)
    with embedded.start(data) as server, psycopg.connect(server.dsn, autocommit=True) as db:
        assert db.execute(STATUS).fetchone()[:2] in {(1, 2), (2, None)}
        with worker(server.dsn, tmp_path, "--no-serve"):
            wait_for(db, "next_generation IS NULL AND pending = 0")
        assert db.execute(STATUS).fetchone() == (2, None, 0, 1)
        wanted = db.execute(
            "SELECT pgrerank._content_hash(concat_ws(E'\\n', title, body)) FROM documents"
        )
        assert hashes(db, 2) == {value for (value,) in wanted.fetchall()}
        stored = (
            "SELECT count(*), count(DISTINCT p.key) FROM pgrerank.documents_2_passages p"
            " JOIN pgrerank.documents_2_tokens t USING (key, passage) WHERE t.part = 1"
        )
        numbers = (
            "SELECT sum(cardinality(pgrerank._numbers(bounds))), 303 FROM pgrerank.documents_2"
        )
        assert db.execute(stored).fetchone() == db.execute(numbers).fetchone()


def hashes(db: psycopg.Connection, generation: int) -> set[bytes]:
    rows = db.execute(f"SELECT content_hash FROM pgrerank.documents_{generation}").fetchall()
    return {value for (value,) in rows}


def still(db: psycopg.Connection, generation: int, expected: set[bytes]) -> bool:
    """Whether searches read that generation, and it is what it was."""
    found = db.execute("SELECT generation FROM pgrerank.rerankers").fetchone()
    answered = db.execute(FIND, (VECTOR,)).fetchall()
    return (found, len(answered), hashes(db, generation)) == ((generation,), 10, expected)
