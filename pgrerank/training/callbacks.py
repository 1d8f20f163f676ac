"""Trainer callbacks: report progress, and keep the loss's weights in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pgrerank.training.run import WHOLE

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


class Report(TrainerCallback):
    """Reports progress, in rows."""

    def __init__(self, on_progress: Progress, batch_size: int) -> None:
        self._on_progress = on_progress
        self._batch_size = batch_size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self._on_progress(state.global_step * self._batch_size, state.max_steps * self._batch_size)


class KeepLoss(TrainerCallback):
    """Keeps the loss's own weights in checkpoints, which hold the model's alone.

    As the last file of a checkpoint, it also says that this one is whole.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        self._loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        weights = self._loss.state_dict()
        own = {name: value for name, value in weights.items() if not name.startswith("model.")}
        torch.save(own, self._file(args, state))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if state.global_step:
            own = torch.load(self._file(args, state), weights_only=True)
            self._loss.load_state_dict(own, strict=False)

    def _file(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE
