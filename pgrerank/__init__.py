"""Rerank inside Postgres: one SQL call recalls, rescores by MaxSim and cross-encodes."""

from pgrerank.errors import PgrerankError

__all__ = ["PgrerankError", "__version__"]

__version__ = "0.1.0"
