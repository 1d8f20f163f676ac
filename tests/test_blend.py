"""What a blend makes of the stages' scores, by default and where a score is none."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgrerank.stages import DEFAULT_BLEND
from tests.helpers.workers import wait_for, worker

SEARCH = (
    "SELECT id, score, dense_score, dense_rank, cross_encoder_score, degraded"
    " FROM pgrerank.documents_search('the pool', strict => true, {}) ORDER BY rank"
)


@pytest.fixture
def served(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    with worker(dsn, tmp_path):
        yield source


def test_stages_are_blended_unless_told_to_overrule(db, served):
    served.create()
    wait_for(db, "s.pending = 0")
    assert db.execute("SELECT blend FROM pgrerank.rerankers").fetchone() == (DEFAULT_BLEND,)
    default = db.execute(SEARCH.format("blend => NULL")).fetchall()
    assert default == db.execute(SEARCH.format("blend => %s"), [Jsonb(DEFAULT_BLEND)]).fetchall()
    assert sum(row[1] for row in default) == pytest.approx(0, abs=1e-4), (
        "blended scores are centred"
    )
    overruled = db.execute(SEARCH.format("blend => '{}'")).fetchall()
    assert [row[1] for row in overruled] == [row[4] for row in overruled]
    db.execute("SELECT pgrerank.alter_reranker('documents', blend => '{}')")
    assert db.execute(SEARCH.format("blend => NULL")).fetchall() == overruled


def test_a_zero_vector_has_no_score_and_spoils_none(db, served):
    db.execute("ALTER TABLE documents ADD vec vector(32)")
    db.execute("UPDATE documents SET vec = array_fill(id::real, '{32}')::vector")
    db.execute("INSERT INTO documents (title, vec) VALUES ('z', array_fill(0, '{32}')::vector)")
    served.create(embedding_column="vec")
    wait_for(db, "s.pending = 0")
    rows = db.execute(SEARCH.format("recall => 'exact'")).fetchall()
    assert [row[0] for row in rows if row[2] is None] == [4]
    assert all(-10 < row[1] < 10 for row in rows)
    zeros = "recall => 'exact', query_embedding => array_fill(0, '{32}')::vector"
    rows = db.execute(SEARCH.format(zeros)).fetchall()
    assert {row[2] for row in rows} == {None}
    by_reading = sorted(rows, key=lambda row: -row[1])
    assert [row[0] for row in rows] == [row[0] for row in by_reading]


@pytest.mark.parametrize("blend", [{}, DEFAULT_BLEND])
def test_a_document_without_a_text_is_not_judged_by_what_reads_texts(db, served, blend):
    db.execute("ALTER TABLE documents ADD vec vector(32)")
    db.execute("INSERT INTO documents (title, body) VALUES (NULL, NULL), ('', E' \\n\\t ')")
    db.execute("UPDATE documents SET vec = array_fill(id::real, '{32}')::vector")
    served.create(embedding_column="vec", blend=Jsonb(blend))
    wait_for(db, "s.pending = 0")
    rows = db.execute(SEARCH.format("recall => 'exact'")).fetchall()
    assert {row[0] for row in rows[:3]} == {1, 2, 3}
    assert {(row[0], row[4]) for row in rows[3:]} == {(4, None), (5, None)}
    assert not any(row[5] for row in rows)


def test_candidates_of_ones_own_bring_their_scores_or_get_them_by_the_embedding(db, served):
    served.create(late_interaction_model=None)
    wait_for(db, "s.pending = 0")
    nearly = """blend => '{"dense": 1, "cross_encoder": 0.001}'"""
    own = f"keys => '{{3,1,99,2,1}}', {nearly}, key_scores => %s"
    rows = db.execute(SEARCH.format(own), [[0.5, 2.5, 9.0, None, 7.0]]).fetchall()
    assert [(row[0], row[2], row[3]) for row in rows] == [(1, 2.5, 2), (2, None, 3), (3, 0.5, 1)]
    vector = "(SELECT embedding::vector FROM pgrerank.documents_1_passages WHERE key = 2)"
    near = f"keys => '{{1,2,3}}', query_embedding => {vector}, stages => '{{dense}}'"
    rows = db.execute(SEARCH.format(near)).fetchall()
    assert [row[0] for row in rows] == [1, 2, 3], "the order is the caller's"
    assert rows[1][2] == pytest.approx(1, abs=1e-3) == max(row[2] for row in rows)
    blended = near.replace("'{dense}'", "NULL") + f", {nearly}"
    assert db.execute(SEARCH.format(blended)).fetchall()[0][0] == 2
    for arguments, message in (
        (
            "keys => '{1,2}', key_scores => '{1}'",
            "key_scores has 1 elements, expected one for each",
        ),
        ("key_scores => '{1}'", "one for each of the 0 keys"),
        ("keys => '{1}', key_scores => '{NaN}'", "one that is no number"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=message):
            db.execute(SEARCH.format(arguments))


def test_a_call_that_could_search_nothing_raises_unless_told_not_to(db, source):
    source.create()
    source.encode_by_hand()
    search = "SELECT id, stage FROM pgrerank.documents_search(%s{})"
    assert db.execute(search.format(""), ["cat"]).fetchall() == [(2, "lexical")]
    with pytest.raises(psycopg.Error, match="nothing could be searched: no worker") as raised:
        db.execute(search.format(""), ["zebra"])
    assert raised.value.sqlstate == "PGR01"
    assert "strict => false" in (raised.value.diag.message_hint or "")
    assert db.execute(search.format(", strict => false"), ["zebra"]).fetchall() == []
