"""What one run of studio keeps: connections, searches, jobs, votes; and how its pages are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from psycopg import sql
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pgrerank.catalog import Reranker, fetch_one, read_reranker
from pgrerank.errors import SettingsError
from pgrerank.explain.explanation import shown_time
from pgrerank.explain.heat_map import LEVELS, part_colours, timeline
from pgrerank.judgements import QrelsSet, list_sets
from pgrerank.palette import PALETTE
from pgrerank.stages import STAGES
from pgrerank.studio.asked import Searches
from pgrerank.studio.blind import Contest
from pgrerank.studio.connections import Connections
from pgrerank.studio.jobs import Jobs
from pgrerank.studio.security import Secrets

__all__ = ["Studio", "studio_of"]

MARKS = {2: ("●", "relevant"), 1: ("○", "partly"), 0: ("✕", "not relevant")}
"""By relevance: how a judgement is shown, and what it is called."""


@dataclass
class Studio:
    """One run of studio over one database."""

    secrets: Secrets
    connections: Connections
    searches: Searches = field(default_factory=Searches)
    jobs: Jobs = field(default_factory=Jobs)
    contests: dict[str, Contest] = field(default_factory=dict)
    environment: Environment = field(init=False)

    def __post_init__(self) -> None:
        self.environment = _environment()

    def page(
        self, request: Request, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """A page, or a part of one, of a template."""
        text = self.environment.get_template(f"{template}.html.jinja").render(
            csrf=self.secrets.csrf, path=request.url.path, **values
        )
        return HTMLResponse(text, status)


def studio_of(request: Request) -> Studio:
    """The run that a request is made to."""
    studio: Studio = request.app.state.studio
    return studio


def names_of_rerankers(connection: psycopg.Connection[Any]) -> list[str]:
    """All rerankers, by name."""
    rows = connection.execute("SELECT name FROM pgrerank.rerankers ORDER BY name").fetchall()
    return [name for (name,) in rows]


def chosen_reranker(connection: psycopg.Connection[Any], name: str | None) -> Reranker | None:
    """The reranker of that name, or the first; None where there is none at all."""
    names = names_of_rerankers(connection)
    if not name and not names:
        return None
    return read_reranker(connection, name or names[0])


def sets_of(connection: psycopg.Connection[Any]) -> list[QrelsSet] | None:
    """The sets of judgements; None where the role may not read them."""
    try:
        return list_sets(connection)
    except psycopg.errors.InsufficientPrivilege:
        return None


def grant_of_judgements(connection: psycopg.Connection[Any]) -> str:
    """What lets the role judge."""
    statement = sql.SQL(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON pgrerank.queries, pgrerank.qrels TO {};"
    ).format(sql.Identifier(connection.info.user))
    return statement.as_string(connection)


def whose(connection: psycopg.Connection[Any]) -> tuple[str, str]:
    """The database, and the role that reads it."""
    database, role = fetch_one(connection.execute("SELECT current_database(), current_user"))
    return database, role


def whole_number(text: str, name: str, default: int, least: int, most: int) -> int:
    """A number from an address or a form; raises SettingsError for any other text."""
    if not text:
        return default
    if text.isascii() and text.isdigit() and least <= int(text) <= most:
        return int(text)
    raise SettingsError(f"{name} is {text!r}, expected a number from {least} to {most}")


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": shown_time, "score": _shown_score, "ago": _shown_interval}
    environment.filters |= {"breakable": _breakable, "grade": grade}
    environment.globals |= {"stages": STAGES, "palette": PALETTE, "marks": MARKS}
    environment.globals |= {"timeline": timeline, "part_colours": part_colours(), "levels": LEVELS}
    return environment


def grade(relevance: int | None) -> int | None:
    """A set's relevance as one of the marks; None where it has none."""
    return None if relevance is None else max(0, min(relevance, 2))


def _breakable(text: str) -> Markup:
    """A text whose lines may end after marks within a name, as in `os.path.join(a, *b)`."""
    parts = re.split(r"(?<=[._/(:])(?=\w)", text)
    return Markup("<wbr>").join(parts)


def _shown_score(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _shown_interval(value: Any) -> str:
    """A span of time in its largest unit; a dash for none."""
    if value is None:
        return "–"
    seconds = max(0.0, value.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
