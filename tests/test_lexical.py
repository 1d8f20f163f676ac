"""The lexical leg of recall: BM25 by our own statistics, bounded, in each document's language."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import psycopg
import pytest
from psycopg.types.json import Jsonb

WORDS_ONLY = {"embedding_model": None, "late_interaction_model": None, "cross_encoder_model": None}
STOP_WORDS = {"the", "is", "when", "no", "a", "most", "of", "and"}


def found(db, query: str, **arguments) -> list[tuple]:
    """Id, score, lexical score, stage and whether it is degraded, best first."""
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return db.execute(
        "SELECT id, score, lexical_score, stage, degraded"
        f" FROM pgrerank.documents_search(%(query)s{named}) ORDER BY rank",
        {"query": query} | arguments,
    ).fetchall()


def ids(rows: list[tuple]) -> list[int]:
    return [row[0] for row in rows]


def fill(db, source, texts, **settings) -> None:
    """The source with these documents instead, and a reranker by words alone."""
    db.execute("TRUNCATE documents RESTART IDENTITY")
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO documents (body) VALUES (%s)", [(text,) for text in texts])
    source.create(**WORDS_ONLY, text_columns=["body"], **settings)
    while db.execute("SELECT FROM pgrerank.claim(1000)").fetchone() is not None:
        pass


def bm25(texts: list[str], query: set[str]) -> list[float]:
    """Scores by the book, of texts whose words are their own stems."""
    cut = [Counter(word for word in text.split() if word not in STOP_WORDS) for text in texts]
    mean = sum(map(Counter.total, cut)) / sum(bool(words) for words in cut)
    having = {word: sum(word in words for words in cut) for word in query}
    idfs = {word: math.log(1 + (len(cut) - n + 0.5) / (n + 0.5)) for word, n in having.items()}
    return [
        sum(
            idf * words[word] * 2.2 / (words[word] + 1.2 * (0.25 + 0.75 * words.total() / mean))
            for word, idf in idfs.items()
        )
        for words in cut
    ]


def test_the_score_is_that_of_the_book(db, source):
    rng = random.Random(1)
    vocabulary = [f"w{chr(97 + place)}x" for place in range(20)]
    texts = [
        " ".join(rng.choices(vocabulary, k=rng.randint(3, 30), weights=range(1, 21)))
        for _ in range(120)
    ]
    fill(db, source, texts)
    query = {vocabulary[1], vocabulary[7], vocabulary[19]}
    expected = bm25(texts, query)
    rows = found(db, " ".join(query), top_k=120)
    assert len(rows) == sum(score > 0 for score in expected)
    for key, score, lexical_score, stage, degraded in rows:
        assert score == lexical_score == pytest.approx(expected[key - 1], rel=0.02)
        assert (stage, degraded) == ("lexical", False)
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)


def test_a_frequent_word_is_read_where_it_weighs_much(db, source):
    """Every fourth document has the word: more than a call may read."""
    rng = random.Random(2)
    texts = []
    for number in range(12_000):
        rest = [f"w{rng.randint(0, 3000)}q" for _ in range(rng.randint(10, 40))]
        often = ["frequent"] * rng.choice([1, 1, 1, 1, 2, 3, 5]) if number % 4 == 0 else []
        texts.append(" ".join(rest + often + ["usual"] * (number % 3 == 0)))
    fill(db, source, texts)
    db.execute("VACUUM ANALYZE")
    for query in ("frequent", "frequent usual", "frequent w17q"):
        words = set(query.split())
        scores = bm25(texts, words)
        best = sorted(scores, reverse=True)[:100]
        rows = found(db, query, top_k=100)
        assert len(rows) == 100
        right = sum(scores[row[0] - 1] >= 0.98 * best[-1] for row in rows)
        assert right >= 95, query
        assert sum(scores[row[0] - 1] >= 0.98 * best[9] for row in rows[:10]) >= 9


def test_words_are_stemmed_and_stop_words_left_out(db, source):
    fill(db, source, ["Running dogs", "the of and", "A dog ran"])
    assert ids(found(db, "the dogs run")) == [1, 3]
    with pytest.raises(psycopg.Error, match="nothing to search for"):
        found(db, "  ")
    assert found(db, "the of and") == []


@pytest.mark.parametrize(
    "query", ["'", "\\", "a' | 'b", "x & !y", "'' \\' <-> :*", "dog:A*", "🐕 dog\x01"]
)
def test_a_query_is_words_and_nothing_else(db, source, query):
    fill(db, source, ["a dog's life", "back\\slash it's"])
    found(db, query)
    assert ids(found(db, query + " dog"))[0] == 1


def test_each_document_may_have_a_language_of_its_own(db, source):
    db.execute("TRUNCATE documents RESTART IDENTITY")
    db.execute(
        "INSERT INTO documents (body, lang) VALUES ('Die Katzen schliefen', 'de'),"
        " ('les chats dormaient', 'fr-CA'), ('cats were sleeping', 'english'),"
        " ('cats were sleeping', 'xx'), ('cats were sleeping', NULL)"
    )
    source.create(
        **WORDS_ONLY, text_columns=["body"], text_search_config="simple", language_expression="lang"
    )
    source.encode_by_hand()
    assert ids(found(db, "Katze")) == [1]
    assert ids(found(db, "chat")) == [2]
    assert ids(found(db, "sleeps")) == [3]
    assert set(ids(found(db, "sleeping"))) == {3, 4, 5}
    db.execute("UPDATE documents SET lang = 'en' WHERE id = 5")
    assert db.execute("SELECT pending FROM pgrerank.status").fetchone() == (1,)
    source.encode_by_hand()
    assert set(ids(found(db, "sleeps"))) == {3, 5}


def test_scripts_without_blanks_are_cut_into_pairs(db, source):
    fill(
        db,
        source,
        ["我喜欢吃苹果和香蕉", "東京タワーは高い", "ฉันชอบแมว", "apple 苹果 juice", "한국어 문장"],
    )
    assert ids(found(db, "苹果")) == [4, 1]
    assert ids(found(db, "タワー")) == [2]
    assert ids(found(db, "แมว")) == [3]
    assert ids(found(db, "apples")) == [4]
    assert ids(found(db, "한국어")) == [5]


def test_the_configuration_is_the_database_s_own_or_english_with_a_notice(db, source):
    notices = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    db.execute("SET default_text_search_config = 'pg_catalog.german'")
    fill(db, source, ["Katzen"])
    stored = "SELECT text_search_config FROM pgrerank.generations ORDER BY number DESC LIMIT 1"
    assert db.execute(stored).fetchone() == ("german",)
    assert ids(found(db, "katze")) == [1]
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    assert notices == []
    db.execute("SET default_text_search_config = 'pg_catalog.simple'")
    source.create(**WORDS_ONLY)
    assert db.execute(stored).fetchone() == ("english",)
    assert "cut into words by english" in notices[0]
    db.execute("SELECT pgrerank.alter_reranker('documents', text_search_config => 'simple')")
    assert db.execute(stored).fetchone() == ("simple",)
    with pytest.raises(psycopg.errors.UndefinedObject, match='"klingon" does not exist') as raised:
        db.execute("SELECT pgrerank.alter_reranker('documents', text_search_config => 'klingon')")
    assert "english" in (raised.value.diag.message_hint or "")
    with pytest.raises(psycopg.Error, match="language_expression of documents"):
        db.execute("SELECT pgrerank.alter_reranker('documents', language_expression => 'nope')")


def test_words_follow_their_documents(db, source):
    fill(db, source, ["one apple", "two pears", "three plums"])
    db.execute("UPDATE documents SET body = 'two apples' WHERE id = 2")
    db.execute("DELETE FROM documents WHERE id = 1")
    source.encode_by_hand()
    assert ids(found(db, "apple")) == [2]
    assert found(db, "pear") == []
    db.execute("TRUNCATE documents")
    assert found(db, "apple") == []
    assert db.execute("SELECT count(*) FROM pgrerank.documents_1_words").fetchone() == (0,)


def test_documents_are_weighed_again_when_the_mean_length_moves(db, source):
    fill(db, source, ["short words", "few words"])
    texts = [
        "short words",
        "few words",
        *(f"long {'and longer text ' * 30} {i}" for i in range(40)),
    ]
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO documents (body) VALUES (%s)", [(t,) for t in texts[2:]])
    source.encode_by_hand()
    source.encode_by_hand()
    assert db.execute("SELECT pending FROM pgrerank.status").fetchone() == (0,)
    [(lowest, highest)] = db.execute(
        "SELECT min(mean_length), max(mean_length) FROM pgrerank.documents_1_words"
    ).fetchall()
    assert highest < 1.3 * lowest
    assert lowest > 50


def test_of_many_documents_a_sample_is_counted(db, source):
    db.execute(
        "CREATE OR REPLACE FUNCTION pgrerank._counted_documents() RETURNS int"
        " LANGUAGE sql IMMUTABLE AS 'SELECT 2000'"
    )
    fill(db, source, [f"every one {'half' * (n % 2)} number{n}q" for n in range(6000)])
    [(documents, mean)] = db.execute(
        "SELECT documents, mean_length FROM pgrerank.word_statistics"
    ).fetchall()
    assert documents == pytest.approx(6000, rel=0.7)
    assert mean == pytest.approx(3.5, rel=0.1)
    shares = dict(db.execute("SELECT * FROM pgrerank.documents_1_terms").fetchall())
    assert shares == {
        "everi": pytest.approx(1),
        "one": pytest.approx(1),
        "half": pytest.approx(0.5, rel=0.2),
    }
    assert ids(found(db, "number17q")) == [18]


def test_the_longest_documents_are_stored_as_far_as_they_are_read(db, source):
    rng = random.Random(3)
    texts = [
        " ".join(f"w{number}z" for number in range(60_000)),
        "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(250_000)),
        "x" * 300_000,
        "中" * 300_000,
        " ".join(f"{chr(rng.randint(0x400, 0x4FF)) * 40}{number}" for number in range(6_000)),
        "a cat",
    ]
    fill(db, source, texts)
    assert ids(found(db, "cat")) == [6]
    assert ids(found(db, "中中"))[0] == 4
    assert ids(found(db, " ".join(f"w{number}z" for number in range(2000)))) == [1]


def test_a_filter_and_row_level_security_hold(db, dsn, source, make_role):
    fill(db, source, [f"dog number {number}" for number in range(300)])
    db.execute("UPDATE documents SET tenant = 2 WHERE id > 290")
    assert ids(found(db, "dog", filter=Jsonb({"tenant": 2}), top_k=20)) == list(range(291, 301))
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY own ON documents USING (tenant = 2)")
    role = make_role()
    with psycopg.connect(dsn, user=role, password=role, autocommit=True) as theirs:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            found(theirs, "dog")
        assert theirs.execute("SELECT * FROM pgrerank.documents_1_terms").fetchall() == []
        db.execute(f"GRANT SELECT ON documents TO {role}")
        assert set(ids(found(theirs, "dog", top_k=20))) == set(range(291, 301))
        assert found(theirs, "dog number 7", filter=Jsonb({"tenant": 1})) == []


def test_both_legs_make_the_pool_and_each_scores_what_the_other_found(db, source):
    db.execute("TRUNCATE documents RESTART IDENTITY")
    db.execute("ALTER TABLE documents ADD vec vector(2)")
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO documents (body, vec) VALUES (%s, %s)",
            [("rare zebra" if i == 40 else f"dog {i}", f"[{i},1]") for i in range(1, 41)],
        )
    source.create(**WORDS_ONLY, text_columns=["body"], embedding_column="vec")
    source.encode_by_hand()
    search = (
        "SELECT id, dense_score, lexical_score, stage FROM pgrerank.documents_search('zebra',"
        " query_embedding => '[0,1]', candidates => 3, top_k => 3, blend => {}) ORDER BY rank"
    )
    rows = db.execute(search.format("""'{"dense": 1, "lexical": 1}'""")).fetchall()
    assert {row[0] for row in rows} == {1, 2, 40}
    assert rows[[row[0] for row in rows].index(40)][1] == pytest.approx(
        1 / math.hypot(40, 1), abs=1e-4
    )
    assert {row[2] for row in rows if row[0] != 40} == {0}
    dense_alone = db.execute(search.format("""'{"dense": 1}'""")).fetchall()
    assert [(row[0], row[2], row[3]) for row in dense_alone] == [
        (i, None, "dense") for i in (1, 2, 3)
    ]
    words_alone = db.execute(search.format("""'{"lexical": 1}'""")).fetchall()
    assert [(row[0], row[1], row[3]) for row in words_alone] == [(40, None, "lexical")]
    fused = db.execute(search.format("'{}'")).fetchall()
    assert fused[0][0] in (1, 40)


def test_dense_recall_compares_all_where_few_match(db, source):
    """Ten of 5,000 match: HNSW alone would find none of them, or few."""
    db.execute("TRUNCATE documents RESTART IDENTITY")
    db.execute("ALTER TABLE documents ADD vec vector(2)")
    db.execute(
        "INSERT INTO documents (body, tenant, vec)"
        " SELECT 'x', 1 + (n > 4990)::int, ARRAY[n, 1]::real[]::vector"
        " FROM generate_series(1, 5000) n"
    )
    db.execute("CREATE INDEX ON documents USING hnsw (vec vector_cosine_ops)")
    db.execute("ANALYZE documents")
    source.create(**WORDS_ONLY, text_columns=["body"], embedding_column="vec")
    rows = db.execute(
        "SELECT id FROM pgrerank.documents_search(query_embedding => '[0,1]', filter => %s)",
        (Jsonb({"tenant": 2}),),
    ).fetchall()
    assert [key for (key,) in rows] == list(range(4991, 5001))


def test_hnsw_that_finds_too_few_is_followed_by_all_or_says_so(db, source):
    """The planner takes the two columns for independent, and expects ten times what matches."""
    db.execute("TRUNCATE documents RESTART IDENTITY")
    db.execute("ALTER TABLE documents ADD vec vector(2)")
    db.execute(
        "INSERT INTO documents (body, tenant, lang, vec)"
        " SELECT 'x', n % 2, (n % 2)::text, ARRAY[n, 1]::real[]::vector"
        " FROM generate_series(1, 20000) n"
    )
    db.execute("UPDATE documents SET lang = '1' WHERE (id > 19990 OR id = 2) AND tenant = 0")
    db.execute("CREATE INDEX ON documents USING hnsw (vec vector_cosine_ops)")
    db.execute("ANALYZE documents")
    source.create(**WORDS_ONLY, text_columns=["body"], embedding_column="vec")
    search = (
        "SELECT id, degraded, reason FROM pgrerank.documents_search(query_embedding => '[0,1]',"
        " filter => %s, top_k => 5, timeout => {})"
    )
    matching = Jsonb({"tenant": 0, "lang": "1"})
    rows = db.execute(search.format("'10 s'"), (matching,)).fetchall()
    assert rows == [(key, False, None) for key in (2, 19992, 19994, 19996, 19998)]
    rows = db.execute(search.format("'50 ms'"), (matching,)).fetchall()
    assert {row[1] for row in rows} == {True}
    assert "where 100 were asked for" in rows[0][2]


def test_a_deadline_that_has_passed_ends_a_search_before_its_next_stage(db, source):
    db.execute("ALTER TABLE documents ADD vec vector(32)")
    db.execute("UPDATE documents SET vec = array_fill(id::real, '{32}')::vector")
    source.create(embedding_column="vec")
    source.encode_by_hand()
    rows = db.execute(
        "SELECT stage, degraded, reason FROM pgrerank.documents_search('pool', timeout => '1 ms',"
        " query_embedding => array_fill(1, '{32}')::vector, stages => '{dense, lexical}')"
    ).fetchall()
    assert {row[0] for row in rows} == {"lexical"}
    if rows[0][1]:
        assert re.search("the deadline passed|the timeout leaves no time", rows[0][2])
