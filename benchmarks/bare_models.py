"""Models of random weights, what is asked of them, and how fast the library is by itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCABULARY = 30_000
QUERY_WORDS = 10
CALLS = 20
"""Different calls; whoever asks for longer begins anew."""


@dataclass(frozen=True)
class Load:
    """What is asked: documents a call, words a document, for so long."""

    documents: int
    words: int
    seconds: float

    def texts(self, seed: int, count: int) -> list[str]:
        """Documents of random words, each of which is one token."""
        chosen = np.random.default_rng(seed).integers(VOCABULARY, size=(count, self.words))
        return [" ".join(f"w{word}" for word in row) for row in chosen]

    def calls(self, seed: int) -> list[tuple[str, list[str]]]:
        """Queries with their documents, made before anything is timed."""
        texts = self.texts(seed, CALLS * self.documents)
        return [
            (" ".join(words[:QUERY_WORDS]), texts[place : place + self.documents])
            for place in range(0, len(texts), self.documents)
            for words in [texts[place].split()]
        ]


def make_models(folder: Path, layers: int, width: int) -> tuple[str, str]:
    """Folders of a cross-encoder and an encoder with random weights."""
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    torch.manual_seed(1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(VOCABULARY))]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        intermediate_size=4 * width,
        num_labels=1,
    )
    bert, classifier = folder / "bert", folder / "classifier"
    for path, kind in ((bert, BertModel), (classifier, BertForSequenceClassification)):
        kind(config).save_pretrained(path)
        BertTokenizerFast(
            vocab={word: place for place, word in enumerate(words)}, model_max_length=512
        ).save_pretrained(path)
    CrossEncoder(str(classifier), device="cpu").save(str(folder / "reranker"))
    modules = [Transformer(str(bert)), Pooling(width, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "encoder"))
    return str(folder / "reranker"), str(folder / "encoder")


def rate(load: Load, deed: Callable[[int], int], *, warm: int = 1) -> float:
    """Things done a second; `deed` takes the number of the call and returns how many it did."""
    for call in range(warm):
        deed(call)
    begun, done, call = time.perf_counter(), 0, warm
    while (took := time.perf_counter() - begun) < load.seconds or not done:
        done += deed(call)
        call += 1
    return done / took


def bare_cross_encoder(folder: str, load: Load) -> tuple[float, float, str]:
    """Pairs a second by the library at its defaults, and at its best, with the name of that."""
    import torch
    from sentence_transformers import CrossEncoder

    calls = load.calls(1)

    def pairs_a_second(model: CrossEncoder, batch: int | None) -> float:
        options = {} if batch is None else {"batch_size": batch}

        def predict(call: int) -> int:
            query, texts = calls[call % CALLS]
            pairs = [(query, text) for text in texts]
            model.predict(pairs, show_progress_bar=False, **options)
            return len(pairs)

        return rate(load, predict)

    exact = CrossEncoder(folder)
    rounded = CrossEncoder(folder, model_kwargs={"dtype": torch.bfloat16})
    found = {"defaults": pairs_a_second(exact, None)}
    is_gpu = torch.cuda.is_available()
    for batch in (64, 256, 512) if is_gpu else (8, 16, 32):
        found[f"bfloat16 weights, batches of {batch}"] = pairs_a_second(rounded, batch)
        if not is_gpu:
            with torch.autocast("cpu", torch.bfloat16):
                found[f"autocast, batches of {batch}"] = pairs_a_second(exact, batch)
    best = max(found, key=found.__getitem__)
    return found["defaults"], found[best], best


def compiled_rival(folder: str, load: Load) -> float | None:
    """Pairs a second by fastembed's cross-encoder on ONNX Runtime, in float32; None without it."""
    try:
        from fastembed.common.model_description import ModelSource
        from fastembed.rerank.cross_encoder import TextCrossEncoder
    except ImportError:
        return None
    from sentence_transformers import CrossEncoder

    from pgrerank.optimising.graph import write_graph

    calls, graph = load.calls(1), Path(folder).parent / "graph"
    graph.mkdir()
    file = write_graph("rival", CrossEncoder(folder, device="cpu"), graph).name
    shutil.copytree(folder, graph, dirs_exist_ok=True)
    TextCrossEncoder.add_custom_model(
        folder, sources=ModelSource(url="https://localhost/none"), model_file=file
    )
    model = TextCrossEncoder(folder, specific_model_path=str(graph))

    def rerank(call: int) -> int:
        query, texts = calls[call % CALLS]
        return len(list(model.rerank(query, texts, batch_size=16)))

    return rate(load, rerank)


def bare_encoder(folder: str, load: Load) -> tuple[float, float]:
    """Queries and documents a second by the library at its defaults."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder)
    calls = load.calls(2)

    def query(call: int) -> int:
        model.encode_query(calls[call % CALLS][0], show_progress_bar=False)
        return 1

    def documents(call: int) -> int:
        _, texts = calls[call % CALLS]
        rows = model.encode_document(texts, show_progress_bar=False, output_value=None)
        for row in rows:
            row["sentence_embedding"].float().cpu().numpy()
            row["token_embeddings"].float().cpu().numpy()
        return len(texts)

    return rate(load, query, warm=5), rate(load, documents)
