"""What continuous checks and statistics have found."""

from __future__ import annotations

from pgrerank.doctor.finding import Connection, Found, Severity, ask

SHARE = 0.05
"""Share of degraded searches that is worth a word."""


def checks(connection: Connection) -> Found:
    """HNSW that misses, a stage that hurts, vectors of old texts."""
    for row in ask(connection, "SELECT * FROM pgrerank.checks c WHERE c.is_bad"):
        match row.measure:
            case "hnsw_recall":
                message = f"HNSW finds {row.value:.0%} of what an exact search does"
                remedy = f'ALTER DATABASE "{connection.info.dbname}" SET pgrerank.ef_search = 400;'
            case "stale_documents":
                message = f"{row.value:.0%} of documents found have vectors of another text"
                remedy = f"SELECT pgrerank.enqueue('{row.reranker}');"
            case _:
                message = (
                    f"stage {row.stage} hurts: nDCG@10 is {-row.value:.3f} less after it than"
                    f" before (± {row.error:.3f})"
                )
                remedy = f"pgrerank tune {row.reranker} --qrels SET"
        message += f", over {row.queries} queries"
        yield Severity.WARNING, f"reranker {row.reranker}", message, remedy


def degraded(connection: Connection) -> Found:
    """Searches that lost a stage."""
    for row in ask(connection, "SELECT * FROM pgrerank.stats s WHERE s.stage = 'total'"):
        lost = {reason: count for reason, count in row.degraded.items() if reason != "fallback"}
        share = sum(lost.values()) / row.calls
        if share > SHARE:
            reasons = ", ".join(f"{reason} {count}" for reason, count in lost.items())
            message = f"{share:.0%} of {row.calls} searches were degraded: {reasons}"
            remedy = f"SELECT pgrerank.reset_stats('{row.reranker}');  -- once mended, to see anew"
            yield Severity.WARNING, f"reranker {row.reranker}", message, remedy
