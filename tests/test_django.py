from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgrerank.install.schema import VERSION, installed_version
from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker

pytest.importorskip("django")
from django.conf import settings
from django.core.exceptions import FieldError
from django.db import connection, migrations, models
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.state import ModelState, ProjectState
from django.db.migrations.writer import OperationWriter
from django.db.models import F, Q
from django.db.utils import ProgrammingError

if not settings.configured:
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "set by a test"}},
        USE_TZ=False,
    )
    import django

    django.setup()

from pgrerank.django import (
    AlterReranker,
    CreateReranker,
    DropReranker,
    InstallPgrerank,
    RegisterModel,
    RerankerManager,
    UpgradePgrerank,
)


class Person(models.Model):
    name = models.TextField()

    class Meta:
        app_label, db_table = "library", "people"


class Document(models.Model):
    title = models.TextField()
    body = models.TextField()
    lang = models.TextField(null=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    published = models.DateField(null=True)
    seen = models.DateTimeField(null=True)
    meta = models.JSONField(default=dict)
    author = models.ForeignKey(Person, models.CASCADE, null=True, db_column="written_by")
    objects = RerankerManager()

    class Meta:
        app_label, db_table = "library", "documents"


class Ranked(models.Model):
    """The same table, with a field of the name of a search's column."""

    rank = models.TextField(db_column="title")
    objects = RerankerManager()

    class Meta:
        app_label, db_table, managed = "library", "documents", False


class Line(models.Model):
    pk = models.CompositePrimaryKey("page", "line")
    page = models.IntegerField()
    line = models.TextField()
    body = models.TextField()
    objects = RerankerManager()

    class Meta:
        app_label, db_table = "library", "lines"


PARAMETERS = {
    "dbname": "NAME",
    "user": "USER",
    "password": "PASSWORD",
    "host": "HOST",
    "port": "PORT",
}
ROWS = [
    ("Pools", "The connection pool is exhausted.", "en", "1.50", {"year": 2020, "a.b": "x"}),
    ("Pools", "Der Verbindungspool wartet.", "de", "9.99", {"year": 2021}),
    ("50%_off", "A cat sleeps \\ most of the day.", None, None, {"tags": ["cats"]}),
]


@pytest.fixture
def point_django():
    """Points Django's connection to a database."""

    def point(dsn):
        given = conninfo_to_dict(dsn)
        connection.close()
        connection.settings_dict.update(
            {name: given.get(key, "") for key, name in PARAMETERS.items()}
        )
        return connection

    yield point
    connection.close()


@pytest.fixture
def database(point_django, dsn):
    return point_django(dsn)


@pytest.fixture
def tables(database, db):
    with database.schema_editor() as editor:
        editor.create_model(Person)
        editor.create_model(Document)
    author = Person.objects.create(name="Ada")
    for place, (title, body, lang, price, meta) in enumerate(ROWS):
        Document.objects.create(
            title=title,
            body=body,
            lang=lang,
            price=price,
            meta=meta,
            author=author if place == 0 else None,
            published=date(2020 + place, 1, 1),
            seen=datetime(2020 + place, 1, 1, 12, 0, 0, 123456),
        )
    return db


@pytest.fixture
def ready(tables):
    """A reranker that has words alone, and no need of a worker."""
    tables.execute("SELECT pgrerank.create_reranker('documents', 'documents', '{title, body}')")
    while tables.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass
    return tables


@pytest.fixture
def sent(database):
    """What Django has sent."""
    statements: list[str] = []

    def note(execute, statement, *rest):
        statements.append(statement)
        return execute(statement, *rest)

    with database.execute_wrapper(note):
        yield statements


def test_rows_are_instances_with_the_columns_of_a_search_by_one_statement(
    dsn, tables, tiny_models, tmp_path, sent
):
    source = Source.of(tables)
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path):
        wait_for(tables, "s.pending = 0")
        asked = Document.objects.select_related("author").rerank(
            "an exhausted pool", top_k=2, passages=1, timeout=timedelta(seconds=9)
        )
        assert sent == []
        rows = list(asked)
        assert [document.author and document.author.name for document in rows].count("Ada") <= 1
        assert len(sent) == 1
        wanted = tables.execute(
            "SELECT id, rank, stage, passage, passages, maxsim_rank, relevance, score FROM"
            " pgrerank.documents_search('an exhausted pool', top_k => 2, passages => 1)"
            " ORDER BY rank"
        ).fetchall()
        names = ("pk", "rank", "stage", "passage", "passages", "maxsim_rank", "relevance")
        found = [tuple(getattr(document, name) for name in names) for document in rows]
        assert found == [row[:-1] for row in wanted]
        assert [d.score for d in rows] == pytest.approx([row[-1] for row in wanted], abs=1e-3)
        assert not rows[0].degraded
        vector = [0.5] * 32
        by_vector = Document.objects.rerank(query_embedding=vector, stages=["dense"])
        assert [document.stage for document in by_vector] == ["dense"] * 3


def keys(queryset) -> list[int]:
    return [document.pk for document in queryset]


CONDITIONS = [
    Q(lang="en"),
    Q(lang__in=["en", "fr", None]),
    Q(lang__isnull=True) | Q(price__gt=Decimal("9.98")),
    ~Q(lang="de"),
    ~Q(lang="de") & ~Q(price__isnull=True),
    Q(title__contains="%_o"),
    Q(body__icontains="SLEEPS \\"),
    Q(title__iexact="pools") & Q(body__startswith="Der"),
    Q(published__range=(date(2021, 1, 1), date(2021, 12, 31))),
    Q(seen__gte=datetime(2021, 1, 1, 12, 0, 0, 123456)),
    Q(seen__gt=datetime(2021, 1, 1, 12, 0, 0, 123456)),
    Q(meta__year=2020),
    Q(meta__year__gt=2020),
    Q(**{"meta__a.b": "x"}),
    Q(meta__contains={"tags": ["cats"]}),
    Q(author__isnull=False),
    Q(author=1),
    Q(pk__in=[]),
    Q(),
]


def test_a_filter_means_in_a_search_what_it_means_to_django(ready):
    for condition in CONDITIONS:
        asked = Document.objects.filter(condition)
        found = keys(asked.rerank(keys=[1, 2, 3, 99], stages=[]))
        assert sorted(found) == sorted(keys(asked)), condition


def test_what_a_search_cannot_be_filtered_by_is_refused(ready):
    for condition in (
        Q(author__name="Ada"),
        Q(published__year=2020),
        Q(title=F("body")),
        Q(title__regex="P"),
        Q(meta__has_key="year"),
        Q(meta__year__isnull=True),
        Q(lang="en") ^ Q(lang="de"),
        Q(pk__in=Person.objects.values("pk")),
    ):
        with pytest.raises(
            FieldError, match=r"rerank\(\) can't search among what filter\(\) found"
        ):
            Document.objects.filter(condition).rerank("pool")
    with pytest.raises(TypeError, match="before it is sliced"):
        Document.objects.all()[:2].rerank("pool")
    with pytest.raises(TypeError, match="no argument 'topk': there are after, blend"):
        Document.objects.rerank("pool", topk=2)
    with pytest.raises(ProgrammingError, match="typo_search"):
        list(Document.objects.rerank("pool", reranker="typo"))
    with pytest.raises(ValueError, match="conflicts with a field"):
        Ranked.objects.rerank("pool")


def test_a_search_composes_as_querysets_do(ready):
    best = Document.objects.filter(lang__isnull=False).rerank("exhausted", top_k=5)
    assert (best.count(), best.exists(), best.filter(rank=1).get().pk) == (1, True, 1)
    assert best.filter(lang="de").first() is None
    assert list(best.values_list("pk", "rank", "passages")) == [(1, 1, None)]
    assert keys(Document.objects.filter(pk__in=best.values("pk"))) == [1]
    assert keys(Person.objects.filter(pk__in=best.values("author"))) == [1]
    assert keys(best.only("title")) == keys(best.order_by("-title")) == [1]
    german = Document.objects.filter(lang="de")
    assert keys(Document.objects.rerank("pool", keys=german, stages=[])) == [2]
    assert keys(Document.objects.rerank("exhausted", after=[Document(pk=1)])) == []
    both = german.rerank(keys=[1, 2, 3], stages=[], filter={"title": "Pools"})
    assert keys(both) == [2]
    assert keys(Document.objects.none().rerank("pool")) == []
    [row] = Ranked.objects.filter(rank__gte="").rerank("exhausted", prefix="found_")
    assert (row.rank, row.found_rank) == ("Pools", 1)
    assert asyncio.run(Document.objects.rerank("exhausted").aget()).pk == 1


def migrate(database, operations, *, backwards=False):
    """Run operations of one migration either way, as Django does."""
    migration = migrations.Migration("0001", "library")
    migration.operations, state = operations, ProjectState()
    state.add_model(ModelState.from_model(Person))
    state.add_model(ModelState.from_model(Document))
    with database.schema_editor(atomic=True) as editor:
        (migration.unapply if backwards else migration.apply)(state, editor)


def test_migrations_install_create_alter_and_drop_and_go_back(empty_dsn, point_django):
    database = point_django(empty_dsn)
    settings_ = {"text_columns": ["title", "body"], "embedding_model": "mini%lm", "candidates": 50}
    with database.schema_editor() as editor:
        editor.create_model(Person)
        editor.create_model(Document)
    made = [
        InstallPgrerank(VERSION),
        RegisterModel("mini%lm", "embedding", "/nowhere", {"dims": 32}),
        CreateReranker("documents", "document", settings_),
        AlterReranker("documents", {"candidates": 70}, former={"candidates": 50}),
    ]
    migrate(database, made)
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        assert installed_version(db) == VERSION
        candidates = "SELECT pgrerank.settings('documents') ->> 'candidates'"
        assert db.execute(candidates).fetchone() == ("70",)
        drop = [DropReranker("documents", "document", settings_)]
        migrate(database, drop)
        assert db.execute("SELECT FROM pgrerank.rerankers").fetchall() == []
        migrate(database, drop, backwards=True)
        assert db.execute(candidates).fetchone() == ("50",)
        migrate(database, made, backwards=True)
        assert installed_version(db) is None
    for operation in (
        AlterReranker("documents", {"candidates": 70}),
        DropReranker("documents"),
        UpgradePgrerank("0.0.1", VERSION),
    ):
        with pytest.raises(IrreversibleError, match="not reversible"):
            migrate(database, [operation], backwards=True)


def test_operations_are_told_printed_and_written_again():
    create = CreateReranker("docs", "document", {"text_columns": ["it's"], "blend": {"dense": 1}})
    told = [create, AlterReranker("docs", {"candidates": 7}), DropReranker("docs")]
    assert [operation.describe() for operation in told] == [
        "Create reranker docs over document",
        "Alter candidates of reranker docs",
        "Drop reranker docs",
    ]
    written, imports = OperationWriter(create, indentation=0).serialize()
    assert "settings={" in written
    assert "'text_columns': [" in written
    assert imports == {"import pgrerank.django.operations"}


def test_a_primary_key_of_several_fields_joins_and_is_given(database, db):
    with database.schema_editor() as editor:
        editor.create_model(Line)
    for place in range(6):
        Line.objects.create(page=place % 2, line=f"it's {place}", body="words " * (place + 1))
    db.execute("SELECT pgrerank.create_reranker('lines', 'lines', '{body}')")
    db.execute("SELECT FROM pgrerank.claim()")
    found = list(Line.objects.rerank("words", top_k=4))
    assert len({line.pk for line in found}) == 4
    assert all(line.body and line.score > 0 for line in found)
    kept = Line.objects.rerank("words", keys=found[:2])
    assert {line.pk for line in kept} == {line.pk for line in found[:2]}
    rest = Line.objects.filter(page__gte=0).rerank("words", after=[line.pk for line in found])
    assert {line.pk for line in rest} == {line.pk for line in Line.objects.all()} - {
        line.pk for line in found
    }
