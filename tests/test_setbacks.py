"""A reranker that can't be worked at is set aside, and holds up neither writes nor the others."""

from __future__ import annotations

import psycopg
import pytest

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


def settle(db) -> None:
    """What a worker does with documents that need no model."""
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass


def state(db, name: str):
    """Encoded and pending documents, the last error, and whether it is paused."""
    return db.execute(
        "SELECT encoded, pending, last_error, paused_until > now() FROM pgrerank.status"
        " WHERE reranker = %s",
        (name,),
    ).fetchone()


BREAKS = {
    "the view is gone": "DROP VIEW pgrerank.broken_1_source CASCADE",
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
    two.execute("ALTER VIEW pgrerank.broken_1_source RENAME TO elsewhere")
    two.execute("INSERT INTO broken_rows VALUES (2, 'two')")
    settle(two)
    _, pending, error, is_paused = two.execute(
        "SELECT 1, count(*), (SELECT error FROM pgrerank.setbacks),"
        " (SELECT until > now() FROM pgrerank.setbacks) FROM pgrerank.pending"
    ).fetchone()
    assert pending == 1
    assert 'relation "pgrerank.broken_1_source" does not exist' in error
    assert is_paused
    with pytest.raises(psycopg.errors.UndefinedTable):  # who asks for it is told
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
    two.execute("ALTER VIEW pgrerank.elsewhere RENAME TO broken_1_source")
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


def test_writes_go_on_after_the_key_was_renamed_and_are_caught_up_with(two) -> None:
    two.execute("ALTER TABLE broken_rows RENAME COLUMN id TO number")
    two.execute("INSERT INTO broken_rows VALUES (2, 'two')")
    two.execute("UPDATE broken_rows SET body = 'changed' WHERE number = 1")
    assert two.execute("SELECT count(*) FROM broken_rows").fetchone() == (2,)
    *_, error, is_paused = state(two, "broken")
    assert "after update of broken_rows: " in error
    assert "id does not exist" in error
    assert is_paused
    two.execute("UPDATE pgrerank.setbacks SET until = now()")
    settle(two)
    settle(two)
    assert state(two, "broken") == (2, 0, None, None)
    two.execute("UPDATE broken_rows SET body = 'followed' WHERE number = 2")
    settle(two)
    assert state(two, "broken") == (2, 0, None, None)
    assert "chang" in lexemes_of(two, 1)
    assert "follow" in lexemes_of(two, 2)


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
