"""What people thought of documents: given by the application, read as training data."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo


@pytest.fixture
def reranker(db, source):
    source.create()
    return source


def judged(db: psycopg.Connection) -> list[tuple]:
    return db.execute("SELECT * FROM pgrerank.judged('documents')").fetchall()


def test_feedback_comes_back_with_texts_and_means(db, reranker):
    db.execute("SELECT pgrerank.feedback('documents', 'what do cats do', 2)")
    db.execute("SELECT pgrerank.feedback('documents', ' what do cats do ', '2', 0.5)")
    db.execute("SELECT pgrerank.feedback('documents', 'what do cats do', %s, %s)", (3, 0.0))
    assert judged(db) == [
        ("what do cats do", "2", 0.75, 2, "Cats\nA cat sleeps most of the day."),
        ("what do cats do", "3", 0.0, 1, "Bread\nFlour, water, salt and time make bread."),
    ]
    db.execute("DELETE FROM documents WHERE id = 3")
    assert judged(db)[1] == ("what do cats do", "3", 0.0, 1, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'nowhere', 'q', 1", 'reranker "nowhere" does not exist'),
        ("'documents', '  ', 1", "query of a feedback has 2 characters"),
        ("'documents', NULL, 1", "query of a feedback has 0 characters"),
        ("'documents', repeat('x', 10001), 1", "10001 characters, expected a text of up to 10000"),
        ("'documents', 'q', 1, 1.5", "relevance is 1.5, expected 0"),
        ("'documents', 'q', 1, 'NaN'", "relevance is NaN, expected 0"),
        ("'documents', 'q', 1, NULL", "relevance is NULL, expected 0"),
        ("'documents', 'q', 99", "no document '99' in documents"),
        ("'documents', 'q', NULL::text", "no document NULL in documents"),
        ("'documents', 'q', 'x'", "invalid input syntax for type bigint"),
    ],
)
def test_bad_feedback_is_refused(db, reranker, arguments, message):
    with pytest.raises(psycopg.Error, match=message):
        db.execute(f"SELECT pgrerank.feedback({arguments})")
    assert judged(db) == []


def test_keys_may_be_uuids_and_texts(db):
    db.execute("CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), body text)")
    [key] = db.execute("INSERT INTO notes (body) VALUES ('ä 😀') RETURNING id").fetchone()
    db.execute("SELECT pgrerank.register_model('e', 'embedding', '/nowhere', 8)")
    db.execute(
        "SELECT pgrerank.create_reranker('notes', 'notes', '{body}', embedding_model => 'e')"
    )
    db.execute("SELECT pgrerank.feedback('notes', '猫?', %s)", (key,))
    db.execute("SELECT pgrerank.feedback('notes', '猫?', %s, 0)", (str(key),))
    found = db.execute("SELECT * FROM pgrerank.judged('notes')").fetchall()
    assert found == [("猫?", str(key), 0.5, 2, "ä 😀")]


def test_a_role_judges_what_it_sees_where_it_was_allowed_to(dsn, db, reranker, make_role):
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY cats ON documents FOR SELECT USING (title = 'Cats')")
    role = make_role()
    db.execute(f"GRANT SELECT ON documents TO {role}")
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as reader:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            reader.execute("SELECT pgrerank.feedback('documents', 'q', 2)")
        assert f"GRANT INSERT ON pgrerank.feedback TO {role};" in refused.value.diag.message_hint
        db.execute(f"GRANT INSERT ON pgrerank.feedback TO {role}")
        reader.execute("SELECT pgrerank.feedback('documents', 'q', 2)")
        with pytest.raises(psycopg.errors.NoDataFound, match=r"or role .* can't see it"):
            reader.execute("SELECT pgrerank.feedback('documents', 'q', 1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT * FROM pgrerank.feedback")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT * FROM pgrerank.judged('documents')")
    assert len(judged(db)) == 1
    assert db.execute("SELECT given_by FROM pgrerank.feedback").fetchone() == (role,)


def test_clicks_outlive_their_reranker(db, reranker):
    db.execute("SELECT pgrerank.feedback('documents', 'q', 2)")
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    reranker.create()
    assert len(judged(db)) == 1
