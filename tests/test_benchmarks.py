"""The benchmarks run and say what they promise; small, and without a word on how fast."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgrerank.training import Triple, write_triples

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("make") is None or shutil.which("cc") is None, reason="no make or C compiler"
    ),
]


def last_line(name: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_maxsim_side_by_side():
    found = last_line("maxsim.py", "--documents", 40, "--pools", "10,40", "--rounds", 2)
    for ratio in (
        "sql_over_int8",
        "pairloop_over_int8",
        "int8_over_floor",
        "worker_over_int8",
        "sentence_transformers_over_int8",
    ):
        assert 0 < found[ratio] < math.inf, ratio
    assert all(1 <= ratio <= 1.05 for ratio in found["bytes_over_raw"].values())


def test_the_last_word():
    found = last_line("last_word.py", "--documents", 300, "--candidates", 60, "--rounds", 3)
    for variant in ("plain", "signals", "groups", "diversity", "together", "reading"):
        assert 0 < found[variant]["p50"] <= found[variant]["p95"] < math.inf
    assert found["plain"]["more"] == 0


def test_the_whole_call():
    found = last_line(
        "whole_call.py", "--documents", "120,240", "--seconds", 0.1, "--clients", "1,2"
    )
    assert {row["clients"] for row in found["rows"]} == {1, 2}
    assert all(0 < row["p50"] <= row["p95"] < math.inf for row in found["rows"])
    assert found["ratios"].keys() == {
        "over_pgvector_120",
        "over_pgvector_240",
        "corpus_240_over_120",
    }


def test_deadlines():
    found = last_line("deadlines.py", "--documents", 1200, "--calls", 6)
    assert sum(found["stages"].values()) == sum(found["reasons"].values()) == 6
    assert 0 < found["p50"] <= found["longest"] < math.inf


def test_no_bytes_that_a_worker_is_sent_break_it():
    found = last_line("fuzz.py", "--parsers", "wire", "--inputs", 4000, "--processes", 1)
    assert (found["wire"]["inputs"], found["wire"]["faults"]) == (4000, 0)
    assert found["wire"]["grown_mib"] < 16


def test_one_of_two_workers_is_killed():
    found = last_line("outages.py", "--rounds", 1, "--clients", "native", "--events", "killed")
    assert found["searches"] > 10
    assert 0 <= found["least_whole"] <= 1
    assert found["p99_over_ms"] > -1000


def test_one_broken_reranker_of_ten():
    found = last_line(
        "broken_reranker.py", "--documents", 20, "--rounds", 1, "--faults", "lock,column dropped"
    )
    assert found["ratios"].keys() == {"lock", "column dropped"}
    assert 0 < found["least"] < math.inf


def test_a_long_queue():
    found = last_line("claims.py", "--documents", 12_000, "--keep-snapshot")
    assert 0 < found["last_over_first"] <= found["slowest_over_first"] < math.inf
    assert found["documents_a_second"] > 0


def test_workers_gone_bad():
    found = last_line("bad_workers.py", "--calls", 60, "--timeout", 40)
    assert sum(found["ended"].values()) == found["calls"] == 60
    assert found["ended"].keys() <= {"PGR01", "PGR02", "PGR03", "57014"}
    assert found["grown_mib"] < 64
    assert found["believed"] == {"native": 0, "dblink": 0}


def test_the_way_to_the_worker():
    found = last_line("rpc.py", "--calls", 30)
    assert 0 < found["native"]["p50_ms"] <= found["native"]["p95_ms"] < math.inf
    assert 0 < found["dblink_over_native"] < math.inf


def test_the_worker_beside_the_bare_library():
    found = last_line(
        "worker.py", "--sizes", "tiny", "--clients", "1,2", "--seconds", 0.2, "--documents", 8
    )
    for ratio in ("sql_over_default", "sql_over_best", "query_over_bare", "ingest_over_bare"):
        assert 0 < found[ratio] < math.inf, ratio
    assert [one["clients"] for one in found["sizes"][0]["pairs"]["sql"]] == [1, 2]


def test_tenants():
    found = last_line("tenants.py", "--documents", 4000, "--calls", 40, "--seconds", 0.1)
    assert [row["documents"] for row in found["rows"]] == [10, 30, 100, 300]
    assert all(
        row["tenant_column"]["fewest"] == min(row["documents"], 100) for row in found["rows"]
    )
    assert {name: short["short"] for name, short in found["shortfalls"].items()} == (
        {"plain": 0, "by_tenant": 0}
    )


def test_partitions():
    found = last_line("partitions.py", "--partitions", 3, "--documents", 60, "--calls", 3)
    assert found["milliseconds"].keys() == {"lone", "split", "whole", "split, all", "whole, all"}
    assert found["of_lone"] == found["milliseconds"]["split"] / found["milliseconds"]["lone"]


@pytest.fixture
def collection(tmp_path) -> Path:
    """64 short documents in BEIR's layout; six are asked for in the test, twelve in training."""
    folder = tmp_path / "tiny"
    words = ["bread", "water", "salt", "flour", "cat", "pool", "thread", "lock"]
    texts = {f"d{i}": f"{words[i % 8]} and {words[i // 8]} make {words[-i % 8]}" for i in range(64)}
    (folder / "qrels").mkdir(parents=True)
    asked = list(texts)[:18]
    for name, ids in (("corpus", texts), ("queries", asked)):
        lines = [json.dumps({"_id": one, "title": "", "text": texts[one]}) for one in ids]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    for split, ids in (("test", asked[:6]), ("train", asked[6:])):
        judged = "".join(f"{one}\t{one}\t1\n" for one in ids)
        path = folder / "qrels" / f"{split}.tsv"
        path.write_text("query-id\tcorpus-id\tscore\n" + judged, "utf-8")
    return folder


def test_the_price_of_smaller_token_vectors(collection, tmp_path):
    [found] = last_line("pareto.py", collection, "--cache", tmp_path / "cache").values()
    assert found["float32"]["nDCG@10"] > 0.9
    assert found["int8"]["nDCG@10"] > 0.9
    assert found["float32"]["bytes"] > found["int8"]["bytes"] > found["bit, pool 2"]["bytes"] > 0


def test_what_each_stage_brings(collection, open_folder):
    said = last_line("stages.py", collection, "--data", open_folder / "data")
    found = said["collections"]["tiny"]
    assert said["means"] == {order["name"]: order["measures"] for order in found["orders"]}
    stages = ["exact_recall", "dense", "lexical", "maxsim", "cross_encoder"]
    assert [order["stage"] for order in found["orders"]] == stages
    assert all(order["measures"]["nDCG@10"] > 0.5 for order in found["orders"])
    blends = last_line("blends.py", collection, "--data", open_folder / "data")
    assert [row["order"] for row in blends["dense, MaxSim"]] == [
        *("the last overrules", "default blend"),
    ]
    exits = last_line("early_exit.py", collection, "--data", open_folder / "data")["tiny"]
    assert exits["0.0"]["quality"] == pytest.approx(found["orders"][-1]["measures"]["nDCG@10"])
    assert (exits["0.0"]["loss"], exits["0.0"]["read_mean"]) == (0, 1)
    assert exits["2.0"]["read_mean"] < 1
    default = blends["dense, lexical, MaxSim, cross-encoder"][1]
    assert default["tiny"] == pytest.approx(found["orders"][-1]["measures"]["nDCG@10"])


def test_long_documents(collection, open_folder):
    found = last_line(
        *("long_documents.py", collection, "--data", open_folder, "--documents", 3),
        *("--short", 20, "--words", 600, "--stages", "dense,lexical"),
    )
    assert found["recall"]["dense"]["R@100"] == found["recall"]["mean of passages"]["R@100"] == 1
    assert 0 <= found["passage_in_judged"] <= 1
    assert 0 < found["p95_ratio"] < math.inf
    assert 1 <= found["reencoded"] <= 3
    assert found["bytes"]["embeddings_a_passage"] == 1
    assert 1 <= found["bytes"]["tokens_over_whole"] <= 1.05
    glued = open_folder / "glued_3_1"
    rows = {
        name: [json.loads(line) for line in (glued / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "queries", "spans")
    }
    texts = {row["_id"]: row["text"] for row in rows["corpus"] + rows["queries"]}
    assert len(rows["spans"]) == 6
    for row in rows["spans"]:
        [(begin, end)] = row["spans"]
        assert texts[row["document"]][begin:end] == texts[row["query"]]


def test_passages(collection):
    found = last_line("passages.py", collection, "--documents", 12, "--queries", 4, "--read", 3)
    own = found["collections"][collection.name]
    assert own["documents"] == 12
    assert own["gains"].keys() == {"dense", "MaxSim", "cross-encoder"}
    assert found["least_gain"] == min(own["gains"].values())
    names = {name.rpartition(", ")[2] for name in own["measures"]}
    assert names == {"as one", "by passages"}
    assert all(values["R@100"] == 1 for values in own["measures"].values())


def test_tuning_on_halves(collection, open_folder):
    """Twenty-four queries, ten of which at least are in each half."""
    documents = (collection / "corpus.jsonl").read_text("utf-8").splitlines()[:24]
    (collection / "queries.jsonl").write_text("\n".join(documents), "utf-8")
    judged = "".join(f"d{number}\td{number}\t1\n" for number in range(24))
    (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, "utf-8")
    [found] = last_line("tuning.py", collection, "--data", open_folder / "data")
    assert found["queries"] == 24
    assert 0.5 < found["default"] <= 1
    assert found["worst split"] <= 0 or found["splits written"] == 20
    errors = last_line("calibration.py", collection, "--data", open_folder / "data")["errors"]
    assert [row["relevance by"] for row in errors] == [
        *("all stages", "no cross-encoder", "sigmoid of its score"),
    ]
    assert all(0 <= row["ece"] <= 1 for row in errors)
    many = last_line(
        "many.py", collection, "--data", open_folder / "data", "--queries", 6, "--cross-encoded", 2
    )
    assert [row["queries"] for row in many] == [6, 6, 6, 2]
    assert all(row["times as fast"] > 0 and row["at most"] > 0 for row in many)


def test_words_beside_bm25s(collection):
    found = last_line("lexical.py", collection, "--rows", 300)
    [one] = found["collections"]
    for who in ("pgrerank", "bm25s"):
        assert 0.5 < one[who]["nDCG@10"] <= 1
    asked = found["large"]["tiny"]
    assert asked["of the best 100"] == asked["of the best 10"] == 1
    assert 0 < asked["p50"] <= asked["p95"]


def test_what_fine_tuning_gains(collection, tiny_models, tmp_path, open_folder):
    """From triples on: a random cross-encoder would take every negative for an answer."""
    lines = (collection / "queries.jsonl").read_text("utf-8").splitlines()
    texts = {line["_id"]: line["text"] for line in map(json.loads, lines)}
    keys = list(texts)[6:]
    write_triples(
        tmp_path / "tuned" / "tiny-mined.jsonl",
        [
            Triple(texts[key], (texts[key],), (texts[other],))
            for key, other in zip(keys, [*keys[1:], keys[0]], strict=True)
        ],
    )
    shutil.copytree(tiny_models["reranker"], tmp_path / "tuned" / "ms-marco")
    found = last_line(
        *("fine_tuning.py", collection, "cross_encoder", "--epochs", 1),
        *("--output", tmp_path / "tuned", "--data", open_folder / "data"),
    )
    assert found["report"]["loss"] == "bce"
    assert found["report"]["steps"] > 0
    assert found["tiny"]["queries"] == found["tiny, clean"]["queries"] == 6
    assert 0 < found["tiny"]["after"] <= 1
    assert 0 <= found["tiny"]["p"] <= 1


def test_a_short_campaign_of_kills_stops_and_cuts_violates_nothing():
    found = last_line("chaos.py", "--seconds", 20, "--clients", 8, "--seed", 8)
    assert found["violations"] == 0
    assert found["seed"] == 8
    assert sum(found["faults"].values()) >= 3
    assert min(found["searches"], found["writes"]) > 20


def test_no_fault_of_an_endpoint_makes_a_wrong_order():
    found = last_line("endpoint_faults.py", "--calls", 2, "--timeout", 400)
    assert (found["wrong"], found["right"] + found["refused"]) == (0, found["calls"])
