"""The service: notes are written, and searched."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Query
from pydantic import BaseModel
from sqlalchemy import select

from app.database import TenantSession, engine
from app.models import Note
from pgrerank.sqlalchemy import search


class NewNote(BaseModel):
    """What a client writes."""

    title: str
    body: str


class Found(BaseModel):
    """One note of a search, best first."""

    id: int
    title: str
    body: str
    score: float
    rank: int
    stage: str
    degraded: bool


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the pool at the end."""
    yield
    await engine.dispose()


app = FastAPI(title="Notes", lifespan=lifespan)


@app.post("/notes", status_code=201)
async def write(
    note: NewNote, session: TenantSession, x_tenant: Annotated[int, Header()]
) -> dict[str, int]:
    """Write a note; a worker makes it searchable in a moment."""
    written = Note(tenant_id=x_tenant, title=note.title, body=note.body)
    session.add(written)
    await session.flush()
    return {"id": written.id}


@app.get("/search")
async def find(
    session: TenantSession, q: Annotated[str, Query(min_length=1)], top_k: int = 5
) -> list[Found]:
    """The tenant's notes that answer a question best."""
    hits = search(Note, q, top_k=top_k)
    rows = await session.execute(
        select(Note, hits.score, hits.rank, hits.stage, hits.degraded)
        .join(hits, hits.key == Note.id)
        .order_by(hits.rank)
    )
    return [
        Found(id=note.id, title=note.title, body=note.body, **said._mapping)
        for note, said in ((row.Note, row) for row in rows)
    ]
