"""A hostile role, and a record of who ran its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

Connection = psycopg.Connection[Any]

LAIR = """
    CREATE SCHEMA lair AUTHORIZATION {hostile};
    CREATE TABLE lair.deeds (role text DEFAULT current_user);
    GRANT INSERT, SELECT ON lair.deeds TO PUBLIC;
    GRANT USAGE ON SCHEMA lair TO PUBLIC;
    CREATE FUNCTION lair.note() RETURNS text LANGUAGE sql VOLATILE
        AS 'INSERT INTO lair.deeds DEFAULT VALUES RETURNING role';
    CREATE FUNCTION lair.evil(text) RETURNS text LANGUAGE plpgsql IMMUTABLE
        AS 'BEGIN PERFORM lair.note(); RETURN $1; END';
    ALTER FUNCTION lair.note() OWNER TO {hostile};
    ALTER FUNCTION lair.evil(text) OWNER TO {hostile};
"""


@pytest.fixture
def hostile(dsn: str, db: Connection, make_role: Callable[..., str]) -> Iterator[Connection]:
    """A connection of a role that may do nothing in pgrerank but call functions, and has a schema
    of its own, `lair`, whose function `evil` notes down in whose name it was called.
    """
    role = make_role()
    db.execute(sql.SQL(LAIR).format(hostile=sql.Identifier(role)))
    with psycopg.connect(dsn, user=role, password=role, autocommit=True) as connection:
        yield connection


@pytest.fixture
def victims(db: Connection, hostile: Connection) -> Callable[[], set[str]]:
    """The roles, but for the hostile one, whose rights its code had."""

    def others() -> set[str]:
        rows = db.execute(
            "SELECT DISTINCT role FROM lair.deeds WHERE role <> %s", (hostile.info.user,)
        )
        return {role for (role,) in rows}

    return others
