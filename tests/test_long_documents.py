"""Long documents: recalled by their best passage, judged by it, and shown with it."""

from __future__ import annotations

import json
import signal
import uuid

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.models import ModelSpec, load_encoder, load_reranker
from pgrerank.passages import words
from pgrerank.tokens import unpack
from tests.helpers.searching import NamedSearch, use_engine
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

QUERY = "bread of flour"
WORDS = ["cat", "pool", "bread", "water", "salt", "time", "one", "two", "three", "four", "day"]


def sentence(number: int) -> str:
    """A sentence of its own, of ten words."""
    words = [WORDS[(number * 7 + i * (number % 5 + 1)) % 11] for i in range(8)]
    return f"The {' '.join(words)} {number}."


def long_text(sentences: int) -> str:
    return "\n\n".join(
        " ".join(sentence(number) for number in range(first, min(first + 4, sentences)))
        for first in range(0, sentences, 4)
    )


@pytest.fixture(scope="module", params=["kernel", "worker"])
def long_dsn(request, make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """Three short documents and two long ones, encoded by a worker that stays up."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        use_engine(connection, request.param)
        source = Source(connection)
        for sentences in (30, 200):
            connection.execute(
                "INSERT INTO documents (title, body) VALUES ('Long', %s)", (long_text(sentences),)
            )
        source.models(**tiny_models)
        source.create(timeout="20 s")
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            yield dsn


@pytest.fixture
def search(long_dsn):
    """Calls the search function with named arguments; rows as dicts."""
    with psycopg.connect(long_dsn, autocommit=True, row_factory=dict_row) as connection:
        yield NamedSearch(connection, QUERY)


@pytest.fixture(scope="module")
def encoder(tiny_models):
    return load_encoder(
        ModelSpec("tokens", "late_interaction", "sentence_transformer", tiny_models["tokens"])
    )


def content(connection: psycopg.Connection, key: int) -> str:
    row = connection.execute(
        "SELECT content FROM pgrerank.texts('documents', ARRAY[%s])", (str(key),)
    ).fetchone()
    return row["content"]


def passages(connection: psycopg.Connection, key: int) -> list[tuple[int, int, int]]:
    """Of each passage of a document the number, and where it stands."""
    rows = connection.execute(
        "SELECT p.passage, p.starts, p.ends FROM pgrerank.documents_1 s, LATERAL"
        " pgrerank._passages_of(coalesce(s.bounds, ARRAY[1, 0, (SELECT length(content)"
        " FROM pgrerank.texts('documents', ARRAY[s.key::text]))])) p WHERE s.key = %s"
        " ORDER BY p.place",
        (key,),
    ).fetchall()
    return [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in rows]


def maxsim(query: np.ndarray, document: np.ndarray) -> float:
    return float((document @ query.T).max(axis=0).sum())


def test_passages_hold_all_of_a_text_and_fit_the_model(search, encoder):
    for key, fewest in ((1, 1), (4, 5), (5, 30)):
        text = content(search.connection, key)
        found = passages(search.connection, key)
        assert len(found) >= fewest
        covered = "".join(text[start:end] for _, start, end in found)
        assert "".join(covered.split()) == "".join(text.split())
        sizes = [len(spans) for spans in encoder.offsets([text[s:e] for _, s, e in found])]
        assert max(sizes) <= encoder.room
    assert len(passages(search.connection, 1)) == 1


def test_each_passage_has_an_embedding_of_its_own(search, encoder):
    text = content(search.connection, 4)
    for number, start, end in passages(search.connection, 4):
        stored = search.connection.execute(
            "SELECT embedding::text FROM pgrerank.documents_1_passages"
            " WHERE (key, passage) = (4, %s)",
            (number,),
        ).fetchone()
        wanted = encoder.encode([text[start:end]], role="document", embeddings=True, tokens=False)
        assert np.array(eval(stored["embedding"])) == pytest.approx(wanted.embeddings[0], abs=2e-3)


def test_a_document_is_scored_and_shown_by_its_best_passage(search, encoder):
    asked = encoder.encode([QUERY], role="query", embeddings=True, tokens=True)
    for row in search(stages=["dense", "maxsim"], blend="{}", top_k=5):
        text = content(search.connection, row["id"])
        own = passages(search.connection, row["id"])
        made = encoder.encode(
            [text[s:e] for _, s, e in own], role="document", embeddings=True, tokens=True
        )
        likeness = made.embeddings @ asked.embeddings[0]
        assert row["dense_score"] == pytest.approx(likeness.max(), abs=5e-3)
        nearest = np.argsort(-likeness)[:8]  # so many of a document are scored by MaxSim
        scores = {i: maxsim(asked.tokens[0], made.tokens[i]) for i in nearest}
        assert row["maxsim_score"] == pytest.approx(max(scores.values()), rel=5e-3)
        shown = next(i for i, (_, s, _) in enumerate(own) if s == row["passage_start"])
        assert scores[shown] == pytest.approx(max(scores.values()), rel=5e-3)
        assert row["passage"] == text[row["passage_start"] : row["passage_end"]]
        assert row["passages"] is None


def test_the_best_n_come_as_an_array(search):
    plain = {row["id"]: row for row in search()}
    for row in search(passages=3):
        found = row["passages"]
        assert len(found) == min(3, len(passages(search.connection, row["id"])))
        assert found[0]["text"] == row["passage"] == plain[row["id"]]["passage"]
        assert found[0]["start"] == row["passage_start"]
        assert found == sorted(
            found, key=lambda one: (one["stage"] == "cross_encoder", one["score"]), reverse=True
        )
        assert [one["stage"] for one in found].count("cross_encoder") == 1
        text = content(search.connection, row["id"])
        assert all(text[one["start"] : one["end"]] == one["text"] for one in found)
    assert {(row["passage"], row["passage_start"]) for row in search(passages=0)} == {(None, None)}


@pytest.mark.parametrize("read", [1, 2])
def test_the_cross_encoder_reads_the_best_passages_and_no_more(search, tiny_models, read):
    reranker = load_reranker(
        ModelSpec("reranker", "cross_encoder", "cross_encoder", tiny_models["reranker"])
    )
    for row in search(cross_encoder_passages=read, passages=read, early_exit=0):
        texts = [one["text"] for one in row["passages"] or []] or [row["passage"]]
        scores = reranker.score([(QUERY, text) for text in texts])
        assert row["cross_encoder_score"] == pytest.approx(max(scores), abs=1e-3)


def test_a_document_found_by_its_words_alone_shows_a_passage_too(search):
    rows = search("sleeps", stages=["lexical"])
    assert rows
    assert all(row["passage"] for row in rows)


def test_highlights_are_the_words_that_maxsim_chose(search, encoder):
    asked = encoder.encode([QUERY], role="query", embeddings=False, tokens=True).tokens[0]
    for row in search(highlights=True, stages=["dense", "maxsim"]):
        text = content(search.connection, row["id"])
        assert row["highlights"]
        for one in row["highlights"]:
            assert row["passage_start"] <= one["start"] < one["end"] <= row["passage_end"]
        stored = search.connection.execute(
            "SELECT string_agg(t.tokens, '' ORDER BY t.part) AS tokens"
            " FROM pgrerank.documents_1_tokens t WHERE t.key = %s AND t.passage = ("
            " SELECT p.passage FROM pgrerank.documents_1_passages p WHERE p.key = t.key"
            " AND p.cut_hash = pgrerank._cut_hash(%s))",
            (row["id"], row["passage"]),
        ).fetchone()
        products = unpack(stored["tokens"]) @ asked.T
        spans = encoder.offsets([row["passage"]])[0]
        for at in set(products.argmax(axis=0).tolist()):
            word = row["passage"][slice(*spans[at])].strip()
            place = row["passage_start"] + spans[at][0]
            assert any(
                one["start"] <= place < one["end"] and word in text[one["start"] : one["end"]]
                for one in row["highlights"]
            )
    assert {row["highlights"] for row in search(stages=["dense", "maxsim"])} == {None}


def test_half_the_candidates_passages_still_make_all_candidates(search):
    """HNSW yields passages, most of them of one document; recall is of documents all the same."""
    rows = search(stages=["dense"], candidates=5, top_k=5, recall="hnsw")
    assert len({row["id"] for row in rows}) == 5


def test_the_places_of_passages_can_be_asked(search):
    places = "SELECT * FROM pgrerank.passages('documents', '{4,1}')"
    found = [tuple(row.values()) for row in search.connection.execute(places)]
    wanted = [(str(n), *place) for n in (1, 4) for _, *place in passages(search.connection, n)]
    assert found == wanted
    with pytest.raises(psycopg.Error, match='reranker "documents" has no generation 9'):
        search.connection.execute("SELECT * FROM pgrerank.passages('documents', NULL, 9)")


def test_evaluations_tell_long_documents_from_short_ones(search, long_dsn, tmp_path):
    shown = {row["id"]: row for row in search(top_k=10)}
    right = [shown[4]["passage_start"], shown[4]["passage_end"]]
    rows = [
        {"id": "long", "query": QUERY, "qrels": {"4": 1, "1": 0}, "passages": {"4": [right]}},
        {"id": "both", "query": QUERY, "qrels": {"5": 1, "3": 1}, "passages": {"5": [[0, 3]]}},
        {"id": "short", "query": "cats sleep", "qrels": {"2": 1}},
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = f"judged-{uuid.uuid4()}"
    arguments = ["--dsn", make_conninfo(long_dsn), "--json-lines", str(tmp_path / "judged.jsonl")]
    run = CliRunner().invoke(app, ["qrels", "load", name, *arguments])
    assert run.exit_code == 0, run.output
    arguments = ["evaluate", "documents", "--dsn", make_conninfo(long_dsn), "--qrels", name]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["passages"]
    assert {one["name"]: one["queries"] for one in found["slices"]} == {
        "one passage": 1,
        "several passages": 2,
    }
    counts = ("documents", "several", "judged", "within")
    assert [found[name] for name in counts] == [5, 2, 2, 1]
    told = CliRunner().invoke(app, arguments).stderr
    assert "2 of 5 documents among the first ten have several" in told
    assert "the passage shown is where the answer is: 1 of 2 relevant documents found" in told


@pytest.fixture
def encoded(dsn, db, source, tiny_models, tmp_path):
    """A long document, encoded; the worker has gone."""
    source.models(**tiny_models)
    source.create(timeout="20 s")
    db.execute("UPDATE documents SET title = NULL, body = %s WHERE id = 1", (long_text(200),))
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0 AND encoded = source_rows")
    return source


def rows_of(db: psycopg.Connection, key: int = 1) -> dict[int, str]:
    """The transactions that have written the passages of a document, by number."""
    return dict(
        db.execute(
            "SELECT passage, xmin::text FROM pgrerank.documents_1_passages WHERE key = %s", (key,)
        ).fetchall()
    )


@pytest.mark.parametrize(
    ("edit", "most"),
    [
        ("body || E'\\n\\nOne more of bread, water and salt.'", 3),
        ("replace(body, ' 100.', ' and a cat 100.')", 6),
        ("'Salt is in front of it. ' || body", 6),
    ],
)
def test_an_edit_encodes_few_passages(dsn, db, encoded, tmp_path, edit, most):
    before = rows_of(db)
    db.execute(f"UPDATE documents SET body = {edit} WHERE id = 1")
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0")
    after = rows_of(db)
    assert len(after.items() - before.items()) <= most
    assert len(after) >= len(before) - most
    text = db.execute("SELECT content FROM pgrerank.texts('documents', '{1}')").fetchone()[0]
    found = passages(db, 1)
    covered = "".join(text[s:e] for _, s, e in found)
    assert "".join(covered.split()) == "".join(text.split())
    assert {number for number, _, _ in found} == set(after)
    tokens = db.execute(
        "SELECT DISTINCT passage FROM pgrerank.documents_1_tokens WHERE key = 1"
    ).fetchall()
    assert {number for (number,) in tokens} == set(after)


def test_a_text_that_has_changed_is_not_shown_from_old_places(db, encoded):
    search = "SELECT passage FROM pgrerank.documents_search('x', keys => '{1}', strict => false)"
    assert db.execute(search).fetchone()[0]
    db.execute("UPDATE documents SET body = 'Secret: ' || reverse(body) WHERE id = 1")
    assert db.execute(search).fetchone() == (None,)


@pytest.mark.timeout(120)
def test_what_a_killed_worker_has_stored_of_a_long_document_is_kept(dsn, db, encoded, tmp_path):
    db.execute("UPDATE documents SET body = %s WHERE id = 1", (long_text(12_000),))
    with worker(dsn, tmp_path, "--no-serve") as process:
        while len(stored := rows_of(db)) < 2000:
            assert db.execute("SELECT count(*) FROM pgrerank.pending").fetchone() == (1,)
        process.signal(signal.SIGKILL)
    stored = rows_of(db)
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0 AND failed = 0")
    after = rows_of(db)
    assert len(after) > len(stored)
    assert len(after.items() & stored.items()) >= 2000 - 100


def test_a_prefix_is_read_in_front_of_each_passage(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(text_columns=["body"], passage_prefix="title", timeout="20 s")
    db.execute("UPDATE documents SET body = %s WHERE id = 1", (long_text(40),))
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        reranker = load_reranker(
            ModelSpec("reranker", "cross_encoder", "cross_encoder", tiny_models["reranker"])
        )
        cursor = db.cursor(row_factory=dict_row)
        search = "SELECT * FROM pgrerank.documents_search(%s, keys => '{1}')"
        [row] = cursor.execute(search, (QUERY,)).fetchall()
        [score] = reranker.score([(QUERY, "Pools\n" + row["passage"])])
        assert row["cross_encoder_score"] == pytest.approx(score, abs=1e-3)
        before = rows_of(db)
        db.execute("UPDATE documents SET title = 'Cats' WHERE id = 1")
        wait_for(db, "pending = 0")
        assert not rows_of(db).items() & before.items()
        db.execute("ALTER TABLE documents RENAME COLUMN title TO heading")
        [row] = cursor.execute(search, (QUERY,)).fetchall()
        [score] = reranker.score([(QUERY, "Cats\n" + row["passage"])])
        assert row["cross_encoder_score"] == pytest.approx(score, abs=1e-3)


def test_another_size_is_another_generation(dsn, db, encoded, tmp_path):
    before = len(passages(db, 1))
    db.execute("SELECT pgrerank.alter_reranker('documents', passage_size => 20)")
    with worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "next_generation IS NULL AND pending = 0")
    bounds = "SELECT cardinality(bounds) / 3 FROM pgrerank.documents_2 WHERE key = 1"
    assert db.execute(bounds).fetchone()[0] > 2 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passage_size": 3}, "passage_size is '3', expected 16 to 8192"),
        ({"passage_overlap": 9000}, "passage_overlap is '9000', expected 0 to 4096"),
        ({"passage_size": 20, "passage_overlap": 6}, "passage_overlap is 6, expected up to 5"),
        ({"passage_structure": "word"}, "passage_structure is 'word', expected plain, markdown"),
        ({"passage_prefix": "no_such_column"}, "no_such_column"),
        ({"cross_encoder_passages": 0}, "cross_encoder_passages is '0', expected 1 to 100"),
    ],
)
def test_settings_are_checked(source, settings, message):
    with pytest.raises(psycopg.Error, match=message):
        source.create(**settings)


MARKDOWN = "# Bread\n\n{}\n\n## Salt\n\n{}\n\n# Cats\n\n{}"
HTML = "<h1>Bread</h1><p>{}</p><h2>Salt</h2><p>{} 2 &lt; 3</p><h1>Cats</h1><p class='x > y'>{}</p>"


@pytest.mark.parametrize(("structure", "template"), [("markdown", MARKDOWN), ("html", HTML)])
def test_structured_texts_are_cut_at_headings_and_read_without_markup(
    dsn, db, source, tiny_models, tmp_path, structure, template
):
    source.models(**tiny_models)
    source.create(text_columns=["body"], passage_structure=structure, timeout="20 s")
    parts = [" ".join(sentence(n) for n in range(first, first + 5)) for first in (0, 10, 20)]
    body = template.format(*parts)
    db.execute("UPDATE documents SET body = %s WHERE id = 1", (body,))
    cursor = db.cursor(row_factory=dict_row)
    search = (
        "SELECT * FROM pgrerank.documents_search(%s, keys => '{1}', highlights => true,"
        " passages => 20)"
    )
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        reranker = load_reranker(
            ModelSpec("reranker", "cross_encoder", "cross_encoder", tiny_models["reranker"])
        )
        [row] = cursor.execute(search, (QUERY,)).fetchall()
        assert all(body[one["start"] : one["end"]] == one["text"] for one in row["passages"])
        starts = {one["start"] for one in row["passages"]}
        titles = ("# Bread", "## Salt", "# Cats") if structure == "markdown" else ("<h1>", "<h2>")
        assert all(any(abs(body.index(title) - start) < 5 for start in starts) for title in titles)
        [score] = reranker.score([(QUERY, words(row["passage"], structure))])
        assert row["cross_encoder_score"] == pytest.approx(score, abs=1e-3)
        assert row["highlights"] is not None or "<" in row["passage"]

        marked = body.replace("cat", "<i>cat</i>") if structure == "html" else body + " *Salt.*"
        db.execute("UPDATE documents SET body = %s WHERE id = 1", (marked,))
        wait_for(db, "pending = 0")
        [row] = cursor.execute(search, (QUERY,)).fetchall()
        covered = "".join(
            one["text"] for one in sorted(row["passages"], key=lambda one: one["start"])
        )
        assert "".join(words(covered, structure).split()) == "".join(
            words(marked, structure).split()
        )


def test_a_long_prefix_takes_half_and_its_words_are_not_highlighted(
    dsn, db, source, tiny_models, tmp_path
):
    source.models(**tiny_models)
    source.create(text_columns=["body"], passage_prefix="title", timeout="20 s")
    db.execute("UPDATE documents SET title = repeat('bread of flour ', 300) WHERE id = 2")
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        rows = db.execute(
            "SELECT id, highlights, passage FROM pgrerank.documents_search(%s, highlights => true,"
            " strict => true)",
            (QUERY,),
        ).fetchall()
    assert len(rows) == 3
    for key, highlights, passage in rows:
        assert highlights is not None, key
        for one in highlights:
            assert 0 <= one["start"] < one["end"] <= len(passage)
    stored = "SELECT max(length(tokens)) FROM pgrerank.documents_1_tokens"
    assert db.execute(stored).fetchone()[0] < 64 * 40


@pytest.mark.parametrize("recall", ["auto", "exact"])
def test_a_document_of_many_near_passages_leaves_room_for_others(db, source, recall):
    source.create(late_interaction_model=None, cross_encoder_model=None)
    db.execute("INSERT INTO documents (title) SELECT 'number ' || n FROM generate_series(1, 60) n")
    source.encode_by_hand()
    db.execute(
        "INSERT INTO pgrerank.documents_1_passages (key, passage, embedding, hash, cut_hash)"
        " SELECT 1, n, ('[1' || repeat(',0', 31) || ']')::halfvec, '', ''"
        " FROM generate_series(2, 900) n"
    )
    vector = [1.0] + [0.01] * 31
    search = (
        "SELECT id FROM pgrerank.documents_search(NULL, query_embedding => %s::vector,"
        " stages => '{dense}', candidates => 20, top_k => 20, recall => %s)"
    )
    found = [key for (key,) in db.execute(search, (str(vector), recall)).fetchall()]
    assert len(set(found)) == len(found) == 20
    assert found[0] == 1


def test_what_is_not_encoded_as_it_is_shows_no_passage(db, encoded):
    search = "SELECT passage FROM pgrerank.documents_search('x', keys => '{2}', strict => false)"
    assert db.execute(search).fetchone()[0]
    db.execute("UPDATE documents SET body = %s WHERE id = 2", (long_text(100),))
    assert db.execute(search).fetchone() == (None,)
    [key] = db.execute("INSERT INTO documents (title) VALUES ('new') RETURNING id").fetchone()
    assert db.execute(search.replace("2", str(key))).fetchone() == (None,)
