"""Judgements: read from files and clicks, kept in the database, written again."""

from __future__ import annotations

import json
from pathlib import Path

import ir_measures
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.errors import EvaluationError, FileError
from pgrerank.judgements import (
    Judgements,
    drop_set,
    from_feedback,
    list_sets,
    load_set,
    missing_keys,
    read_beir,
    read_json_lines,
    read_trec,
    save_set,
    write_json_lines,
    write_trec,
)
from pgrerank.training import Triple, write_triples
from pgrerank.training import read_beir as read_triples

SOME = Judgements(
    {"1": "which animal sleeps", "2": "what is in a loaf"},
    {"1": {"2": 2, "1": 0}, "2": {"3": 1, "9": -1}},
)
PLACED = Judgements(SOME.queries, SOME.qrels, {"1": {"2": [(0, 3), (10, 400)]}})
TEXTS = st.text(min_size=1).filter(str.strip)
WORDS = st.text(min_size=1).filter(lambda w: w.split() == [w] and not w.startswith("\ufeff"))
LINES = TEXTS.filter(lambda text: not set(text) & set("\t\n\r"))


def judgements(ids: st.SearchStrategy[str], texts: st.SearchStrategy[str]):
    """Any judgements whose ids and keys, and whose queries, are such."""
    judged = st.dictionaries(ids, st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4)
    sets = st.dictionaries(ids, st.tuples(texts, judged), min_size=1, max_size=4)
    return sets.map(
        lambda made: Judgements(
            {query: text for query, (text, _) in made.items()},
            {query: documents for query, (_, documents) in made.items()},
        )
    )


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.stdout, " ".join(done.stderr.split())


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.fixture
def beir(tmp_path) -> Path:
    lines(
        tmp_path / "queries.jsonl",
        *({"_id": query, "text": text} for query, text in SOME.queries.items()),
        {"_id": "3", "text": " "},
    )
    judged = [
        f"{q}\t{key}\t{r}" for q, documents in SOME.qrels.items() for key, r in documents.items()
    ]
    lines(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", *judged)
    return tmp_path


# Files


@given(written=judgements(st.text(min_size=1), TEXTS))
def test_json_lines_are_read_as_they_were_written(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("qrels") / "qrels.jsonl"
    write_json_lines(written, path)
    assert read_json_lines(path) == written


def test_places_of_answers_are_read_as_they_were_written(tmp_path):
    write_json_lines(PLACED, tmp_path / "qrels.jsonl")
    assert read_json_lines(tmp_path / "qrels.jsonl") == PLACED


@given(written=judgements(WORDS, LINES))
def test_trec_files_are_read_as_they_were_written(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("qrels")
    write_trec(written, folder / "qrels.txt", folder / "queries.tsv")
    assert read_trec(folder / "qrels.txt", folder / "queries.tsv") == written
    others = {}
    for found in ir_measures.read_trec_qrels(str(folder / "qrels.txt")):
        others.setdefault(found.query_id, {})[found.doc_id] = found.relevance
    assert others == written.qrels


def test_a_beir_folder_and_its_queries_beside_trec_qrels(beir, tmp_path):
    assert read_beir(beir) == SOME
    write_trec(SOME, tmp_path / "qrels.txt")
    assert read_trec(tmp_path / "qrels.txt", beir / "queries.jsonl") == SOME


def test_triples_with_keys_are_judgements(tmp_path):
    path = tmp_path / "t.jsonl"
    triples = [
        Triple("q", ("a", "b"), ("c",), pos_id=("1", "2"), neg_id=("3",), neg_scores=(0.5,)),
        Triple("p", ("a",), id="x", pos_id=("1",)),
    ]
    write_triples(path, triples)
    assert read_json_lines(path) == Judgements(
        {"1": "q", "x": "p"}, {"1": {"3": 0, "1": 1, "2": 1}, "x": {"1": 1}}
    )


def test_documents_without_a_text_are_judged_and_teach_nothing(beir):
    lines(
        beir / "corpus.jsonl", *({"_id": key, "text": key if key != "9" else ""} for key in "1239")
    )
    assert read_beir(beir) == SOME
    loaf = read_triples(beir, "test")[1]
    assert (loaf.pos, loaf.neg) == (("3",), ())


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1 0 a", "line 2, 3 columns, 4 expected: query id, iteration, key, relevance"),
        ("1 0 a much", "line 2, column 4: expected a whole number, not 'much'"),
        ("2 0 a 1", "line 2, column 1: query '2' has no text among the queries"),
        ("1 0 b 0", "line 2, 'b' is 0 for query '1', and 1 further up"),
    ],
)
def test_a_bad_line_of_trec_qrels_is_named(tmp_path, line, fault):
    queries = lines(tmp_path / "queries.tsv", "1\tcats?")
    with pytest.raises(FileError) as refused:
        read_trec(lines(tmp_path / "qrels.txt", "1 0 b 1", line, "1 0 b 1"), queries)
    assert fault in str(refused.value)
    assert "and" not in str(refused.value).splitlines()[-1].split(",")[0], "one fault only"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"query": "q", "qrels": {}}, "field 'qrels': expected {key: relevance}, not {}"),
        ({"query": "q", "qrels": ["a"]}, "field 'qrels': expected {key: relevance}, not [\"a\"]"),
        ({"query": "q", "qrels": {"a": 0.5}}, "field 'qrels'['a']: expected a whole number"),
        ({"query": "q", "qrels": {"a": True}}, "field 'qrels'['a']: expected a whole number"),
        ({"query": "", "qrels": {"a": 1}}, "field 'query': expected a text, not \"\""),
        ({"id": 1, "query": "q", "qrels": {"a": 1}}, "field 'id': '1' is further up already"),
        ({"query": "q", "pos": ["a"]}, "field 'qrels' is missing, and so is 'pos_id'"),
        ({"query": "q", "qrels": {"a": 1}, "pos_id": []}, "field 'pos_id' is unknown"),
        ({"query": "q", "pos_id": "a"}, "field 'pos_id': expected a list of keys, not \"a\""),
        (
            {"query": "q", "qrels": {"a": 1}, "passages": {"b": [[0, 1]]}},
            "field 'passages'['b']: the document is not in 'qrels'",
        ),
        (
            {"query": "q", "qrels": {"a": 1}, "passages": {"a": [0, 1]}},
            "field 'passages'['a']: expected [first, after], characters from 0 in order, not 0",
        ),
        (
            {"query": "q", "qrels": {"a": 1}, "passages": {"a": [[2, 2]]}},
            "field 'passages'['a']: expected [first, after], characters from 0 in order, not [2,",
        ),
        ({"query": "q", "qrels": {"a": 1}, "passages": [1]}, "field 'passages': expected {key:"),
        ('{"query": ]', "column 11: not JSON"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, row, fault):
    path = lines(tmp_path / "q.jsonl", {"query": "fine", "qrels": {"a": 1}}, row)
    with pytest.raises(FileError) as refused:
        read_json_lines(path)
    assert f"{path} can't be read, mend it first:\n  line 2, {fault}" in str(refused.value)


def test_bad_lines_of_queries_and_of_a_beir_folder_are_named(beir, tmp_path):
    queries = lines(tmp_path / "queries.tsv", "1\tcats?\tmore", "2", "3\tcats", "3\tdogs")
    with pytest.raises(FileError) as refused:
        read_trec(lines(tmp_path / "qrels.txt", "1 0 a 1"), queries)
    assert "line 1, 3 columns, 2 expected: id<TAB>text" in str(refused.value)
    assert "line 2, 1 columns" in str(refused.value)
    assert "line 4, column 1: '3' is further up already" in str(refused.value)
    lines(beir / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "3\ta\t1", "4\ta\t1")
    with pytest.raises(FileError) as refused:
        read_beir(beir)
    assert "line 2, column 1: query '3' has no text" in str(refused.value)
    assert "line 3, column 1: '4' is not in the collection" in str(refused.value)
    lines(beir / "queries.jsonl", {"_id": "1", "text": 5}, {"text": "x"}, {"_id": "1", "text": "x"})
    with pytest.raises(FileError) as refused:
        read_beir(beir)
    assert "line 1, field 'text': expected a text, not 5" in str(refused.value)
    assert "line 2, field '_id' is missing" in str(refused.value)


@pytest.mark.parametrize("empty", ["", "\n\n"])
def test_an_empty_file_is_named(tmp_path, empty):
    path = tmp_path / "empty"
    path.write_text(empty)
    with pytest.raises(FileError, match="holds no query"):
        read_json_lines(path)
    with pytest.raises(FileError, match="holds no judgement"):
        read_trec(path, path)


@pytest.mark.parametrize(
    ("queries", "qrels", "message"),
    [
        ({"1": "q"}, {}, "query '1' has no judgement"),
        ({}, {"1": {"a": 1}}, "query '1' has no text"),
        ({"1": " "}, {"1": {"a": 1}}, "query '1' has an empty text"),
        ({"1": "q"}, {"1": {}}, "query '1' has no judgement"),
    ],
)
def test_judgements_are_whole(queries, qrels, message):
    with pytest.raises(EvaluationError, match=message):
        Judgements(queries, qrels)
    with pytest.raises(EvaluationError, match="passages of document 'b', but no judgement of it"):
        Judgements({"1": "q"}, {"1": {"a": 1}}, {"1": {"b": [(0, 1)]}})


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        (
            Judgements({"a b": "q"}, {"a b": {"k": 1}}),
            "query id 'a b' can't stand in a file of TREC's",
        ),
        (Judgements({"a": "q"}, {"a": {"k l": 1}}), "key 'k l'"),
        (Judgements({"a": "q\nr"}, {"a": {"k": 1}}), "query 'a' has a tab or several lines"),
    ],
)
def test_what_trec_files_cannot_hold_is_refused(tmp_path, judged, message):
    with pytest.raises(EvaluationError, match=message):
        write_trec(judged, tmp_path / "qrels.txt", tmp_path / "queries.tsv")


# The database


def test_a_set_is_kept_replaced_and_dropped(db, dsn):
    save_set(db, "it's one", SOME)
    assert load_set(db, "it's one") == SOME
    save_set(db, "placed", PLACED)
    assert load_set(db, "placed") == PLACED
    drop_set(db, "placed")
    with pytest.raises(EvaluationError, match="is there already, with 2 queries"):
        save_set(db, "it's one", SOME)
    fewer = Judgements({"2": "loaf"}, {"2": {"3": 1}})
    save_set(db, "it's one", fewer, replace=True)
    save_set(db, "another", SOME)
    assert load_set(db, "it's one") == fewer
    assert [tuple(found) for found in list_sets(db)] == [
        ("another", 2, 4, 2),
        ("it's one", 1, 1, 1),
    ]
    with pytest.raises(EvaluationError, match="no judgements named 'x'; there are 'another', "):
        load_set(db, "x")


def test_a_set_that_fails_half_way_leaves_the_one_before(db):
    save_set(db, "s", SOME)
    bad = Judgements({"1": "fine"}, {"1": {"a": 2**31}})
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        save_set(db, "s", bad, replace=True)
    assert load_set(db, "s") == SOME


def test_only_the_owner_reads_judgements_until_they_are_granted(db, dsn, make_role):
    save_set(db, "s", SOME)
    role = make_role()
    db.execute(f"GRANT USAGE ON SCHEMA pgrerank TO {role}")
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as other:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            load_set(other, "s")
        db.execute(f"GRANT SELECT ON pgrerank.queries, pgrerank.qrels TO {role}")
        assert load_set(other, "s") == SOME


def test_feedback_becomes_judgements(db, source):
    source.create()
    for query, key, relevance in [
        ("Which animal  sleeps", 2, 1),
        ("which animal sleeps", 2, 0.5),
        ("which animal sleeps", 3, 0.2),
        ("nothing found", 1, 0),
        ("what is in a loaf", 3, 1),
        ("what is in a loaf", 1, 1),
    ]:
        db.execute("SELECT pgrerank.feedback('documents', %s, %s, %s)", (query, key, relevance))
    db.execute("DELETE FROM documents WHERE id = 1")
    found = from_feedback(db, "documents")
    first, second = found.queries
    assert found.queries == {first: "Which animal  sleeps", second: "what is in a loaf"}
    assert found.qrels == {first: {"2": 1, "3": 0}, second: {"3": 1}}
    assert list(from_feedback(db, "documents", relevant_from=0.8).queries) == [second]
    db.execute("DELETE FROM pgrerank.feedback WHERE relevance > 0")
    with pytest.raises(EvaluationError, match="none has a document of relevance 0"):
        from_feedback(db, "documents")
    with pytest.raises(psycopg.Error, match='"nowhere" does not exist'):
        from_feedback(db, "nowhere")


def test_judged_documents_that_are_missing_are_told(db, source):
    source.create()
    assert tuple(missing_keys(db, "documents", SOME)) == (1, 4, ["9"])
    more = Judgements({"1": "q"}, {"1": {"x": 1, "1": 1, **{f"y{n}": 0 for n in range(9)}}})
    assert tuple(missing_keys(db, "documents", more)) == (10, 11, ["x", "y0", "y1", "y2", "y3"])


# The commands


def test_sets_are_loaded_listed_exported_and_dropped(db, dsn, source, beir, tmp_path):
    source.create()
    load = ("qrels", "load", "--dsn", dsn)
    _, said = run(*load, "one", "--beir", str(beir), "--check", "documents")
    assert "qrels set one has 4 judgements of 2 queries" in said
    assert "1 of 4 judged documents are not in the source of documents, such as '9'" in said
    assert load_set(db, "one") == SOME
    files = {form: tmp_path / form for form in ("trec", "json-lines")}
    export = ("qrels", "export", "one", "--dsn", dsn)
    queries = ("--queries", str(tmp_path / "queries.tsv"))
    run(*export, "--output", str(files["trec"]), "--format", "trec", *queries)
    run(*export, "--output", str(files["json-lines"]))
    run(*load, "two", "--trec", str(files["trec"]), *queries)
    run(*load, "three", "--json-lines", str(files["json-lines"]))
    assert load_set(db, "two") == load_set(db, "three") == SOME
    _, error = run(*load, "two", "--json-lines", str(files["json-lines"]), code=1)
    assert "'two' is there already, with 2 queries" in error
    run(*load, "two", "--json-lines", str(files["json-lines"]), "--replace")
    found, _ = run("qrels", "list", "--dsn", dsn, "--json")
    counts = {"queries": 2, "judgements": 4, "relevant": 2}
    assert json.loads(found) == [{"set": name} | counts for name in ("one", "three", "two")]
    run("qrels", "drop", "two", "--yes", "--dsn", dsn)
    assert (
        CliRunner().invoke(app, ["qrels", "drop", "one", "--dsn", dsn], input="n\n").exit_code == 1
    )
    assert [found.name for found in list_sets(db)] == ["one", "three"]
    for command in (("drop", "x", "--yes"), ("export", "x", "--output", str(tmp_path / "x"))):
        _, error = run("qrels", *command, "--dsn", dsn, code=1)
        assert "no judgements named 'x'; there are 'one', 'three'" in error


def test_feedback_is_loaded_as_a_set(db, dsn, source):
    source.create()
    db.execute("SELECT pgrerank.feedback('documents', 'cats?', 2)")
    run("qrels", "load", "clicks", "--feedback", "documents", "--dsn", dsn)
    assert list(load_set(db, "clicks").qrels.values()) == [{"2": 1}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --beir, --trec, --json-lines and --feedback, not none"),
        (("--beir", "a", "--feedback", "b"), "not --beir and --feedback"),
        (("--trec", "a"), "--trec wants --queries"),
        (("--json-lines", "/nowhere"), "No such file"),
    ],
)
def test_a_set_has_one_source(dsn, options, message):
    _, error = run("qrels", "load", "x", *options, "--dsn", dsn, code=1)
    assert message in error


@pytest.fixture
def runs(tmp_path) -> tuple[str, str]:
    """Two runs for SOME: the second answers the first query at its second place."""
    lines(tmp_path / "good.txt", "1 Q0 2 1 2 x", "1 Q0 1 2 1 x", "2 Q0 3 1 1 x", "7 Q0 3 1 1 x")
    lines(tmp_path / "poor.txt", "1 Q0 5 1 2 x", "1 Q0 2 2 1 x")
    return str(tmp_path / "good.txt"), str(tmp_path / "poor.txt")


def test_a_run_is_measured_on_a_set_and_on_files(db, dsn, beir, runs, tmp_path):
    save_set(db, "some", SOME)
    write_trec(SOME, tmp_path / "qrels.txt")
    write_json_lines(SOME, tmp_path / "qrels.jsonl")
    wanted = ["RR@10", "P@1", "R@100", "AP", "Judged@10", "nDCG@10"]
    for qrels in ("some", str(beir), str(tmp_path / "qrels.txt"), str(tmp_path / "qrels.jsonl")):
        found, said = run(
            *("measure", "--dsn", dsn, "--qrels", qrels, "--run", runs[0], "--json"),
            *("--measures", ", ".join(wanted)),
        )
        assert json.loads(found) == [{"measure": name, "value": 1.0} for name in wanted]
        assert "queries answered but not judged, which are left out: 1" in said
    found, said = run("measure", "--dsn", dsn, "--qrels", "some", "--run", runs[1], "--json")
    values = {row["measure"]: row["value"] for row in json.loads(found)}
    assert list(values) == ["nDCG@10", "RR@10", "AP", "R@100", "P@10", "Judged@10"]
    assert (values["RR@10"], values["R@100"], values["P@10"]) == (0.25, 0.5, 0.05)
    assert values["Judged@10"] == 0.25
    assert "queries judged but not answered, which count as 0: 1" in said


def test_runs_are_compared_and_shown_by_query(db, dsn, runs):
    save_set(db, "some", SOME)
    measure = ("measure", "--dsn", dsn, "--qrels", "some", "--measures", "RR@10", "--json")
    found, _ = run(*measure, "--run", runs[0], "--against", runs[1])
    assert json.loads(found) == [
        {
            "measure": "RR@10",
            "against": 0.25,
            "value": 1.0,
            "gain": 0.75,
            "p": 0.5,
            "better": 2,
            "worse": 0,
        }
    ]
    found, _ = run(*measure, "--run", runs[0], "--against", runs[1], "--by-query")
    assert json.loads(found) == [
        {"query": "1", "RR@10": 1.0, "RR@10 against": 0.5},
        {"query": "2", "RR@10": 1.0, "RR@10 against": 0.0},
    ]
    found, _ = run(*measure, "--run", runs[1], "--by-query")
    assert json.loads(found) == [{"query": "1", "RR@10": 0.5}, {"query": "2", "RR@10": 0.0}]
    table, _ = run(*measure[:-1], "--run", runs[0])
    assert table.split() == ["measure", "value", "RR@10", "1.0000"]


def test_what_cannot_be_measured_is_named(db, dsn, runs):
    _, error = run("measure", "--dsn", dsn, "--qrels", "x", "--run", runs[0], code=1)
    assert "no file 'x', and there are no judgements named 'x', nor any others" in error
    save_set(db, "some", SOME)
    measure = ("measure", "--dsn", dsn, "--qrels", "some", "--run")
    _, error = run(*measure, runs[0], "--measures", "gain@ten", code=1)
    assert "measures gain@ten" in error
    _, error = run(*measure, "/nowhere", code=1)
    assert "No such file" in error


# Real judgements

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize(("name", "queries"), [("scifact", 300), ("cranfield", 225)])
def test_a_real_collection_is_loaded(db, dsn, name, queries):
    if not (DATA / name).is_dir():
        pytest.skip(f"no collection in {DATA / name}")
    run("qrels", "load", name, "--beir", str(DATA / name), "--dsn", dsn)
    judged = load_set(db, name)
    assert len(judged.queries) == queries
    rows = (DATA / name / "qrels" / "test.tsv").read_text().splitlines()[1:]
    assert {tuple(row.split("\t")) for row in rows} == {
        (query, key, str(relevance))
        for query, documents in judged.qrels.items()
        for key, relevance in documents.items()
    }
