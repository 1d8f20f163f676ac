"""Runs in TREC's format: as they were written, in the order that other tools give them."""

from __future__ import annotations

from pathlib import Path

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrerank.errors import EvaluationError, FileError
from pgrerank.evaluation import measure
from pgrerank.judgements import read_run, write_run

# Anything but white space, and the byte order mark that some editors put before a file.
WORDS = st.text(min_size=1).filter(lambda w: w.split() == [w] and not w.startswith("\ufeff"))
RUNS = st.dictionaries(WORDS, st.lists(WORDS, min_size=1, max_size=5, unique=True), min_size=1)


def file(folder: Path, *lines: str) -> Path:
    (folder / "run.txt").write_text("".join(line + "\n" for line in lines), "utf-8")
    return folder / "run.txt"


@given(run=RUNS)
def test_a_run_is_read_as_it_was_written(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("runs") / "run.txt"
    write_run(path, run)
    assert read_run(path) == run


def test_a_run_is_one_for_other_tools(tmp_path):
    path = tmp_path / "deep" / "run.txt"
    run = {"q1": ["b", "a", "c"], "q2": ["ä"]}
    write_run(path, run, tag="mine")
    assert path.read_text("utf-8").splitlines()[:2] == ["q1 Q0 b 1 3 mine", "q1 Q0 a 2 2 mine"]
    qrels = {"q1": {"a": 1}, "q2": {"ä": 1}}
    scored = list(ir_measures.read_trec_run(str(path)))
    wanted = ir_measures.calc_aggregate([ir_measures.RR], qrels, scored)[ir_measures.RR]
    assert measure(qrels, run, ["RR"])["RR"] == wanted == 0.75


def test_scores_decide_the_order_and_ranks_where_they_are_equal(tmp_path):
    path = file(
        tmp_path,
        "q Q0 low 1 -1e3 x",
        "q Q0 second 3 0.5 x",
        "q\tQ0\tfirst\t2\t0.5\tx\r",
        "",
        "p Q0 only 0 inf x",
    )
    assert read_run(path) == {"q": ["first", "second", "low"], "p": ["only"]}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("q Q0 a 1 0.5", "line 2, 5 columns, 6 expected: query-id Q0 key rank score tag"),
        ("q Q0 a b 1 0.5 x", "line 2, 7 columns, 6 expected"),
        ("q Q0 b one 0.5 x", "line 2, column 4: expected a whole number, not 'one'"),
        ("q Q0 b 1 high x", "line 2, column 5: expected a number, not 'high'"),
        ("q Q0 b 1 nan x", "line 2, column 5: expected a number, not 'nan'"),
        ("q Q0 a 2 0.4 x", "line 2, column 3: 'a' is further up already for query 'q'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, fault):
    with pytest.raises(FileError) as refused:
        read_run(file(tmp_path, "q Q0 a 1 0.5 x", line))
    assert fault in str(refused.value)


def test_an_empty_run_is_named(tmp_path):
    with pytest.raises(FileError, match="it holds no document"):
        read_run(file(tmp_path, ""))


@pytest.mark.parametrize(
    ("run", "tag", "what"),
    [
        ({"a b": ["x"]}, "t", "query id 'a b'"),
        ({"q": ["x", "a\u2003b"]}, "t", "key 'a\\u2003b'"),
        ({"q": [""]}, "t", "key ''"),
        ({"q": ["x"]}, "my run", "tag 'my run'"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path, run, tag, what):
    path = file(tmp_path, "q Q0 a 1 0.5 x")
    with pytest.raises(EvaluationError, match="white space") as refused:
        write_run(path, run, tag=tag)
    assert what in str(refused.value)
    assert read_run(path) == {"q": ["a"]}
