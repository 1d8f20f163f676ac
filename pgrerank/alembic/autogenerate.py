"""Autogeneration: the operations that bring a database's rerankers to the declared ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, Row, text

from pgrerank.alembic.operations import (
    AlterRerankerOp,
    CreateRerankerOp,
    DropModelOp,
    DropRerankerOp,
    InstallOp,
    RegisterModelOp,
    UninstallOp,
)
from pgrerank.install import schema
from pgrerank.sqlalchemy import Model, Reranker, rerankers

__all__ = ["compare"]

_SCHEMA = "pgrerank"


def compare(context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]) -> None:
    """Add what brings the database's rerankers to the declared ones, and take out our own tables.

    Called by Alembic after the tables of these schemas were compared.
    """
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    upgrade_ops.ops = [op for op in upgrade_ops.ops if not _is_ours(op)]
    declared = {reranker.name: reranker for reranker in _declared(context)}
    is_installed = _is_installed(connection)
    present = _present(connection, schemas) if is_installed else {}
    if declared and not is_installed:
        upgrade_ops.ops.insert(0, InstallOp(schema.VERSION))
    drops: list[ops.MigrateOperation] = [
        DropRerankerOp(name, dropped=_as_created(name, settings))
        for name, settings in present.items()
        if name not in declared
    ]
    registered = _registered(connection) if is_installed else {}
    changes: list[ops.MigrateOperation] = [*_models(declared.values(), registered)]
    for name, reranker in declared.items():
        if name not in present:
            changes.append(_created(reranker))
            continue
        for change in _changed(connection, reranker, present[name]):
            (drops if isinstance(change, DropRerankerOp) else changes).append(change)
    upgrade_ops.ops[:0] = drops
    upgrade_ops.ops.extend(changes)


def _is_ours(op: ops.MigrateOperation) -> bool:
    return isinstance(op, ops.DropTableOp | ops.ModifyTableOps) and op.schema == _SCHEMA


def _declared(context: AutogenContext) -> Iterator[Reranker]:
    metadata = context.metadata
    for one in [metadata] if isinstance(metadata, MetaData) else metadata or ():
        for reranker in rerankers(one):
            if context.run_name_filters(
                reranker.table.name, "table", {"schema_name": reranker.table.schema}
            ):
                yield reranker


def _is_installed(connection: Connection) -> bool:
    """Whether pgrerank is there; raises CommandError where it is of another version."""
    known = text("SELECT to_regprocedure('pgrerank.schema_version()') IS NOT NULL")
    if not connection.scalar(known):
        return False
    version = connection.scalar(text("SELECT pgrerank.schema_version()"))
    if version != schema.VERSION:
        raise CommandError(
            f"the database has pgrerank {version}, which can't be compared with models: first"
            f" upgrade it to {schema.VERSION}, by `pgrerank install` or a revision with"
            f" op.upgrade_pgrerank({version!r}, {schema.VERSION!r})"
        )
    return True


def _present(connection: Connection, schemas: set[str | None]) -> dict[str, dict[str, Any]]:
    """Read the settings of the rerankers over tables in the schemas that are compared, by name."""
    default = connection.dialect.default_schema_name
    rows = connection.execute(
        text(
            "SELECT r.name, n.nspname, c.relname, pgrerank.settings(r.name)"
            " FROM pgrerank.rerankers r JOIN pg_class c ON c.oid = r.source"
            " JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY r.name"
        )
    )
    return {
        name: settings | {"table": table, "schema": None if namespace == default else namespace}
        for name, namespace, table, settings in rows
        if (None if namespace == default else namespace) in schemas
    }


def _as_created(name: str, settings: Mapping[str, Any]) -> CreateRerankerOp:
    given = {
        key: value
        for key, value in settings.items()
        if value is not None and key not in ("source", "table", "schema")
    }
    return CreateRerankerOp(name, settings["table"], settings["schema"], given)


def _created(reranker: Reranker) -> CreateRerankerOp:
    table = reranker.table
    return CreateRerankerOp(reranker.name, table.name, table.schema, reranker.settings)


def _models(
    declared: Iterable[Reranker], registered: Mapping[str, Model]
) -> Iterator[RegisterModelOp]:
    """Operations that register declared models. Other models may be somebody else's, and stay."""
    models = {model.name: model for reranker in declared for model in reranker.models}
    for name, model in models.items():
        present = registered.get(name)
        if present is None or not _is_registered(model, present):
            former = None if present is None else _registration(present)
            yield _registration(model, former)


def _registration(model: Model, former: RegisterModelOp | None = None) -> RegisterModelOp:
    given = model.arguments
    return RegisterModelOp(
        given.pop("name"), given.pop("kind"), given.pop("source"), given, former=former
    )


def _is_registered(model: Model, present: Model) -> bool:
    """Whether both are the same model; what is not given may be as the database has it."""
    told = model.takes_instruction
    wanted = replace(
        model,
        loader=model.loader or present.loader,
        options=dict(model.options or {}),
        max_tokens=present.max_tokens,
        takes_instruction=present.takes_instruction if told is None else told,
    )
    return wanted == present


def _registered(connection: Connection) -> dict[str, Model]:
    rows = connection.execute(
        text(
            "SELECT name, kind, source, dims, loader, revision, max_tokens, options,"
            " takes_instruction"
            " FROM pgrerank.models"
        )
    )
    return {name: Model(name, *rest) for name, *rest in rows}


def _changed(
    connection: Connection, reranker: Reranker, present: Mapping[str, Any]
) -> Iterator[ops.MigrateOperation]:
    """One alteration, or, where none can do it, a drop and a creation."""
    table = connection.dialect.identifier_preparer.format_table(reranker.table)
    changes = connection.execute(
        text("SELECT * FROM pgrerank.setting_changes(:reranker, CAST(:declared AS jsonb))"),
        {
            "reranker": reranker.name,
            "declared": json.dumps({"source": table, **reranker.settings}),
        },
    ).all()
    if not all(change.alterable for change in changes):
        yield DropRerankerOp(reranker.name, dropped=_as_created(reranker.name, present))
        yield _created(reranker)
    elif changes:
        yield AlterRerankerOp(reranker.name, _side(changes, "wanted"), _side(changes, "present"))


def _side(changes: Sequence[Row[Any]], side: str) -> dict[str, Any]:
    """The settings of one side of the differences, as arguments of alter_reranker."""
    values = {
        change.setting: change.cleared_by
        if getattr(change, side) is None
        else getattr(change, side)
        for change in changes
    }
    return {name: value for name, value in values.items() if value is not None}


def _call(name: str, *arguments: Any, **named: Any) -> str:
    parts = [repr(value) for value in arguments]
    parts += [f"{key}={value!r}" for key, value in named.items()]
    line = f"{{prefix}}{name}({', '.join(parts)})"
    if len(line) > 88:
        inner = "".join(f"    {part},\n" for part in parts)
        line = f"{{prefix}}{name}(\n{inner})"
    return line


def _prefixed(context: AutogenContext, call: str) -> str:
    prefix = context.opts.get("alembic_module_prefix") or ""
    return re.sub(r"^\{prefix\}", lambda _: prefix, call)


@renderers.dispatch_for(CreateRerankerOp)
def _render_create(context: AutogenContext, op: CreateRerankerOp) -> str:
    place = {} if op.schema is None else {"schema": op.schema}
    call = _call("create_reranker", op.name, op.table_name, **place, **op.settings)
    return _prefixed(context, call)


@renderers.dispatch_for(AlterRerankerOp)
def _render_alter(context: AutogenContext, op: AlterRerankerOp) -> str:
    return _prefixed(context, _call("alter_reranker", op.name, **op.settings))


@renderers.dispatch_for(DropRerankerOp)
def _render_drop(context: AutogenContext, op: DropRerankerOp) -> str:
    return _prefixed(context, _call("drop_reranker", op.name))


@renderers.dispatch_for(RegisterModelOp)
def _render_model(context: AutogenContext, op: RegisterModelOp) -> str:
    return _prefixed(context, _call("register_model", op.name, op.kind, op.source, **op.arguments))


@renderers.dispatch_for(DropModelOp)
def _render_drop_model(context: AutogenContext, op: DropModelOp) -> str:
    return _prefixed(context, _call("drop_model", op.name))


@renderers.dispatch_for(InstallOp)
def _render_install(context: AutogenContext, op: InstallOp) -> str:
    return _prefixed(context, _call("install_pgrerank", op.version))


@renderers.dispatch_for(UninstallOp)
def _render_uninstall(context: AutogenContext, _: UninstallOp) -> str:
    return _prefixed(context, _call("uninstall_pgrerank"))
