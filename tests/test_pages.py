"""Page after page: nothing comes twice, nothing is passed over, and together they are the whole."""

from __future__ import annotations

import psycopg
import pytest

from tests.helpers.searching import Searching
from tests.helpers.sources import Source

ROWS = 60


@pytest.fixture
def search(db):
    """Searches sixty documents of twelve tenants, by words and made-up embeddings."""
    source = Source(db)
    db.execute(
        "DELETE FROM documents;"
        "INSERT INTO documents (title, body, tenant)"
        " SELECT 'cat ' || i, repeat('pool ', i % 7) || 'number ' || i, i % 12"
        f" FROM generate_series(1, {ROWS}) i"
    )
    source.create(timeout="20 s")
    source.encode_by_hand()

    return Searching(
        db,
        {
            "query": "cat pool",
            "stages": ["dense", "lexical"],
            "query_embedding": str([1.0] * 16 + [0.5] * 16),
        },
    )


def pages(search, **arguments):
    """All pages, until one is empty."""
    known, found = [], []
    while rows := search(after=known, **arguments):
        known += [row["id"] for row in rows]
        found.append(rows)
    return found


@pytest.mark.parametrize("top_k", [1, 7, 60])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"diversity": 0.4},
        {"group_by": "tenant"},
        {"group_by": "tenant", "per_group": 3, "diversity": 0.2},
        {"filter": '{"tenant": [1, 2, 3]}'},
    ],
    ids=str,
)
def test_pages_are_the_whole_cut(search, top_k, settings):
    whole = search(top_k=ROWS, **settings)
    found = pages(search, top_k=top_k, **settings)
    rows = [row for page in found for row in page]
    assert [row["id"] for row in rows] == [row["id"] for row in whole]
    assert [row["rank"] for row in rows] == list(range(1, len(whole) + 1))
    if "per_group" not in settings:
        assert {len(page) for page in found[:-1]} <= {top_k}


def test_what_goes_or_comes_between_pages_repeats_nothing(search, db):
    first = [row["id"] for row in search(top_k=10)]
    rest = [row["id"] for row in search(top_k=ROWS)][10:]
    db.execute("DELETE FROM documents WHERE id = ANY (%s)", ([*first[:3], rest[0]],))
    second = [row["id"] for row in search(top_k=10, after=first)]
    assert second == rest[1:11]


def test_a_group_does_not_come_again_when_another_of_it_is_better_now(search, db):
    first = [row["id"] for row in search(top_k=3, group_by="tenant")]
    [(tenant,)] = db.execute("SELECT tenant FROM documents WHERE id = %s", (first[0],))
    better = "UPDATE documents SET body = repeat('pool ', 40) WHERE tenant = %s AND id <> %s"
    db.execute(better, (tenant, first[0]))
    Source.of(db).encode_by_hand()
    second = [row["id"] for row in search(top_k=20, group_by="tenant", after=first)]
    found = db.execute("SELECT count(*) FROM documents WHERE id = ANY (%s) AND tenant = %s",
                       (second, tenant)).fetchone()  # fmt: skip
    assert found == (0,)
    assert len(second) == 9


def test_own_candidates_have_pages_too(search):
    whole = [row["id"] for row in search(top_k=20)]
    first = [row["id"] for row in search(top_k=5, keys=whole)]
    second = [row["id"] for row in search(top_k=5, keys=whole, after=first)]
    assert len({*first, *second}) == 10


def test_more_than_can_be_known(search):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="after has 100001 elements"):
        search(after=list(range(100_001)))
    with pytest.raises(
        psycopg.errors.InvalidParameterValue,
        match="after has 99999 elements and top_k is 2, expected up to 100000 together",
    ):
        search(after=list(range(99_999)), top_k=2)
