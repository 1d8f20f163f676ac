"""Operations of Django's migrations: calls of the SQL functions of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory

from pgrerank.django.calls import positional_call
from pgrerank.install.scripts import SCRIPTS

__all__ = [
    "AlterReranker",
    "CreateReranker",
    "DropReranker",
    "InstallPgrerank",
    "RegisterModel",
    "UpgradePgrerank",
]

Statement = tuple[str, tuple[Any, ...] | None]
"""SQL and its parameters; None of them, where a percent sign is no placeholder's."""


class _Statement(Operation):
    """An operation that is one statement either way."""

    def forwards(self, app: str, state: Any) -> Statement:
        raise NotImplementedError

    def backwards(self, app: str, state: Any) -> Statement:
        raise NotImplementedError

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models as they are."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Make the change."""
        if router.allow_migrate(schema_editor.connection.alias, app_label):
            schema_editor.execute(*self.forwards(app_label, to_state))

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Take it back."""
        if router.allow_migrate(schema_editor.connection.alias, app_label):
            schema_editor.execute(*self.backwards(app_label, to_state))


def _create(
    name: str, model_name: str, settings: Mapping[str, Any], app: str, state: Any
) -> Statement:
    table = state.apps.get_model(app, model_name)._meta.db_table
    quoted = table if table.startswith('"') else '"' + table.replace('"', '""') + '"'
    return positional_call("create_reranker", {"reranker": name, "source": quoted, **settings})


class CreateReranker(_Statement):
    """Creates a reranker over a model's table; reversed, drops it.

    `settings` are the further arguments of pgrerank.create_reranker.
    """

    category = OperationCategory.ADDITION

    def __init__(self, name: str, model_name: str, settings: dict[str, Any]) -> None:
        self.name, self.model_name, self.settings = name, model_name, settings

    def forwards(self, app: str, state: Any) -> Statement:
        return _create(self.name, self.model_name, self.settings, app, state)

    def backwards(self, app: str, state: Any) -> Statement:
        return positional_call("drop_reranker", {"reranker": self.name})

    def describe(self) -> str:
        return f"Create reranker {self.name} over {self.model_name}"


class AlterReranker(_Statement):
    """Changes settings of a reranker; reversed, changes them back to `former`, if these are given.

    What `settings` leave out stays as it is.
    """

    category = OperationCategory.ALTERATION

    def __init__(
        self, name: str, settings: dict[str, Any], former: dict[str, Any] | None = None
    ) -> None:
        self.name, self.settings, self.former = name, settings, former
        self.reversible = former is not None

    def forwards(self, app: str, state: Any) -> Statement:
        return positional_call("alter_reranker", {"reranker": self.name, **self.settings})

    def backwards(self, app: str, state: Any) -> Statement:
        return positional_call("alter_reranker", {"reranker": self.name, **(self.former or {})})

    def describe(self) -> str:
        return f"Alter {', '.join(self.settings)} of reranker {self.name}"


class DropReranker(_Statement):
    """Drops a reranker with its vectors; reversed, creates it again, if it is told what it was.

    `model_name` and `settings` are as CreateReranker takes them.
    """

    category = OperationCategory.REMOVAL

    def __init__(
        self, name: str, model_name: str | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        self.name, self.model_name, self.settings = name, model_name, settings
        self.reversible = model_name is not None

    def forwards(self, app: str, state: Any) -> Statement:
        return positional_call("drop_reranker", {"reranker": self.name})

    def backwards(self, app: str, state: Any) -> Statement:
        return _create(self.name, self.model_name or "", self.settings or {}, app, state)

    def describe(self) -> str:
        return f"Drop reranker {self.name}"


class RegisterModel(_Statement):
    """Registers a model; reversed, forgets it. `settings` are the function's further arguments."""

    category = OperationCategory.ADDITION

    def __init__(
        self, name: str, kind: str, source: str, settings: dict[str, Any] | None = None
    ) -> None:
        self.name, self.kind, self.source, self.settings = name, kind, source, settings

    def forwards(self, app: str, state: Any) -> Statement:
        given = {"name": self.name, "kind": self.kind, "source": self.source}
        return positional_call("register_model", given | (self.settings or {}))

    def backwards(self, app: str, state: Any) -> Statement:
        return positional_call("drop_model", {"name": self.name})

    def describe(self) -> str:
        return f"Register model {self.name}"


class InstallPgrerank(_Statement):
    """Installs a version of pgrerank's schema; reversed, removes it with all rerankers."""

    category = OperationCategory.SQL

    def __init__(self, version: str) -> None:
        self.version = version

    def forwards(self, app: str, state: Any) -> Statement:
        return SCRIPTS.text(SCRIPTS.wrapped(SCRIPTS.release(self.version))), None

    def backwards(self, app: str, state: Any) -> Statement:
        return SCRIPTS.text([SCRIPTS.uninstall]), None

    def describe(self) -> str:
        return f"Install pgrerank {self.version}"


class UpgradePgrerank(_Statement):
    """Upgrades pgrerank's schema from one version to another. There is no way back."""

    category = OperationCategory.SQL
    reversible = False

    def __init__(self, since: str, version: str) -> None:
        self.since, self.version = since, version

    def forwards(self, app: str, state: Any) -> Statement:
        return SCRIPTS.text(SCRIPTS.wrapped(SCRIPTS.upgrade(self.since, self.version))), None

    def describe(self) -> str:
        return f"Upgrade pgrerank from {self.since} to {self.version}"
