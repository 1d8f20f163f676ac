from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgrerank.catalog import register_model
from pgrerank.demo.models import MODELS
from pgrerank.errors import EvaluationError, InstallError, ModelError
from pgrerank.evaluation import measure
from pgrerank.judgements import read_beir
from tests.helpers.workers import worker

pytest.importorskip("mteb")
import huggingface_hub
import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol, SearchProtocol
from sentence_transformers import SentenceTransformer

from pgrerank.mteb import PgrerankCrossEncoder, PgrerankSearch, retrieval_task
from pgrerank.mteb.search import ordered
from pgrerank.mteb.texts import query_text

CRANFIELD = Path(__file__).parents[2] / "shared" / "data" / "cranfield"
CORPUS = {
    "bread": ("Bread", "Flour, water, salt and time make bread."),
    "cats": ("Cats", "A cat sleeps most of the day."),
    "numbers": ("", "one two three four"),
    "pools": ("Pools", "The connection pool is exhausted when no connection is given back."),
    "salt": ("", "salt in water"),
    "time": ("Time", "The day is for the cat, the time is for bread."),
}
QUERIES = {"q1": "an exhausted pool", "q2": "make bread with salt", "q3": "number three"}
QRELS = {"q1": {"pools": 1, "cats": 0}, "q2": {"bread": 2, "salt": 1}, "q3": {"numbers": 1}}
TOP_RANKED = {"q1": ["cats", "time", "pools"], "q2": ["salt", "bread"], "q3": ["cats", "numbers"]}
MODELS_GIVEN = {
    "embedding_model": "embedding",
    "late_interaction_model": "tokens",
    "cross_encoder_model": "reranker",
}


class Task(AbsTaskRetrieval):
    """A task of the data above; `unload_data` would send it to the hub, so it is kept loaded."""

    metadata = mteb.TaskMetadata(
        name="SmallTask",
        description="six documents",
        dataset={"path": "local/small", "revision": "1"},
        type="Retrieval",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def __init__(self, corpus=CORPUS, queries=QUERIES, qrels=QRELS, top_ranked=None):
        super().__init__()
        titles, texts = zip(*corpus.values(), strict=True)
        documents = {"id": list(corpus), "title": list(titles), "text": list(texts)}
        asked = {"id": list(queries), "text": list(queries.values())}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_dict(documents),
                    "queries": Dataset.from_dict(asked),
                    "relevant_docs": qrels,
                    "top_ranked": top_ranked,
                }
            }
        }
        self.data_loaded = True


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def served(pgrerank_make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """A database with models and a worker, the same for many tests."""
    dsn = pgrerank_make_database(pgrerank_template)
    register(dsn, tiny_models)
    with worker(dsn, tmp_path_factory.mktemp("worker")):
        yield dsn


def register(dsn, tiny_models):
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name, kind in (
            ("embedding", "embedding"),
            ("tokens", "late_interaction"),
            ("reranker", "cross_encoder"),
        ):
            loader = "cross_encoder" if kind == "cross_encoder" else "sentence_transformer"
            register_model(connection, name, kind, tiny_models[name], loader=loader)


def evaluated(model, task, folder, **options):
    """What mteb wrote: its results file of the task, and the run that it was computed from."""
    mteb.evaluate(
        model,
        task,
        cache=mteb.ResultCache(folder),
        prediction_folder=folder / "predictions",
        show_progress_bar=False,
        **options,
    )
    name = task.metadata.name
    [path] = folder.glob(f"results/**/{name}.json")
    predictions = json.loads((folder / "predictions" / f"{name}_predictions.json").read_text())
    scored = predictions["default"]["test"]
    run = {query: sorted(found, key=lambda key: -found[key]) for query, found in scored.items()}
    return path, json.loads(path.read_text())["scores"]["test"][0], run


def encoded_at(dsn, prefix):
    """When each document was encoded, by the name of the table."""
    with psycopg.connect(dsn) as connection:
        names = connection.execute(
            "SELECT name FROM pgrerank.rerankers WHERE starts_with(name, %s)", (prefix,)
        ).fetchall()
        return {
            name: connection.execute(f"SELECT key, encoded_at FROM pgrerank.{name}_1").fetchall()
            for (name,) in names
        }


def test_the_models_follow_mtebs_protocols(served):
    search, cross_encoder = (
        PgrerankSearch(served, **MODELS_GIVEN, candidates=5, stages=["dense", "maxsim"]),
        PgrerankCrossEncoder(served, "reranker"),
    )
    assert isinstance(search, SearchProtocol)
    assert isinstance(cross_encoder, CrossEncoderProtocol)
    assert not isinstance(search, EncoderProtocol | CrossEncoderProtocol)
    meta = search.mteb_model_meta
    assert meta.name == "pgrerank/embedding+tokens+reranker"
    assert meta.experiment_kwargs == {"candidates": 5, "stages": ["dense", "maxsim"]}
    assert cross_encoder.mteb_model_meta.is_cross_encoder
    assert meta.revision != cross_encoder.mteb_model_meta.revision


def test_a_retrieval_task_gives_mtebs_results_file_with_our_measures(served, tmp_path):
    path, scores, run = evaluated(PgrerankSearch(served, **MODELS_GIVEN), Task(), tmp_path)
    assert path.parent.parent == tmp_path / "results" / "pgrerank__embedding+tokens+reranker"
    assert (path.parent / "model_meta.json").exists()
    ours = measure(QRELS, run, ["nDCG@10", "RR@10", "R@3"])
    assert 0 < ours["nDCG@10"] < 1
    assert scores["ndcg_at_10"] == scores["main_score"] == pytest.approx(ours["nDCG@10"], abs=1e-5)
    assert scores["mrr_at_10"] == pytest.approx(ours["RR@10"], abs=1e-5)
    assert scores["recall_at_3"] == pytest.approx(ours["R@3"], abs=1e-5)
    assert run == asked(served, "SELECT id FROM pgrerank.{}(%s, top_k => 6, strict => true)")


def asked(dsn, search, queries=QUERIES):
    """The run that the search function itself gives over the table made last."""
    with psycopg.connect(dsn) as connection:
        [(name,)] = connection.execute(
            "SELECT name || '_search' FROM pgrerank.rerankers ORDER BY created_at DESC LIMIT 1"
        ).fetchall()
        search = search.format(name)
        return {
            query: [key for (key,) in connection.execute(search, (text,))]
            for query, text in queries.items()
        }


def test_a_reranking_task_ranks_the_given_candidates_alone(served, tmp_path):
    task = Task(top_ranked=TOP_RANKED)
    _, scores, run = evaluated(PgrerankSearch(served, **MODELS_GIVEN), task, tmp_path)
    assert {query: sorted(keys) for query, keys in run.items()} == {
        query: sorted(keys) for query, keys in TOP_RANKED.items()
    }
    assert run != TOP_RANKED
    assert scores["ndcg_at_10"] == pytest.approx(
        measure(QRELS, run, ["nDCG@10"])["nDCG@10"], abs=1e-5
    )


def test_without_a_stage_that_scores_candidates_keep_their_places(served, tmp_path):
    task = Task(top_ranked=TOP_RANKED | {"q3": []})
    model = PgrerankSearch(served, embedding_model="embedding")
    _, _, run = evaluated(model, task, tmp_path)
    assert run == TOP_RANKED | {"q3": []}


def test_a_second_run_encodes_nothing_and_settings_of_a_call_neither(served, tmp_path):
    given = MODELS_GIVEN | {"table_prefix": "again"}
    model = PgrerankSearch(served, **given)
    _, _, run = evaluated(model, Task(), tmp_path / "1")
    before = encoded_at(served, "again")
    assert [len(rows) for rows in before.values()] == [len(CORPUS)]
    assert evaluated(model, Task(), tmp_path / "2")[2] == run
    given |= {"cross_encoder_model": None, "candidates": 2, "stages": ["dense"]}
    path, _, short = evaluated(PgrerankSearch(served, **given), Task(), tmp_path / "3")
    assert path.parent.name == "candidates_2__stages_[dense]"
    assert {len(keys) for keys in short.values()} == {2}
    blended = MODELS_GIVEN | {"table_prefix": "again", "blend": {"dense": 1, "maxsim": 0.5}}
    assert evaluated(PgrerankSearch(served, **blended), Task(), tmp_path / "blended")[2] != run
    assert evaluated(model, Task(), tmp_path / "unblended")[2] == run
    assert encoded_at(served, "again") == before
    changed = Task(CORPUS | {"cats": ("Cats", "A cat sleeps on bread.")})
    evaluated(model, changed, tmp_path / "4")
    after = encoded_at(served, "again")
    assert after.keys() == before.keys()
    assert after != before
    given |= {"token_precision": "float16"}
    evaluated(PgrerankSearch(served, **given), changed, tmp_path / "5")
    assert encoded_at(served, "again").items() > after.items()


def test_where_the_database_knows_no_worker_one_runs_for_the_while(dsn, db, tmp_path):
    register_model(db, **MODELS[2])  # in ONNX: the worker need not import PyTorch for it
    model = PgrerankCrossEncoder(dsn, "ms-marco")
    _, scores, run = evaluated(model, Task(top_ranked=TOP_RANKED), tmp_path)
    assert [keys[0] for keys in run.values()] == ["pools", "bread", "numbers"]
    assert scores["ndcg_at_10"] == 1
    assert not db.execute("SELECT 1 FROM pg_foreign_server").fetchone()
    db.execute("SELECT pgrerank.set_worker('127.0.0.1', 1, 'x')")
    with pytest.raises(psycopg.DatabaseError, match="no worker can be reached") as caught:
        evaluated(model, Task(top_ranked=TOP_RANKED), tmp_path / "dead")
    assert caught.value.sqlstate == "PGR01"


def test_documents_that_cannot_be_encoded_end_the_evaluation(dsn, db, tiny_models, tmp_path):
    db.execute(
        "SELECT pgrerank.register_model('other', 'embedding', %s, 16)", (tiny_models["embedding"],)
    )
    with pytest.raises(EvaluationError, match=r"6 documents can't be encoded: .*16 dimensions"):
        evaluated(PgrerankSearch(dsn, embedding_model="other"), Task(), tmp_path)


def test_it_indexes_where_a_loop_runs_already(served):
    model = PgrerankSearch(served, embedding_model="embedding", table_prefix="loop")
    task = Task(CORPUS | {"untitled": (None, "no title, and a NUL: \0")})

    async def notebook():
        model.index(
            task.dataset["default"]["test"]["corpus"],
            task_metadata=task.metadata,
            hf_split="test",
            hf_subset="default",
            encode_kwargs={},
        )

    asyncio.run(notebook())
    [encoded] = encoded_at(served, "loop_smalltask_").values()
    assert len(encoded) == len(CORPUS) + 1


def test_the_cross_encoder_scores_mtebs_pairs_by_one_call_a_query(served, tmp_path):
    model = PgrerankCrossEncoder(served, "reranker")
    task = Task(top_ranked=TOP_RANKED)
    path, scores, run = evaluated(model, task, tmp_path, encode_kwargs={"batch_size": 2})
    assert path.parent.parent.name == "pgrerank__reranker"
    assert scores["ndcg_at_10"] == pytest.approx(
        measure(QRELS, run, ["nDCG@10"])["nDCG@10"], abs=1e-5
    )
    with psycopg.connect(served) as connection:
        for query, keys in TOP_RANKED.items():
            texts = [" ".join(filter(None, CORPUS[key])) for key in keys]
            [(wanted,)] = connection.execute(
                "SELECT pgrerank.cross_encode('reranker', %s, %s)", (QUERIES[query], texts)
            ).fetchall()
            order = [key for _, key in sorted(zip(wanted, keys, strict=True), reverse=True)]
            assert run[query] == order


@pytest.fixture
def judged(db, source, tiny_models):
    source.models(**tiny_models)
    source.create(cross_encoder_model=None)
    db.execute("INSERT INTO documents (title) VALUES (NULL)")
    db.execute("INSERT INTO pgrerank.queries VALUES ('own', 'a', 'exhausted pool')")
    db.execute(
        "INSERT INTO pgrerank.queries VALUES ('own', 'b', 'bread'), ('own', 'c', 'unjudged')"
    )
    db.execute(
        "INSERT INTO pgrerank.qrels VALUES ('own', 'a', '1', 1), ('own', 'b', '3', 2),"
        " ('own', 'b', '2', 0)"
    )
    return db


@pytest.mark.filterwarnings(
    # what mteb's own wrapper of a SentenceTransformer brings about
    "ignore:The fill_missing parameter is deprecated:DeprecationWarning",
    "ignore:The `get_sentence_embedding_dimension` method has been renamed:FutureWarning",
)
def test_own_judgements_become_a_task_for_any_model(judged, dsn, tiny_models, tmp_path):
    task = retrieval_task(judged, "documents", "own")
    split = task.dataset["default"]["test"]
    assert split["corpus"]["text"] == [
        "Pools\nThe connection pool is exhausted when no connection is given back.",
        "Cats\nA cat sleeps most of the day.",
        "Bread\nFlour, water, salt and time make bread.",
        "",
    ]
    assert split["queries"]["id"] == ["a", "b"]
    model = SentenceTransformer(tiny_models["embedding"], device="cpu")
    _, scores, run = evaluated(model, task, tmp_path)
    ours = measure({"a": {"1": 1}, "b": {"3": 2, "2": 0}}, run, ["nDCG@10"])["nDCG@10"]
    assert scores["ndcg_at_10"] == pytest.approx(ours, abs=1e-5)
    task.unload_data()
    assert task.dataset["default"]["test"]["queries"]["id"] == ["a", "b"]


def test_the_task_changes_its_revision_with_its_data_and_takes_a_string(judged, dsn):
    task = retrieval_task(dsn, "documents", "own", languages=["deu-Latn"])
    assert task.metadata.name == "documents-own"
    assert task.metadata.languages == ["deu"]
    same = retrieval_task(judged, "documents", "own")
    assert same.metadata.revision == task.metadata.revision
    judged.execute("UPDATE documents SET body = 'other' WHERE id = 2")
    changed = retrieval_task(judged, "documents", "own")
    assert changed.metadata.revision != task.metadata.revision


def test_what_is_not_there_is_named(judged, dsn, empty_dsn):
    with pytest.raises(EvaluationError, match="no judgements named 'owm'; there are 'own'"):
        retrieval_task(judged, "documents", "owm")
    with pytest.raises(EvaluationError, match="no reranker 'typo'"):
        retrieval_task(judged, "typo", "own")
    with pytest.raises(ModelError, match=r"'tokens' of kind embedding .* there is embedding"):
        PgrerankSearch(dsn, embedding_model="tokens")
    with pytest.raises(ModelError, match="no model 'typo' of kind cross_encoder"):
        PgrerankCrossEncoder(dsn, "typo")
    with pytest.raises(InstallError, match="has no pgrerank: run pgrerank install"):
        PgrerankCrossEncoder(empty_dsn, "reranker")
    judged.execute("TRUNCATE documents")
    with pytest.raises(EvaluationError, match="documents has no document to search"):
        retrieval_task(judged, "documents", "own")


def test_a_bad_prefix_and_a_search_before_the_index_are_refused(served, tmp_path):
    with pytest.raises(EvaluationError, match="table_prefix is 'Bad', expected up to 20 low"):
        evaluated(
            PgrerankSearch(served, embedding_model="embedding", table_prefix="Bad"),
            Task(),
            tmp_path,
        )
    task = Task()
    with pytest.raises(EvaluationError, match="call index before search"):
        PgrerankSearch(served, embedding_model="embedding", table_prefix="fresh").search(
            task.dataset["default"]["test"]["queries"],
            task_metadata=task.metadata,
            hf_split="test",
            hf_subset="default",
            top_k=3,
            encode_kwargs={},
        )


def test_scores_order_as_ranks_do_across_stages_and_ties():
    head, tail = [("a", 3.0, "cross_encoder"), ("b", -7.5, "cross_encoder")], "maxsim"
    scores = ordered([*head, ("z", 20.0, tail), ("c", 20.0, tail), ("d", 19.0, tail)])
    assert scores["a"] == 3
    assert scores["b"] == -7.5
    assert sorted(scores, key=lambda key: (-scores[key], key)) == ["a", "b", "z", "c", "d"]
    assert len(set(scores.values())) == len(scores)
    assert scores["d"] == pytest.approx(-8.5)
    assert list(ordered([("a", None, "recall"), ("b", None, "recall")]).values()) == [0, -1]


def test_a_querys_text_is_what_mtebs_own_models_read():
    from mteb._create_dataloaders import _retrieval_texts
    from mteb.types import PromptType

    turns = [{"role": "user", "content": "a pool"}, {"role": "system", "content": "which?"}]
    for rows in (
        [{"id": "1", "text": "a pool", "instruction": "be brief"}],
        [{"id": "1", "text": turns}],
        [{"id": "1", "text": turns, "instruction": "be brief"}],
    ):
        theirs = _retrieval_texts(Dataset.from_list(rows), PromptType.query)
        assert [query_text(row) for row in rows] == theirs
    assert query_text({"text": ["a pool", "more"], "instruction": None}) == "a pool; more"


def test_without_mteb_the_import_says_what_to_install():
    program = "import sys; sys.modules['mteb'] = None; import pgrerank, pgrerank.mteb"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'pgrerank[mteb]'" in done.stderr


@pytest.mark.skipif(not CRANFIELD.exists(), reason="needs the Cranfield collection")
def test_real_text_and_models_do_what_they_should(served, tmp_path):
    with psycopg.connect(served, autocommit=True) as connection:
        for model in MODELS[:2]:
            register_model(connection, **model)
    judgements = read_beir(CRANFIELD)
    qrels = dict(list(judgements.qrels.items())[:5])
    judged = {key for documents in qrels.values() for key in documents}
    lines = (CRANFIELD / "corpus.jsonl").read_text("utf-8").splitlines()
    corpus = {row["_id"]: (row.get("title"), row["text"]) for row in map(json.loads, lines)}
    few = {key: corpus[key] for key in sorted(corpus, key=lambda key: key not in judged)[:80]}
    task = Task(few, {query: judgements.queries[query] for query in qrels}, qrels)
    model = PgrerankSearch(served, embedding_model="minilm", late_interaction_model="minilm-tokens")
    _, scores, run = evaluated(model, task, tmp_path)
    ours = measure(qrels, run, ["nDCG@10"])["nDCG@10"]
    assert scores["ndcg_at_10"] == pytest.approx(ours, abs=1e-5)
    assert ours > 0.4
