"""Alembic environment for pgrerank's own schema alone; see docs/how-to/alembic.md.

PGRERANK_MIGRATION_URL=postgresql+psycopg://… alembic -c migrations/alembic.ini upgrade head
"""

import os

from alembic import context
from sqlalchemy import create_engine

import pgrerank.alembic  # noqa: F401 - for its operations

URL = os.environ.get("PGRERANK_MIGRATION_URL", "postgresql+psycopg://")
SETTINGS = {"version_table": "pgrerank_version"}

if context.is_offline_mode():
    context.configure(url=URL, literal_binds=True, dialect_opts={"paramstyle": "named"}, **SETTINGS)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(URL).connect() as connection:
        context.configure(connection=connection, **SETTINGS)
        with context.begin_transaction():
            context.run_migrations()
