"""Connection strings in SQLAlchemy's words."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL


def url(dsn: str, driver: str) -> str:
    """The URL of a connection string, for one of SQLAlchemy's drivers."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    made = URL.create(
        f"postgresql+{driver}",
        parts.get("user"),
        parts.get("password"),
        parts.get("host"),
        int(parts.get("port", 5432)),
        parts["dbname"],
    )
    return made.render_as_string(hide_password=False)
