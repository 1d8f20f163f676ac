"""From triples to a better model: read, mined, trained, resumed, judged."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.errors import FileError, SettingsError, TrainingError, TriplesError
from pgrerank.evaluation import compare
from pgrerank.models import ModelSpec, load_encoder, load_reranker
from pgrerank.training import Triple, read_beir, read_triples, split, write_triples
from pgrerank.training.fine_tune import fine_tune
from pgrerank.training.losses import LOSSES, Logit
from pgrerank.training.rows import groups, pairs
from pgrerank.training.run import Settings
from tests.helpers import models_fixtures
from tests.helpers.workers import forked

NUMBERS = ["one", "two", "three", "four"]
THINGS = ["cat", "pool", "bread", "day", "water", "salt", "flour", "time"]
TOPICS = [(number, thing) for number in NUMBERS for thing in THINGS]


def text_of(number: str, thing: str) -> str:
    return f"the {thing} is given back to {number}"


TRIPLES = [
    Triple(
        f"{number} {thing}",
        (text_of(number, thing),),
        tuple(text_of(*TOPICS[(place + step) % len(TOPICS)]) for step in (1, 5, 8, 11, 19)),
        pos_scores=(5.0,),
        neg_scores=(1.0, 0.0, -1.0, -2.0, -3.0),
    )
    for place, (number, thing) in enumerate(TOPICS)
]


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.stdout, " ".join(done.stderr.split())


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# Triples


def test_triples_are_read_as_they_were_written(tmp_path):
    written = [*TRIPLES[:2], Triple("猫?", ("äöü 😀",), id="7", pos_id=("a",), neg_id=())]
    write_triples(tmp_path / "deep" / "t.jsonl", written)
    assert read_triples(tmp_path / "deep" / "t.jsonl") == written


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"query": "q", "pos": ["a"}', "line 2, column 27: not JSON"),
        ("[1]", "line 2, column 1: expected a JSON object, not list"),
        ('{"query": " ", "pos": ["a"]}', "line 2, field 'query': expected a text, not \" \""),
        ('{"query": "q"}', "line 2, field 'pos': at least one text is expected"),
        ('{"query": "q", "pos": "a"}', "field 'pos': expected a list, not \"a\""),
        ('{"query": "q", "pos": ["a", 3]}', "field 'pos'[1]: expected a text, not 3"),
        ('{"query": "q", "pos": ["a"], "neg": ["b", "a"]}', "'neg'[1]: the same text is in 'pos'"),
        ('{"query": "q", "pos": ["a"], "pos_scores": [1, 2]}', "2 values for the 1 of 'pos'"),
        ('{"query": "q", "pos": ["a"], "pos_scores": [NaN]}', "expected a number, not NaN"),
        ('{"query": "q", "pos": ["a"], "negs": []}', "field 'negs' is unknown; there are query"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_skipped(tmp_path, line, fault):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"query": "q", "pos": ["a"]}}\n{line}\n', "utf-8")
    with pytest.raises(FileError) as refused:
        read_triples(path)
    assert fault in str(refused.value)


def test_what_is_not_text_or_empty_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"query": "\xff"}\n' * 30)
    with pytest.raises(FileError, match=r"line 1, column 12: not UTF-8(?s:.*)and 10 more"):
        read_triples(path)
    path.write_text("\n")
    with pytest.raises(FileError, match="holds no triple"):
        read_triples(path)


def test_a_beir_folder_is_read_and_its_faults_named(tmp_path):
    lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "cats?"})
    corpus = [{"_id": "a", "title": "Cats", "text": "sleep"}, {"_id": "b", "text": "no"}]
    lines(tmp_path / "corpus.jsonl", *corpus)
    (tmp_path / "qrels").mkdir()
    judged = tmp_path / "qrels" / "train.tsv"
    judged.write_text("query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t0\n")
    assert read_beir(tmp_path) == [
        Triple("cats?", ("Cats\nsleep",), ("no",), id="q", pos_id=("a",), neg_id=("b",))
    ]
    judged.write_text("query-id\tcorpus-id\tscore\nq\tc\t1\nq\ta\nq\ta\tx\n")
    with pytest.raises(FileError) as refused:
        read_beir(tmp_path)
    assert "line 2, column 2: 'c' is not in the collection" in str(refused.value)
    assert "line 3, 2 columns, 3 expected" in str(refused.value)
    assert "line 4, column 3: expected a whole number, not 'x'" in str(refused.value)


def test_a_split_is_by_query_and_the_seeds(tmp_path):
    twice = [*TRIPLES, Triple(TRIPLES[0].query.upper() + " ", ("other",))]
    kept, held = split(twice, 0.25, seed=3)
    assert (kept, held) == split(twice, 0.25, seed=3)
    assert held != split(twice, 0.25, seed=4)[1]
    sides = [{t.query.strip().casefold() for t in part} for part in (kept, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 8
    with pytest.raises(TriplesError, match="1 query can't be split"):
        split(TRIPLES[:1], 0.5, seed=1)


# Rows and losses


def test_rows_have_the_negatives_wanted():
    labels = pairs(TRIPLES, 2, seed=1)["label"]
    assert (sum(labels), len(labels)) == (32, 96)
    rows = groups([TRIPLES[0], Triple("q", ("only",), ("one",))], 3, seed=1)
    assert rows.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3"]
    [short] = [row for row in rows if row["query"] == "q"]
    assert short["negative_1"] == "one"
    assert short["negative_2"] == TRIPLES[0].pos[0], "a positive of another query fills up"
    with pytest.raises(TriplesError, match="mine some first"):
        pairs([Triple("q", ("a",))], 2, seed=1)


def test_the_first_batch_sets_the_bias_to_the_share_of_positives():
    logit = Logit(20.0, 0.2)
    similarity = torch.tensor([0.9, 0.5, 0.1])
    assert torch.sigmoid(logit(similarity).mean()).item() == pytest.approx(0.2)
    before = logit.bias.item()
    logit(similarity - 5)
    assert logit.bias.item() == before, "only the first"


# Training


@pytest.mark.parametrize(
    ("kind", "loss"), [(kind, loss) for kind, losses in LOSSES.items() for loss in losses]
)
def test_every_kind_and_loss_gives_a_model_that_ranks_better(kind, loss, tiny_models, tmp_path):
    base = tiny_models["reranker" if kind == "cross_encoder" else "embedding"]
    loader = "sentence_transformer" if kind == "late_interaction" else None
    settings = Settings(
        kind, base, loader, loss=loss, epochs=5, learning_rate=5e-3, held_out=0.2, patience=50
    )
    steps = []
    report = fine_tune(
        settings, TRIPLES, tmp_path / "run", on_progress=lambda done, _total: steps.append(done)
    )
    assert report["after"]["nDCG@10"] > report["before"]["nDCG@10"]
    assert steps == sorted(steps)
    assert steps
    model = tmp_path / "run" / "model"
    spec = ModelSpec("m", kind, report["loader"], str(model))
    if kind == "cross_encoder":
        assert load_reranker(spec).score([("one cat", "the cat")]).shape == (1,)
    else:
        made = load_encoder(spec).encode(
            ["one cat"], role="query", embeddings=kind == "embedding", tokens=kind != "embedding"
        )
        assert made is not None
    card = (model / "README.md").read_text("utf-8")
    assert "## Fine-tuned by pgrerank" in card
    assert f"| nDCG@10 after | {report['after']['nDCG@10']:.4f} |" in card
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_is_the_same_twice_and_its_folder_is_not_taken_for_another(tiny_models, tmp_path):
    settings = Settings("embedding", tiny_models["embedding"], epochs=1)
    one = fine_tune(settings, TRIPLES, tmp_path / "one")
    two = fine_tune(settings, TRIPLES, tmp_path / "two")
    assert one["after"] == two["after"]
    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two")
    ]
    assert weights[0] == weights[1]
    with pytest.raises(TrainingError, match="holds this very run, complete"):
        fine_tune(settings, TRIPLES, tmp_path / "one")
    with pytest.raises(TrainingError, match="holds a run with data '"):
        fine_tune(settings, TRIPLES[1:], tmp_path / "one")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="neither empty nor a run's"):
        fine_tune(settings, TRIPLES, tmp_path / "other")


def test_a_killed_run_goes_on_from_its_checkpoint(tiny_models, tmp_path):
    data = tmp_path / "t.jsonl"
    write_triples(data, TRIPLES)
    arguments = [
        *("train", "late-interaction", str(data)),
        *("--base", tiny_models["embedding"], "--loader", "sentence_transformer"),
        *("--loss", "bce", "--epochs", "2", "--batch-size", "4", "--patience", "1000"),
        *("--output", str(tmp_path / "run"), "--json"),
    ]
    checkpoints = tmp_path / "run" / "checkpoints"
    log = tmp_path / "log"
    process = forked(arguments, log)
    deadline = time.monotonic() + 90
    while not list(checkpoints.glob("checkpoint-*/pgrerank.pt")):
        assert process.is_alive(), log.read_text("utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    (checkpoints / "checkpoint-9999").mkdir()  # one that was being written
    kept = {p.name for p in checkpoints.glob("checkpoint-*") if (p / "pgrerank.pt").exists()}
    command = [sys.executable, "-m", "pgrerank", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
    report = json.loads(done.stdout)
    assert report["resumed_from"] >= min(int(name.split("-")[1]) for name in kept) > 0
    assert report["steps"] > report["resumed_from"]
    assert report["command"].startswith("pgrerank train late-interaction")


def test_adapters_of_a_decoder_are_merged(tmp_path):
    base = models_fixtures.save_decoder(tmp_path / "decoder")
    settings = Settings(
        "cross_encoder", str(base), epochs=1, lora=4, learning_rate=1e-2, max_tokens=None
    )
    fine_tune(settings, TRIPLES, tmp_path / "run")
    model = tmp_path / "run" / "model"
    found = {}
    for folder in (base, model):
        for path in folder.rglob("*.safetensors"):
            with safe_open(path, "pt") as file:
                found[folder] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(found[base]) == set(found[model]), "no adapter is left over"
    changed = [n for n in found[base] if not torch.equal(found[base][n], found[model][n])]
    assert changed
    assert all("proj" in name for name in changed), "only linear layers are trained"


@pytest.mark.parametrize(
    ("settings", "triples", "message"),
    [
        ({"loss": "hinge"}, TRIPLES, "no loss 'hinge' for kind embedding; there is contrastive"),
        ({"base": "/nowhere"}, TRIPLES, "neither a folder here nor a hub name"),
        ({}, [Triple("a", ("x",)), Triple("b", ("y",))], "no held-out query has a negative"),
        ({"base_loader": "onnx", "kind": "cross_encoder"}, TRIPLES, "ONNX graph, which can't be"),
    ],
)
def test_what_cannot_be_trained_is_named(settings, triples, message, tiny_models, tmp_path):
    asked = Settings(**({"kind": "embedding", "base": tiny_models["embedding"]} | settings))
    with pytest.raises((TrainingError, Exception), match=message):
        fine_tune(asked, triples, tmp_path / "run")


# The database


@pytest.fixture
def topics(db, source, tiny_models, dsn):
    """The topics as documents, encoded, with all three models; and their triples in a file."""
    db.execute("TRUNCATE documents RESTART IDENTITY")
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO documents (body) VALUES (%s)", [(text_of(*topic),) for topic in TOPICS]
        )
    db.execute("INSERT INTO documents (body) VALUES (' '), (%s)", (text_of("one", "cat").upper(),))
    source.models(**tiny_models)
    source.create(text_columns=["body"])
    run("backfill", "documents", "--dsn", dsn)
    return source


def test_feedback_is_mined_and_split(db, dsn, topics, tmp_path):
    for place, (number, thing) in enumerate(TOPICS, 1):
        db.execute("SELECT pgrerank.feedback('documents', %s, %s)", (f"{number} {thing}", place))
    db.execute("SELECT pgrerank.feedback('documents', 'one cat', 3, 0)")
    db.execute("SELECT pgrerank.feedback('documents', 'nothing', 3, 0.2)")
    db.execute("INSERT INTO documents (body) VALUES (%s)", (text_of("one", "cat"),))
    db.execute("SELECT pgrerank.feedback('documents', 'one cat', max(id), 0) FROM documents")
    clicks, mined = tmp_path / "clicks.jsonl", tmp_path / "mined"
    said, _ = run("feedback", "documents", "--dsn", dsn, "--output", str(clicks), "--json")
    assert json.loads(said) == [
        {
            "queries": 32,
            "dropped: the query has no relevant document": 1,
            "dropped: a negative has the text of a positive": 1,
        }
    ]
    assert read_triples(clicks)[0].neg == (text_of("one", "bread"),)
    arguments = ("mine", "documents", str(clicks), "--dsn", dsn, "--output", str(mined), "--json")
    said, _ = run(*arguments, "--negatives", "3", "--false-negative-margin", "-100")
    [counted] = json.loads(said)
    train, held = (read_triples(mined / f"{part}.jsonl") for part in ("train", "held-out"))
    assert (len(train), len(held)) == (counted["train queries"], counted["held-out queries"])
    assert (len(train), len(held)) == (26, 6)
    assert counted["negatives"] == 3 * 32 + 1
    assert counted["dropped: a positive"] >= 32, "the positive, and for one its duplicate in caps"
    for triple in (*train, *held):
        assert not {t.casefold() for t in triple.pos} & {t.casefold() for t in triple.neg}
        assert len({t.casefold() for t in triple.neg}) == len(triple.neg)
        assert len(triple.neg_scores) == len(triple.neg) == len(triple.neg_id)


def test_the_guards_drop_what_may_be_relevant(db, dsn, topics, tmp_path):
    data = tmp_path / "t.jsonl"
    write_triples(data, [Triple(t.query, t.pos) for t in TRIPLES])

    def mine(*options: str) -> dict[str, int]:
        said, _ = run(
            *("mine", "documents", str(data), "--dsn", dsn, "--json"),
            *("--output", str(tmp_path / "mined"), *options),
        )
        return json.loads(said)[0]

    by_rank = mine("--first", "6", "--last", "10", "--false-negative-margin", "-100")
    assert by_rank["candidates"] == 320
    assert by_rank["negatives"] <= 5 * 32
    assert 0 < by_rank["dropped: ranked too high"] <= 5 * 32
    nothing = mine("--false-negative-margin", "1000")
    assert nothing["negatives"] == 0
    assert nothing["queries without negatives"] == 32
    assert nothing["dropped: likely relevant, by the cross-encoder"] > 0
    close = mine("--margin", "0.05", "--false-negative-margin", "-100")
    assert close["dropped: too close to the positive"] > 0
    _, error = run(
        *("mine", "documents", str(data), "--dsn", dsn, "--output", str(tmp_path / "m")),
        *("--first", "9", "--last", "3"),
        code=1,
    )
    assert "ranks 9 to 3: 1 <= first <= last" in error


def test_the_gate_takes_what_is_better_and_refuses_what_is_worse(
    db, dsn, topics, tiny_models, tmp_path
):
    held = tmp_path / "held-out.jsonl"
    write_triples(held, TRIPLES)
    settings = Settings(
        "embedding", tiny_models["embedding"], epochs=12, learning_rate=3e-3, patience=50
    )
    fine_tune(settings, TRIPLES, tmp_path / "good")
    arguments = ("documents", "new", "--dsn", dsn, "--kind", "embedding", "--json")
    good = ("--source", str(tmp_path / "good" / "model"), "--held-out", str(held))
    said, told = run("gate", *arguments, *good)
    [row] = json.loads(said)
    assert row["after"] > row["before"]
    assert row["p"] <= 0.05
    assert (row["against"], row["passed"], row["forced"]) == ("embedding", True, False)
    assert "pgrerank alter documents --embedding-model new" in told
    assert measures(db, "new") == row
    db.execute("SELECT pgrerank.alter_reranker('documents', embedding_model => 'new')")
    run("backfill", "documents", "--dsn", dsn)

    worse = ("documents", "worse", *arguments[2:], "--source", tiny_models["embedding"])
    _, error = run("gate", *worse, "--held-out", str(held), code=1)
    assert f"not registered: nDCG@10 {row['after']:.4f} with new, {row['before']:.4f}" in error
    assert measures(db, "worse") is None
    run("gate", *worse, "--held-out", str(held), "--force")
    recorded = measures(db, "worse")
    assert (recorded["passed"], recorded["forced"]) == (False, True)


@pytest.mark.parametrize("kind", ["embedding", "late-interaction", "cross-encoder"])
def test_the_gate_finds_no_gain_where_there_is_none(kind, db, dsn, topics, tiny_models, tmp_path):
    write_triples(tmp_path / "h.jsonl", TRIPLES)
    cross_encoder = kind == "cross-encoder"
    loader = ("--loader", "cross_encoder" if cross_encoder else "sentence_transformer")
    source = tiny_models["reranker" if cross_encoder else "embedding"]
    said, error = run(
        *("gate", "documents", "same", "--dsn", dsn, "--kind", kind, *loader, "--json"),
        *("--source", source, "--held-out", str(tmp_path / "h.jsonl")),
        code=1,
    )
    [row] = json.loads(said)
    assert row["before"] == row["after"]
    assert row["p"] == 1.0
    assert "expected a gain with p <= 0.05" in error


def measures(db: psycopg.Connection, name: str) -> dict | None:
    row = db.execute("SELECT measures FROM pgrerank.models WHERE name = %s", (name,)).fetchone()
    return None if row is None else row[0]["gate"]


# Significance


def test_a_difference_is_told_from_chance():
    queries = [str(place) for place in range(40)]
    before = dict.fromkeys(queries, 0.5)
    better = compare(before, dict.fromkeys(queries, 0.6))
    assert (better.gain, better.better, better.worse) == (pytest.approx(0.1), 40, 0)
    assert better.p < 0.001
    chance = compare(before, {q: 0.6 if int(q) % 2 else 0.4 for q in queries})
    assert chance.p > 0.5
    # All 16 combinations of signs: none but these two is as extreme.
    few = compare(dict.fromkeys("abcd", 0.0), dict(zip("abcd", [0.1, 0.2, 0.3, 0.4], strict=True)))
    assert few.p == pytest.approx(2 / 16)
    with pytest.raises(SettingsError, match="the same queries"):
        compare(before, {"x": 1.0})
