"""Tiny models with random weights, made and saved by the libraries themselves."""

from __future__ import annotations

import string
from pathlib import Path

import torch
import transformers
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

WINDOW = 32
WORDS = ["query", "passage", "probe", "pool", "cat", "berlin", "yes", "no"]
CHAT_TEMPLATE = (
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}"
    "\n<Document>: "
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "\nRelevant: "
)
INSTRUCTED_TEMPLATE = (
    "<Instruct>: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content')"
    " | first }}\n" + CHAT_TEMPLATE
)


def save_bert(folder: Path, labels: int | None = None) -> Path:
    """A BERT with a tokenizer whose tokens are WORDS, and else single characters."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation, "中", "。"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *characters]
    vocabulary += [f"##{character}" for character in characters]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    tokenizer = transformers.BertTokenizer(
        vocab={word: place for place, word in enumerate(vocabulary)}, model_max_length=WINDOW
    )
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=WINDOW,
        num_labels=labels or 1,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    kind = transformers.BertForSequenceClassification if labels else transformers.BertModel
    kind(config).save_pretrained(folder)
    return folder


def save_sentence_transformer(folder: Path, prompts: dict[str, str] | None = None) -> Path:
    backbone = Transformer(str(save_bert(folder / "backbone")))
    modules = [backbone, Pooling(16, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def save_static_embedding(folder: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(save_bert(folder / "backbone"))
    static = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def save_multi_vector_encoder(folder: Path) -> Path:
    """A ColBERT: prefixes, documents of 24 tokens, queries expanded to 12, no punctuation."""
    backbone = Transformer(
        str(save_bert(folder / "backbone")),
        document_length=24,
        query_expansion={"strategy": "fixed", "length": 12},
    )
    torch.manual_seed(1)
    dense = Dense(16, 8, bias=False, module_input_name="token_embeddings")
    mask = MultiVectorMask(skiplist_words=list(string.punctuation))
    MultiVectorEncoder(
        modules=[backbone, dense, mask, Normalize(module_input_name="token_embeddings")],
        device="cpu",
        prompts={"query": "query ", "document": "passage "},
    ).save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def save_cross_encoder(folder: Path, labels: int = 1) -> Path:
    backbone = save_bert(folder / "backbone", labels)
    CrossEncoder(str(backbone), device="cpu", local_files_only=True).save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def save_decoder(folder: Path, template: str = CHAT_TEMPLATE) -> Path:
    """A Qwen3 with a chat template for pairs, as Qwen3-Reranker has one: it answers yes or no."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] + WORDS * 3, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        model_max_length=128,
        chat_template=template,
    )
    config = transformers.Qwen3Config(
        vocab_size=len(wrapped),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
        pad_token_id=wrapped.pad_token_id,
        eos_token_id=wrapped.eos_token_id,
    )
    torch.manual_seed(2)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
