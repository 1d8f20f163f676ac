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


def precisions(connection: Connection) -> Found:
    """Cross-encoders that a worker runs in float32, though an int8 graph may be faster there."""
    rows = ask(
        connection,
        "SELECT DISTINCT ON (r.name) r.name AS reranker, m.name AS model, w.worker,"
        " w.precisions #>> ARRAY[m.name, 'why'] AS why, o.name AS optimised,"
        " format('SELECT pgrerank.alter_reranker(%L, cross_encoder_model => %L);', r.name, o.name)"
        "  AS switch"
        " FROM pgrerank.rerankers r"
        " JOIN pgrerank.models m ON m.name = r.cross_encoder_model AND m.loader = 'cross_encoder'"
        " JOIN pgrerank.workers w ON w.precisions #>> ARRAY[m.name, 'name'] = 'float32'"
        " LEFT JOIN pgrerank.models o ON o.measures #>> '{optimise,of}' = m.name"
        "  AND o.measures #> '{optimise,objections}' = '[]'"
        " WHERE coalesce(m.options ->> 'dtype', 'auto') = 'auto'"
        " ORDER BY r.name, w.worker, o.name",
    )
    for row in rows:
        about = f"reranker {row.reranker}"
        message = f"model {row.model} runs in float32 on worker {row.worker}: {row.why}"
        if row.optimised is None:
            remedy = f"pgrerank models optimise {row.model} --qrels SET"
            yield Severity.NOTE, about, f"{message}; an int8 graph may be faster", remedy
        else:
            yield Severity.NOTE, about, f"{message}; {row.optimised} was faster", row.switch


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
