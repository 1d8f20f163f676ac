"""The folder of a training run: settings, checkpoints, the model and its card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgrerank.errors import TrainingError
from pgrerank.models import Kind
from pgrerank.training.triples import Triple

ASKED = "training.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
REPORT = "report.json"


@dataclass(frozen=True)
class Settings:
    """What to train and how; None stands for the kind's own default.

    `base` is a hub name, folder or `package://…`; `base_loader` what reads it, by default by kind
    (`sentence_transformer` makes a late-interaction model of an embedding model). `negatives` is
    how many go with each positive. `max_tokens` is the window for training and use; a smaller one
    trains faster. `held_out` is the share of queries that early stopping looks at. `lora` is the
    rank of low-rank adapters, which are trained in place of the weights and merged at the end.
    """

    kind: Kind
    base: str
    base_loader: str | None = None
    revision: str | None = None
    loss: str | None = None
    epochs: float = 3.0
    batch_size: int | None = None
    learning_rate: float | None = None
    negatives: int = 4
    max_tokens: int | None = 256
    held_out: float = 0.1
    patience: int = 4
    lora: int | None = None
    seed: int = 1


class Folder:
    """The folder of a run. Started again with the same data and settings, it goes on."""

    def __init__(self, path: Path, settings: Settings, triples: Sequence[Triple]) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.model = path / MODEL
        self.asked = asdict(settings) | {"data": fingerprint(triples), "triples": len(triples)}

    def claim(self) -> None:
        """Take the folder for this run; raises TrainingError when it holds something else."""
        note = self.path / ASKED
        if note.exists():
            present = json.loads(note.read_text("utf-8"))
            other = sorted(name for name in self.asked if present.get(name) != self.asked[name])
            if other:
                raise TrainingError(
                    f"{self.path} holds a run with {other[0]} {present.get(other[0])!r}, not"
                    f" {self.asked[other[0]]!r}: give another folder, or delete this one"
                )
            if (self.path / REPORT).exists():
                raise TrainingError(f"{self.path} holds this very run, complete: see {self.model}")
            shutil.rmtree(self.model, ignore_errors=True)  # of a run killed before its report
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise TrainingError(f"{self.path} is neither empty nor a run's: give another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        _write(note, self.asked)

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; a half-written one, of a killed run, is passed over."""
        checkpoints = sorted(
            self.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
        )
        whole = [path for path in checkpoints if (path / WHOLE).exists()]
        for path in checkpoints:
            if path not in whole:
                shutil.rmtree(path)
        return whole[-1] if whole else None

    def finish(self, report: dict[str, Any]) -> None:
        """Write the report beside the model, and drop the checkpoints."""
        _write(self.path / REPORT, report)
        shutil.rmtree(self.checkpoints, ignore_errors=True)


WHOLE = "pgrerank.pt"
"""Written last into a checkpoint: the loss's own weights."""


def fingerprint(triples: Sequence[Triple]) -> str:
    """Names the data: SHA-256 of the triples in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for triple in triples:
        digest.update(repr(triple).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _write(path: Path, value: dict[str, Any]) -> None:
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    fresh.replace(path)
