"""Runs MTEB's tasks through pgrerank, and makes tasks of one's own judgements."""

try:
    import mteb  # noqa: F401
except ImportError as error:
    raise ImportError("pgrerank.mteb needs mteb: pip install 'pgrerank[mteb]'") from error

from pgrerank.mteb.cross_encoder import PgrerankCrossEncoder
from pgrerank.mteb.search import PgrerankSearch
from pgrerank.mteb.task import retrieval_task

__all__ = ["PgrerankCrossEncoder", "PgrerankSearch", "retrieval_task"]
