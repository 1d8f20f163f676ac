"""A real Postgres with pgvector in this process's care: throw-away for tests, lasting for work.

    from pgrerank import embedded

    with embedded.start() as server:
        psycopg.connect(server.dsn)

Nothing is left running when the block ends, by whatever means the process does.
"""

from pgrerank.embedded.server import EmbeddedServer, running, start

__all__ = ["EmbeddedServer", "running", "start"]
