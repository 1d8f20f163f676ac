"""Small random models with real architectures, made on the spot: quick, and no download."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = [
    *("the", "a", "of", "in", "is", "to", "and", "for", "on", "with", "when", "no", "most"),
    *("cat", "sleeps", "day", "pool", "connection", "exhausted", "given", "back"),
    *("bread", "flour", "water", "salt", "time", "make", "number", "one", "two", "three", "four"),
]


def make(folder: Path) -> dict[str, str]:
    """Folders of an `embedding`, which also serves as `tokens`, and a `reranker`; 32 dimensions."""
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    bert, classifier = folder / "bert", folder / "classifier"
    BertModel(config).save_pretrained(bert)
    BertForSequenceClassification(config).save_pretrained(classifier)
    for path in (bert, classifier):
        _tokenizer(path)
    transformer = Transformer(str(bert), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean")], device="cpu").save(
        str(folder / "embedding")
    )
    CrossEncoder(str(classifier), device="cpu", max_length=64).save(str(folder / "reranker"))
    embedding, reranker = str(folder / "embedding"), str(folder / "reranker")
    return {"embedding": embedding, "tokens": embedding, "reranker": reranker}


def _tokenizer(path: Path) -> None:
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary += [letter for letter in letters if letter not in vocabulary]
    vocabulary += ["##" + letter for letter in letters]
    from transformers import BertTokenizerFast

    BertTokenizerFast(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(
        path
    )
    config = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    config["model_max_length"] = 64
    (path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
