"""Queries, judgements and runs: in files, and in the database by the name of a set."""

from pgrerank.judgements.files import (
    read,
    read_beir,
    read_json_lines,
    read_queries,
    read_trec,
    read_trec_qrels,
    write_json_lines,
    write_trec,
)
from pgrerank.judgements.runs import read_run, write_run
from pgrerank.judgements.sets import (
    Missing,
    QrelsSet,
    drop_set,
    find,
    from_feedback,
    judge,
    judged_documents,
    list_sets,
    load_set,
    missing_keys,
    save_set,
)
from pgrerank.judgements.types import Judgements, Qrels, Run

__all__ = [
    "Judgements",
    "Missing",
    "Qrels",
    "QrelsSet",
    "Run",
    "drop_set",
    "find",
    "from_feedback",
    "judge",
    "judged_documents",
    "list_sets",
    "load_set",
    "missing_keys",
    "read",
    "read_beir",
    "read_json_lines",
    "read_queries",
    "read_run",
    "read_trec",
    "read_trec_qrels",
    "save_set",
    "write_json_lines",
    "write_run",
    "write_trec",
]
