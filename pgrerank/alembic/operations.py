"""Operations of migrations: `op.create_reranker`, `op.install_pgrerank` and the like."""

from __future__ import annotations

from typing import Any

from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError
from sqlalchemy import table
from sqlalchemy.schema import ExecutableDDLElement

from pgrerank.alembic.schema import run_install, run_uninstall, run_upgrade
from pgrerank.sqlalchemy import (
    AlterReranker,
    CreateReranker,
    DropModel,
    DropReranker,
    RegisterModel,
)

__all__ = [
    "AlterRerankerOp",
    "CreateRerankerOp",
    "DropModelOp",
    "DropRerankerOp",
    "InstallOp",
    "RegisterModelOp",
    "UninstallOp",
    "UpgradeOp",
]


class _DDLOp(MigrateOperation):
    """An operation that is one DDL element."""

    def element(self) -> ExecutableDDLElement:
        raise NotImplementedError


@Operations.register_operation("create_reranker")
class CreateRerankerOp(_DDLOp):
    """Creates a reranker; reversed, drops it."""

    def __init__(
        self, name: str, table_name: str, schema: str | None, settings: dict[str, Any]
    ) -> None:
        self.name, self.table_name, self.schema, self.settings = name, table_name, schema, settings

    @classmethod
    def create_reranker(
        cls,
        operations: Operations,
        name: str,
        table_name: str,
        *,
        schema: str | None = None,
        **settings: Any,
    ) -> None:
        """Create a reranker over a table; `settings` are pgrerank.create_reranker's arguments."""
        operations.invoke(cls(name, table_name, schema, settings))

    def element(self) -> ExecutableDDLElement:
        return CreateReranker(self.name, table(self.table_name, schema=self.schema), self.settings)

    def reverse(self) -> DropRerankerOp:
        return DropRerankerOp(self.name, dropped=self)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("add_reranker", self.name, self.settings)


@Operations.register_operation("alter_reranker")
class AlterRerankerOp(_DDLOp):
    """Changes a reranker; reversed, changes it back."""

    def __init__(
        self, name: str, settings: dict[str, Any], former: dict[str, Any] | None = None
    ) -> None:
        self.name, self.settings, self.former = name, settings, former

    @classmethod
    def alter_reranker(cls, operations: Operations, name: str, **settings: Any) -> None:
        """Change a reranker; `settings` are pgrerank.alter_reranker's arguments."""
        operations.invoke(cls(name, settings))

    def element(self) -> ExecutableDDLElement:
        return AlterReranker(self.name, self.settings)

    def reverse(self) -> AlterRerankerOp:
        if self.former is None:
            raise ValueError(f"the settings that reranker {self.name!r} had are not known")
        return AlterRerankerOp(self.name, self.former, self.settings)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("modify_reranker", self.name, self.former, self.settings)


@Operations.register_operation("drop_reranker")
class DropRerankerOp(_DDLOp):
    """Drops a reranker; reversed, creates it again, where it is known what it was."""

    def __init__(self, name: str, *, dropped: CreateRerankerOp | None = None) -> None:
        self.name, self.dropped = name, dropped

    @classmethod
    def drop_reranker(cls, operations: Operations, name: str) -> None:
        """Drop a reranker with its vectors; the source table stays."""
        operations.invoke(cls(name))

    def element(self) -> ExecutableDDLElement:
        return DropReranker(self.name)

    def reverse(self) -> CreateRerankerOp:
        if self.dropped is None:
            raise ValueError(f"the settings that reranker {self.name!r} had are not known")
        return self.dropped

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("remove_reranker", self.name)


@Operations.register_operation("register_model")
class RegisterModelOp(_DDLOp):
    """Registers a model; reversed, forgets it, or registers what it was before."""

    def __init__(
        self,
        name: str,
        kind: str,
        source: str,
        arguments: dict[str, Any],
        *,
        former: RegisterModelOp | None = None,
    ) -> None:
        self.name, self.kind, self.source, self.arguments = name, kind, source, arguments
        self.former = former

    @classmethod
    def register_model(
        cls, operations: Operations, name: str, kind: str, source: str, **arguments: Any
    ) -> None:
        """Register a model; `arguments` are the further ones of pgrerank.register_model."""
        operations.invoke(cls(name, kind, source, arguments))

    def element(self) -> ExecutableDDLElement:
        return RegisterModel(self.name, self.kind, self.source, **self.arguments)

    def reverse(self) -> RegisterModelOp | DropModelOp:
        if self.former is not None:
            return RegisterModelOp(
                self.former.name,
                self.former.kind,
                self.former.source,
                self.former.arguments,
                former=self,
            )
        return DropModelOp(self.name, dropped=self)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("add_model", self.name, self.kind, self.source, self.arguments)


@Operations.register_operation("drop_model")
class DropModelOp(_DDLOp):
    """Forgets a model; reversed, registers it again, where it is known what it was."""

    def __init__(self, name: str, *, dropped: RegisterModelOp | None = None) -> None:
        self.name, self.dropped = name, dropped

    @classmethod
    def drop_model(cls, operations: Operations, name: str) -> None:
        """Forget a model that no reranker uses."""
        operations.invoke(cls(name))

    def element(self) -> ExecutableDDLElement:
        return DropModel(self.name)

    def reverse(self) -> RegisterModelOp:
        if self.dropped is None:
            raise ValueError(f"what model {self.name!r} was is not known")
        return self.dropped

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("remove_model", self.name)


@Operations.register_operation("install_pgrerank")
class InstallOp(MigrateOperation):
    """Installs a version of pgrerank's schema; reversed, removes it."""

    def __init__(self, version: str) -> None:
        self.version = version

    @classmethod
    def install_pgrerank(cls, operations: Operations, version: str) -> None:
        """Install this version of the schema `pgrerank` in a database without it."""
        operations.invoke(cls(version))

    def reverse(self) -> UninstallOp:
        return UninstallOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("install_pgrerank", self.version)


@Operations.register_operation("upgrade_pgrerank")
class UpgradeOp(MigrateOperation):
    """Upgrades pgrerank's schema. There is no way back."""

    def __init__(self, since: str, version: str) -> None:
        self.since, self.version = since, version

    @classmethod
    def upgrade_pgrerank(cls, operations: Operations, since: str, version: str) -> None:
        """Upgrade the schema `pgrerank` from one version to another."""
        operations.invoke(cls(since, version))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("upgrade_pgrerank", self.since, self.version)


@Operations.register_operation("downgrade_pgrerank")
class DowngradeOp(MigrateOperation):
    """Says that a version of pgrerank's schema can't be gone back to."""

    def __init__(self, since: str, version: str) -> None:
        self.since, self.version = since, version

    @classmethod
    def downgrade_pgrerank(cls, operations: Operations, since: str, version: str) -> None:
        """Raise CommandError: what to write where a revision goes back over an upgrade."""
        operations.invoke(cls(since, version))


@Operations.register_operation("uninstall_pgrerank")
class UninstallOp(MigrateOperation):
    """Removes pgrerank's schema, with rerankers and vectors."""

    @classmethod
    def uninstall_pgrerank(cls, operations: Operations) -> None:
        """Drop the schema `pgrerank`: rerankers, vectors, triggers. Source tables stay."""
        operations.invoke(cls())

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("uninstall_pgrerank",)


for _op in (CreateRerankerOp, AlterRerankerOp, DropRerankerOp, RegisterModelOp, DropModelOp):

    @Operations.implementation_for(_op)
    def _execute(operations: Operations, operation: _DDLOp) -> None:
        operations.execute(operation.element())


@Operations.implementation_for(InstallOp)
def _install(operations: Operations, operation: InstallOp) -> None:
    run_install(operations, operation.version)


@Operations.implementation_for(UpgradeOp)
def _upgrade(operations: Operations, operation: UpgradeOp) -> None:
    run_upgrade(operations, operation.since, operation.version)


@Operations.implementation_for(DowngradeOp)
def _downgrade(_: Operations, operation: DowngradeOp) -> None:
    raise CommandError(
        f"pgrerank's schema can't go back from {operation.since} to {operation.version}: restore a"
        " backup from before the upgrade, or remove all of it by op.uninstall_pgrerank() or"
        " `pgrerank uninstall`, which drops rerankers and vectors, and leaves your tables"
    )


@Operations.implementation_for(UninstallOp)
def _uninstall(operations: Operations, _: UninstallOp) -> None:
    run_uninstall(operations)
