"""Optimises a registered cross-encoder: export, quantise, compare, register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from pgrerank import catalog
from pgrerank.errors import EvaluationError, ModelError, SettingsError
from pgrerank.judgements import Judgements
from pgrerank.models import ModelSpec, Reranker, load_reranker
from pgrerank.models.precision import has_fast_bfloat16
from pgrerank.optimising import folder as folders
from pgrerank.optimising import graph, groups
from pgrerank.optimising.comparing import score_side_by_side
from pgrerank.optimising.groups import Progress
from pgrerank.optimising.verdict import Verdict

Phase = Callable[[str, str], AbstractContextManager[Progress]]
Connection = psycopg.Connection[Any]

_TOLERANCE = 1e-3
"""Share of the scores' size by which the float32 graph may differ from the network."""


def silently(_title: str, _things: str) -> AbstractContextManager[Progress]:
    """A phase that nobody watches."""
    return nullcontext(lambda _done, _total: None)


@dataclass(frozen=True)
class Settings:
    """What to optimise, and what may come of it.

    `name` is to be registered, with the files in `folder`. `reranker` gives the documents to
    compare on; by default it is the only one that has the model, and where none has it words are
    made up. With `judgements` of it a loss of nDCG@10 above `most_loss` is refused. `force`
    registers what would be refused.
    """

    model: str
    name: str
    folder: Path
    reranker: str | None = None
    judgements: Judgements | None = None
    most_loss: float = 0.005
    force: bool = False


def optimise(
    connection: Connection,
    settings: Settings,
    *,
    phase: Phase = silently,
    on_verdict: Callable[[Verdict, bool], None] = lambda _verdict, _is_registered: None,
) -> Verdict:
    """Make an int8 ONNX graph of a registered cross-encoder, and register it if it is faster.

    `on_verdict` is called with the figures and whether they suffice, before it is registered or
    refused. Raises SettingsError for what is refused, ModelError for a model that can't be
    exported, EvaluationError for judgements that show nothing, psycopg.Error as the database does.
    A folder that was not registered is taken away.
    """
    spec = catalog.read_model(connection, settings.model)
    final = settings.folder.resolve()
    _check_registrable(connection, settings.name)
    folders.check_free(final)
    reranker = groups.reranker_of(connection, settings.model, settings.reranker)
    if settings.judgements is not None and reranker is None:
        raise EvaluationError(
            f"model {settings.model} is used by no reranker, so that nothing says which documents"
            " the judgements are of: name one by --reranker"
        )
    graph.check_kind(spec)
    compared_on = _groups(connection, reranker, settings.judgements, phase)
    with folders.unfinished(final) as part:
        with phase("exporting", "steps") as progress:
            optimised = _export(spec, part, settings.name, progress)
        verdict = _compare(spec, optimised, compared_on, settings, phase)
        accepted = settings.force or not verdict.objections
        on_verdict(verdict, accepted)
        if not accepted:
            raise SettingsError(
                f"model {settings.name} is not registered: {'; '.join(verdict.objections)}. Keep"
                f" {settings.model}, or give --force to register it all the same"
            )
        folders.finish(part, final)
    try:
        _register(connection, replace(optimised, source=str(final)), verdict)
    except BaseException:
        folders.take_away(final)
        raise
    return verdict


def _check_registrable(connection: Connection, name: str) -> None:
    """Raises before minutes of work what else would come after them."""
    may = catalog.fetch_one(
        connection.execute("SELECT current_user, has_table_privilege('pgrerank.models', 'INSERT')")
    )
    if not may[1]:
        raise SettingsError(
            f"role {may[0]} has no right to INSERT into pgrerank.models, which registering a model"
            " takes: connect as the schema's owner"
        )
    if any(spec.name == name for spec in catalog.read_models(connection)):
        raise ModelError(
            f"model {name} is registered already: give the optimised one another name by --name, or"
            f" forget that one: pgrerank models drop {name}"
        )


def _export(spec: ModelSpec, part: Path, name: str, progress: Progress) -> ModelSpec:
    progress(0, 3)
    whole = graph.write_graph(spec.name, graph.load_network(spec), part)
    progress(1, 3)
    exact_options = {**_window(spec.options), "device": "cpu", "dtype": "float32"}
    exact = load_reranker(replace(spec, options=exact_options))
    options = {"max_tokens": exact.max_tokens}
    optimised = ModelSpec(name, "cross_encoder", "onnx", str(part), None, options)
    in_float32 = replace(optimised, options=options | {"file": whole.name})
    _check_graph(spec, exact, load_reranker(in_float32))
    progress(2, 3)
    graph.quantise(whole)
    progress(3, 3)
    return optimised


def _window(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name == "max_tokens"}


def _check_graph(spec: ModelSpec, network: Reranker, exported: Reranker) -> None:
    """Raises ModelError where the float32 graph gives other scores than the network."""
    group = groups.made_up()[0]
    pairs = [(group.query, text) for text in (*group.texts[:4], group.query, "probe")]
    wanted, found = network.score(pairs), exported.score(pairs)
    worst = int(np.abs(found - wanted).argmax())
    if abs(found[worst] - wanted[worst]) > _TOLERANCE * max(1.0, float(np.abs(wanted).max())):
        raise ModelError(
            f"model {spec.name}: its graph scores a pair {found[worst]:.4f}, expected"
            f" {wanted[worst]:.4f} as the network does, so that PyTorch did not export all of it;"
            " leave it as it is"
        )
    if exported.max_tokens != network.max_tokens:
        raise ModelError(
            f"model {spec.name}: its graph would read {exported.max_tokens} tokens at once,"
            f" expected {network.max_tokens} as the network does; leave it as it is"
        )


def _groups(
    connection: Connection,
    reranker: catalog.Reranker | None,
    judgements: Judgements | None,
    phase: Phase,
) -> list[groups.Group]:
    if reranker is None:
        return groups.made_up()
    if judgements is None:
        return groups.of_documents(connection, reranker)
    with phase(f"searching {reranker.name}", "queries") as progress:
        return groups.of_judgements(connection, reranker, judgements, progress)


def _compare(
    spec: ModelSpec,
    optimised: ModelSpec,
    compared_on: Sequence[groups.Group],
    settings: Settings,
    phase: Phase,
) -> Verdict:
    with phase("comparing", "pairs") as progress:
        scored = score_side_by_side(
            load_reranker(spec), load_reranker(optimised), compared_on, progress
        )
    judged = settings.judgements
    return Verdict(
        spec.name,
        scored,
        folders.size_of(Path(optimised.source)),
        None if judged is None else scored.measure(judged.qrels),
        settings.most_loss,
        spec.options.get("dtype", "auto") != "float32" and has_fast_bfloat16(),
    )


def _register(connection: Connection, spec: ModelSpec, verdict: Verdict) -> None:
    catalog.register_model(
        connection,
        spec.name,
        spec.kind,
        spec.source,
        loader=spec.loader,
        options=spec.options,
        measures=verdict.measures(),
    )
