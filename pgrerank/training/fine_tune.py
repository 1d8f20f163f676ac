"""Fine-tuning by sentence-transformers' trainers, with defaults for a small set and a CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.sampler import BatchSamplers
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    set_seed,
)

from pgrerank.errors import TrainingError
from pgrerank.models import ModelSpec, load_encoder, load_reranker
from pgrerank.models.loading import quiet
from pgrerank.models.precision import has_fast_bfloat16
from pgrerank.models.spec import LOADERS
from pgrerank.training import card
from pgrerank.training.adapters import add_adapters, merge_adapters
from pgrerank.training.callbacks import KeepLoss, Progress, Report
from pgrerank.training.losses import LOSSES, Logit, Loss
from pgrerank.training.recipes import RECIPES, Recipe, without_dropout
from pgrerank.training.rows import FORMS, samples
from pgrerank.training.run import Folder, Settings
from pgrerank.training.triples import Triple, split

_EVALUATIONS = 4
"""Looks at the held-out queries in an epoch."""


def fine_tune(
    settings: Settings,
    triples: Sequence[Triple],
    output: Path,
    *,
    on_progress: Progress = lambda _done, _total: None,
    command: str | None = None,
) -> dict[str, Any]:
    """Train a model on triples, and keep the best by held-out nDCG@10 in `output`/model.

    nDCG@10 is that of each held-out query's own positives and negatives in the model's order. After
    a kill the same call goes on from the last checkpoint. Returns the report that is written to
    `output`/report.json: settings, data, nDCG@10 before and after, seconds, the loader to register
    the model with. Raises TrainingError, TriplesError or ModelError naming what to change.
    """
    recipe, loss = RECIPES[settings.kind], _loss(settings)
    train, held = split(triples, settings.held_out, seed=settings.seed)
    folder = Folder(output, settings, triples)
    folder.claim()
    set_seed(settings.seed)
    started = time.monotonic()
    model = _load(settings, recipe)
    evaluator = _evaluator(recipe, held)
    measure = str(evaluator.primary_metric)
    before = float(evaluator(model)[measure])
    rows = FORMS[loss.form](train, settings.negatives, seed=settings.seed)
    without_dropout(model)
    if settings.lora is not None:
        add_adapters(model, settings.lora)
    trainer = _trainer(settings, recipe, loss, model, rows, evaluator, folder, on_progress)
    last = folder.last_checkpoint()
    with quiet():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if settings.lora is not None:
        merge_adapters(model)
    model.eval()
    report = folder.asked | {
        "loader": LOADERS[settings.kind][0],
        "loss": settings.loss or next(iter(LOSSES[settings.kind])),
        "rows": len(rows),
        "held_out_queries": len(evaluator.samples),
        "before": {"nDCG@10": before},
        "after": {"nDCG@10": float(evaluator(model)[measure])},
        "resumed_from": 0 if last is None else int(last.name.split("-")[1]),
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - started, 1),
        "command": command,
    }
    with quiet():
        card.write_model(model, folder.model, report)
    _check(settings, folder.model)
    folder.finish(report)
    return report


def _loss(settings: Settings) -> Loss:
    known = LOSSES[settings.kind]
    name = settings.loss or next(iter(known))
    if name not in known:
        raise TrainingError(
            f"there is no loss {name!r} for kind {settings.kind}; there is {', '.join(known)}"
        )
    return known[name]


def _load(settings: Settings, recipe: Recipe) -> Any:
    loader: Any = settings.base_loader or LOADERS[settings.kind][0]
    spec = ModelSpec("base", settings.kind, loader, settings.base, settings.revision)
    model = recipe.load(spec)
    if settings.max_tokens is not None:
        model.max_seq_length = min(settings.max_tokens, model.max_seq_length or settings.max_tokens)
    return model


def _evaluator(recipe: Recipe, held: Sequence[Triple]) -> Any:
    found = samples(held)
    if not found:
        raise TrainingError(
            "no held-out query has a negative, so that nothing tells a better model from a worse:"
            " mine negatives first, or hold out more queries"
        )
    return recipe.evaluator(found, at_k=10, write_csv=False, batch_size=16)


def _trainer(
    settings: Settings,
    recipe: Recipe,
    loss: Loss,
    model: Any,
    rows: Any,
    evaluator: Any,
    folder: Folder,
    on_progress: Progress,
) -> Any:
    batch_size = settings.batch_size or recipe.batch_size
    steps = max(1, round(len(rows) / batch_size / _EVALUATIONS))
    bfloat16 = has_fast_bfloat16() if model.device.type == "cpu" else torch.cuda.is_bf16_supported()
    made = loss.make(model, _share_of_positives(rows) if loss.form == "pairs" else 0.5)
    learns = any(isinstance(part, Logit) for part in made.modules())
    arguments = recipe.arguments(
        output_dir=str(folder.checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=settings.learning_rate or recipe.learning_rate,
        # The loss's own scale and bias may move faster than the model's weights.
        learning_rate_mapping={r"^(?!model\.).*(scale|bias)$": 1e-2} if learns else {},
        warmup_steps=0.1,
        bf16=bfloat16,
        use_cpu=model.device.type == "cpu",
        batch_sampler=BatchSamplers.NO_DUPLICATES
        if loss.form == "groups"
        else BatchSamplers.BATCH_SAMPLER,
        eval_strategy="steps",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{evaluator.primary_metric}",
        greater_is_better=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
    )
    model.model_card_data.widget = [{"text": "none"}]  # else it would pick texts of the data
    trainer = recipe.trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=made,
        evaluator=evaluator,
        callbacks=[
            EarlyStoppingCallback(settings.patience),
            KeepLoss(made),
            Report(on_progress, batch_size),
        ],
    )
    model.model_card_data.widget = []
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _share_of_positives(rows: Any) -> float:
    return float(sum(rows["label"]) / len(rows))


def _check(settings: Settings, folder: Path) -> None:
    """Check that a worker can load the saved model."""
    loader: Any = LOADERS[settings.kind][0]
    spec = ModelSpec("trained", settings.kind, loader, str(folder))
    if settings.kind == "cross_encoder":
        load_reranker(spec)
    else:
        load_encoder(spec)
