"""Alembic's environment: async online, pgrerank's plugin named."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

import pgrerank.alembic  # noqa: F401 - for its operations
from app.models import Base

SETTINGS = {
    "target_metadata": Base.metadata,
    "autogenerate_plugins": ["alembic.autogenerate.*", "pgrerank"],
}


def run(connection: Connection) -> None:
    """Run the migrations over a connection."""
    context.configure(connection=connection, **SETTINGS)
    with context.begin_transaction():
        context.run_migrations()


async def run_async() -> None:
    """Run them over the service's own kind of engine."""
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **SETTINGS,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(run_async())
