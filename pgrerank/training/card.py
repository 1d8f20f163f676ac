"""The model card: sentence-transformers writes it, we add data, measures and command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def write_model(model: Any, folder: Path, report: dict[str, Any]) -> None:
    """Save the model with its card; the folder appears whole or not at all."""
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(str(fresh))
    with (fresh / "README.md").open("a", encoding="utf-8") as file:
        file.write(_section(report))
    fresh.rename(folder)


def _section(report: dict[str, Any]) -> str:
    lines = {
        "Kind": report["kind"],
        "Started from": report["base"]
        + (f" at {report['revision']}" if report["revision"] else ""),
        "Data": f"{report['triples']} triples (SHA-256 {report['data'][:16]}…)",
        "Loss": report["loss"],
        "Held-out queries": report["held_out_queries"],
        "nDCG@10 before, on these": f"{report['before']['nDCG@10']:.4f}",
        "nDCG@10 after": f"{report['after']['nDCG@10']:.4f}",
        "Epochs, seed": f"{report['epochs']:g}, {report['seed']}",
        "Command": f"`{report['command']}`" if report["command"] else "by pgrerank.training",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines.items())
    return (
        "\n## Fine-tuned by pgrerank\n\n| | |\n|---|---|\n" + rows + "\n\nnDCG@10 is that of each"
        " held-out query's own positives and negatives, which early stopping has seen: a gain on"
        " your own data is what `pgrerank gate` measures.\n"
    )
