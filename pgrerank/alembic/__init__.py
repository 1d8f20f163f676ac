"""Alembic: operations for rerankers, models and the schema, and their autogeneration.

Importing this in env.py gives migrations `op.create_reranker` and its kin. For autogeneration,
name the plugin there as well,

    context.configure(..., autogenerate_plugins=["alembic.autogenerate.*", "pgrerank"])
"""

from pgrerank.alembic.operations import (
    AlterRerankerOp,
    CreateRerankerOp,
    DropModelOp,
    DropRerankerOp,
    InstallOp,
    RegisterModelOp,
    UninstallOp,
    UpgradeOp,
)
from pgrerank.alembic.plugin import register

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

register()
