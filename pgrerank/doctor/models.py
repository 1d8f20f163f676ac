"""Models that nobody has measured or calibrated."""

from __future__ import annotations

from pgrerank.doctor.finding import Connection, Found, Severity, ask


def calibrations(connection: Connection) -> Found:
    """Rerankers whose scores mean nothing between queries."""
    rows = ask(
        connection,
        "SELECT r.name, r.min_relevance FROM pgrerank.rerankers r WHERE NOT EXISTS ("
        "SELECT FROM pgrerank.calibrations c WHERE c.reranker = r.name"
        " AND c.generation = r.generation AND c.instruction IS NOT DISTINCT FROM r.instruction"
        " AND c.cross_encoder_model IS NOT DISTINCT FROM r.cross_encoder_model)",
    )
    for row in rows:
        about, remedy = f"reranker {row.name}", f"pgrerank calibrate {row.name} --qrels SET"
        if row.min_relevance is not None:
            message = f"has min_relevance {row.min_relevance:g}, and is not calibrated as it is now"
            yield Severity.ERROR, about, f"{message}: searches fail", remedy
        else:
            message = "is not calibrated: it can't tell that nothing is relevant"
            yield Severity.NOTE, about, message, remedy


def judgements(connection: Connection) -> Found:
    """Whether there is anything to measure by."""
    [row] = ask(
        connection,
        "SELECT EXISTS (SELECT FROM pgrerank.qrels) OR EXISTS (SELECT FROM pgrerank.feedback)"
        " AS are_there, (SELECT min(r.name) FROM pgrerank.rerankers r) AS reranker",
    )
    if row.reranker is not None and not row.are_there:
        message = "there are none, nor clicks: nobody knows which stage helps"
        yield Severity.NOTE, "judgements", message, f"pgrerank qrels judge SET {row.reranker}"
