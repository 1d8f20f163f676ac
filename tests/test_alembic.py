"""Alembic as users run it: a project in a folder, the command, real migrations."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest
from alembic.config import CommandLine, Config

from pgrerank.install import schema
from tests.helpers.urls import url
from tests.helpers.versions import NEXT, dump, next_release

ENV = """
    import asyncio
    from pathlib import Path
    from alembic import context
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.ext.asyncio import create_async_engine
    import pgrerank.alembic
    from models import Base

    url = Path("url").read_text()
    settings = dict(
        target_metadata=Base.metadata,
        include_schemas={include_schemas},
        autogenerate_plugins=["alembic.autogenerate.*", "pgrerank"],
    )

    def run(connection):
        context.configure(connection=connection, **settings)
        with context.begin_transaction():
            context.run_migrations()

    async def run_async():
        async with create_async_engine(url, poolclass=NullPool).connect() as connection:
            await connection.run_sync(run)
            await connection.commit()

    if context.is_offline_mode():
        named = dict(paramstyle="named")
        context.configure(url=url, literal_binds=True, dialect_opts=named, **settings)
        with context.begin_transaction():
            context.run_migrations()
    elif "asyncpg" in url:
        asyncio.run(run_async())
    else:
        with create_engine(url, poolclass=NullPool).begin() as connection:
            run(connection)
"""
MAKO = """
from alembic import op
import sqlalchemy as sa

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
"""
MODELS = """
    from datetime import timedelta
    from sqlalchemy import func
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    from pgrerank.sqlalchemy import Model, Reranker

    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "documents"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        content: Mapped[str] = mapped_column("body")
"""
MINILM = (
    'Model("minilm", "embedding", "some/where", dims=32, options={"max_tokens": 99},'
    " takes_instruction=True)"
)
RERANKER = f"""
    Reranker("documents", Document, text=[Document.title, Document.content],
             embedding_model={MINILM}, timeout=timedelta(seconds=2))
"""
EXPRESSION = f"""
    Reranker("documents", Document,
             text=Document.title + " 100% :x " + func.lower(Document.content),
             embedding_model={MINILM}, candidates=200, maxsim_top=30,
             blend={{"dense": 1, "maxsim": 2.5}}, log_sample=0.25, log_retention=timedelta(days=7),
             text_search_config="german", language=func.lower(Document.title),
             tenant=Document.title)
"""


LETTERS = """
    from sqlalchemy import String

    class Letter(Base):
        __tablename__ = "letters"
        year: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(unique=True)
        signature: Mapped[str] = mapped_column(unique=True)
        content: Mapped[str]

    Reranker("letters", Letter, text=Letter.content, key=Letter.KEY)
"""
CHANGED = """\
    op.alter_column("letters", "content", type_=sa.String(99))
    op.alter_column("letters", "content", new_column_name="text")
"""
SHOWN = """
    op.execute("CREATE VIEW shown AS SELECT code, content FROM letters")
    op.create_reranker("shown", "shown", text_columns=["content"], key_columns=["code"])
"""


class Project:
    def __init__(self, folder: Path, dsn: str, driver: str = "psycopg", **options: object) -> None:
        self.folder, self.dsn = folder, dsn
        (folder / "versions").mkdir(parents=True)
        (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s\n")
        env = textwrap.dedent(ENV).format_map({"include_schemas": False} | options)
        (folder / "env.py").write_text(env)
        (folder / "script.py.mako").write_text(MAKO)
        (folder / "url").write_text(url(dsn, driver))

    def models(self, *parts: str) -> None:
        code = "".join(textwrap.dedent(part) for part in (MODELS, *parts))
        (self.folder / "models.py").write_text(code)

    def alembic(self, *arguments: str, code: int = 0) -> str:
        """What the command says. It runs in this process, as imports take longer than all else."""
        said = io.StringIO()
        sys.modules.pop("models", None)
        cli = CommandLine()
        options = cli.parser.parse_args(arguments)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder)
            patch.setattr(sys, "dont_write_bytecode", True)  # models.py changes within a second
            config = Config("alembic.ini", stdout=said, output_buffer=said, cmd_opts=options)
            try:
                cli.run_cmd(config, options)
                ended = 0
            except SystemExit as error:
                ended = int(error.code or 0) % 256
        assert ended == code, said.getvalue()
        return said.getvalue()

    def alembic_apart(self, *arguments: str) -> str:
        """The same as a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def revise(self, name: str) -> str:
        """The revision that autogenerate writes."""
        self.alembic("revision", "--autogenerate", "--rev-id", name, "-m", name)
        [path] = (self.folder / "versions").glob(f"{name}_*.py")
        return path.read_text("utf-8")

    def settings(self) -> dict | None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            if schema.installed_version(connection) is None:
                return None
            row = connection.execute(
                "SELECT pgrerank.settings(name) FROM pgrerank.rerankers"
            ).fetchone()
            return None if row is None else row[0]


@pytest.fixture(params=["psycopg", "asyncpg"])
def project(request, tmp_path, empty_dsn) -> Project:
    return Project(tmp_path / "project", empty_dsn, request.param)


def halves(revision: str) -> list[str]:
    before, _, after = revision.partition("def downgrade")
    return [before.partition("def upgrade")[2], after]


def test_a_declared_key_is_kept_and_another_makes_the_reranker_anew(project):
    project.models(LETTERS.replace("KEY", "code"))
    assert "key_columns=['code']" in project.revise("add")
    project.alembic("upgrade", "head")
    assert project.settings()["key_columns"] == ["code"]
    assert "No new upgrade operations detected" in project.alembic("check")
    project.models(LETTERS.replace(", key=Letter.KEY", ""))
    upgrade, downgrade = halves(project.revise("change"))
    assert upgrade.index("op.drop_reranker('letters')") < upgrade.index("op.create_reranker(")
    assert "key_columns" not in upgrade
    assert "key_columns=['code']" in downgrade
    project.alembic("upgrade", "head")
    assert "No new upgrade operations detected" in project.alembic("check")
    with psycopg.connect(project.dsn) as connection:
        assert connection.execute(
            "SELECT key_columns, key_type FROM pgrerank.rerankers"
        ).fetchone() == (["year", "number"], "pgrerank.letters_key")


def test_a_migration_changes_and_renames_a_column_and_the_reranker_follows(project):
    project.models(LETTERS.replace("KEY", "code"))
    project.revise("add")
    project.alembic("revision", "--rev-id", "changed", "-m", "changed")
    [path] = (project.folder / "versions").glob("changed_*.py")
    path.write_text(path.read_text("utf-8").replace("    pass\n", CHANGED, 1))
    project.alembic("upgrade", "head")
    project.models(
        LETTERS.replace("KEY", "code").replace(
            "content: Mapped[str]", 'content: Mapped[str] = mapped_column("text", String(99))'
        )
    )
    assert "No new upgrade operations detected" in project.alembic("check")
    assert project.settings()["text_columns"] == ["text"]


def test_a_migration_makes_a_reranker_over_a_view(project):
    project.models(LETTERS.replace("KEY", "code"))
    project.revise("add")
    project.alembic("revision", "--rev-id", "shown", "-m", "shown")
    [path] = (project.folder / "versions").glob("shown_*.py")
    path.write_text(path.read_text("utf-8").replace("    pass\n", textwrap.dedent(SHOWN), 1))
    path.write_text(path.read_text("utf-8").replace("\nop.", "\n    op."))
    project.alembic("upgrade", "head")
    with psycopg.connect(project.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO letters VALUES (1, 1, 'a', 'b', 'some words')")
        assert connection.execute("SELECT pgrerank.enqueue('shown')").fetchone() == (1,)


def test_autogenerate_adds_changes_and_removes_and_every_step_goes_back(project):
    project.models(RERANKER)
    upgrade, downgrade = halves(project.revise("add"))
    order = ("install_pgrerank('0.1.0')", "create_table('documents'", "register_model(")
    at = [upgrade.index(f"op.{call}") for call in (*order, "create_reranker(")]
    assert at == sorted(at)
    assert "text_columns=['title', 'body']" in upgrade
    assert "timeout='2 s'" in upgrade
    at = [
        downgrade.index(f"op.{call}")
        for call in ("drop_reranker('documents')", "drop_model(", "drop_table(", "uninstall_pg")
    ]
    assert at == sorted(at)
    project.alembic("upgrade", "head")
    assert "No new upgrade operations detected" in project.alembic("check")
    first = project.settings()

    project.models(EXPRESSION)
    upgrade, downgrade = halves(project.revise("change"))
    assert "op.alter_reranker(" in upgrade
    assert "candidates=200" in upgrade
    assert "candidates=100" in downgrade
    assert "blend={'dense': 1, 'maxsim': 2.5}" in upgrade
    assert (
        "blend={'dense': 0.28, 'maxsim': 0.28, 'lexical': 0.14, 'cross_encoder': 0.3}" in downgrade
    )
    assert "log_sample=0.25" in upgrade
    assert "text_search_config='german'" in upgrade
    assert "language_expression='lower" in upgrade
    assert "language_expression=''" in downgrade
    assert "tenant_column='title'" in upgrade
    assert "tenant_column=''" in downgrade
    assert "maxsim_top" not in upgrade  # it is the default already
    project.alembic("upgrade", "head")
    second = project.settings()
    assert (second["candidates"], second["text_columns"]) == (200, None)
    assert second["blend"] == {"dense": 1, "maxsim": 2.5}
    assert (second["log_sample"], second["log_retention"]) == (0.25, "168:00:00")
    assert "100% :x" in second["text_expression"]
    assert second["text_search_config"] == "german"
    assert "lower" in second["language_expression"]
    assert "No new upgrade operations detected" in project.alembic("check")

    project.models()
    upgrade, downgrade = halves(project.revise("remove"))
    assert "op.drop_reranker('documents')" in upgrade
    assert "op.create_reranker(" in downgrade
    project.alembic("upgrade", "head")
    assert project.settings() is None
    assert "No new upgrade operations detected" in project.alembic("check")

    project.alembic("downgrade", "-1")
    assert project.settings() == second
    project.alembic("downgrade", "-1")
    assert project.settings() == first
    project.alembic("downgrade", "base")
    with psycopg.connect(project.dsn) as connection:
        assert schema.installed_version(connection) is None


def test_a_reranker_of_another_kind_is_dropped_and_created(project):
    project.models(RERANKER)
    project.revise("add")
    project.alembic("upgrade", "head")
    project.models(RERANKER.replace("timeout=", "distance='l2', timeout="))
    upgrade, downgrade = halves(project.revise("distance"))
    assert upgrade.index("drop_reranker") < upgrade.index("create_reranker")
    assert "distance='l2'" in upgrade
    assert "distance='cosine'" in downgrade
    project.alembic("upgrade", "head")
    assert project.settings()["distance"] == "l2"
    assert "No new upgrade operations detected" in project.alembic("check")


def test_a_changed_model_is_registered_anew_and_back(tmp_path, dsn, db):
    loader = "SELECT loader FROM pgrerank.models WHERE name = 'tokens'"
    db.execute("SELECT pgrerank.register_model('tokens', 'late_interaction', 'some/where', 32)")
    db.execute("UPDATE pgrerank.models SET max_tokens = 256")
    project = Project(tmp_path / "project", dsn)
    project.models(
        RERANKER.replace(
            "timeout=",
            "late_interaction_model=Model('tokens', 'late_interaction', 'some/where', dims=32,"
            " loader='sentence_transformer'), timeout=",
        )
    )
    upgrade, downgrade = halves(project.revise("loader"))
    assert "loader='sentence_transformer'" in upgrade
    assert "loader='multi_vector_encoder'" in downgrade
    assert downgrade.count("op.drop_model(") == 1, "of the model that was not registered before"
    project.alembic("upgrade", "head")
    assert db.execute(loader).fetchone() == ("sentence_transformer",)
    assert "No new upgrade operations detected" in project.alembic("check")
    project.alembic("downgrade", "-1")
    assert db.execute(loader).fetchone() == ("multi_vector_encoder",)


def test_a_schema_too_old_to_be_compared_is_refused(tmp_path, empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        schema.install(connection)
        connection.execute(
            "CREATE OR REPLACE FUNCTION pgrerank.schema_version() RETURNS text LANGUAGE sql"
            " AS $$ SELECT '0.0.9' $$"
        )
    project = Project(tmp_path / "project", empty_dsn)
    project.models(RERANKER)
    said = project.alembic("revision", "--autogenerate", "-m", "add", code=255)
    assert f"op.upgrade_pgrerank('0.0.9', '{schema.VERSION}')" in said


def test_with_include_schemas_pgreranks_own_tables_are_let_be(tmp_path, empty_dsn):
    project = Project(tmp_path / "project", empty_dsn, include_schemas=True)
    project.models(RERANKER)
    project.revise("add")
    project.alembic("upgrade", "head")
    said = project.alembic("check")
    assert "No new upgrade operations detected" in said
    assert "Did not recognize type" not in said


def test_without_pgrerank_on_the_models_nothing_is_proposed(tmp_path, dsn, db, source):
    source.create()
    project = Project(tmp_path / "project", dsn)
    (project.folder / "models.py").write_text(
        "from sqlalchemy import MetaData\nclass Base:\n    metadata = MetaData(schema='other')\n"
    )
    (project.folder / "env.py").write_text(
        (project.folder / "env.py")
        .read_text()
        .replace(
            "target_metadata=Base.metadata,",
            "target_metadata=Base.metadata, include_name=lambda n, t, p: t != 'table',",
        )
    )
    upgrade, _ = halves(project.revise("nothing"))
    assert "drop_table" not in upgrade


def test_offline_sql_does_the_same(tmp_path, make_database):
    online, offline = make_database(), make_database()
    project = Project(tmp_path / "online", online)
    project.models(EXPRESSION)
    project.revise("add")
    project.alembic("upgrade", "head")
    printed = project.alembic_apart("upgrade", "head", "--sql")
    with psycopg.connect(offline, autocommit=True) as connection:
        connection.execute(printed)
    assert dump(offline, "--schema-only") == dump(online, "--schema-only")
    assert dump(offline, "--data-only", "--table=pgrerank.models").count('"max_tokens": 99') == 1


def test_the_schema_is_upgraded_by_a_revision_whose_search_path_is_its_own(
    tmp_path, empty_dsn, monkeypatch
):
    monkeypatch.setattr("pgrerank.alembic.schema.SCRIPTS", next_release(tmp_path / "sql"))
    project = Project(tmp_path / "project", empty_dsn)
    project.models()
    (project.folder / "versions" / "one.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\n"
        "revision = 'one'\ndown_revision = None\n"
        "def upgrade():\n"
        "    op.install_pgrerank('0.1.0')\n"
        f"    op.upgrade_pgrerank('0.1.0', '{NEXT}')\n"
        "    op.execute('CREATE TABLE mine (id int)')\n"
        "def downgrade():\n"
        f"    op.downgrade_pgrerank('{NEXT}', '0.1.0')\n"
    )
    project.alembic("upgrade", "head")
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        assert connection.execute("SELECT to_regclass('public.mine')").fetchone()[0] == "mine"
        assert schema.installed_version(connection) == NEXT
    said = project.alembic("downgrade", "base", code=255)
    assert f"can't go back from {NEXT} to 0.1.0: restore a backup" in said


@pytest.mark.parametrize("how", ["own environment", "version location"])
def test_pgreranks_own_revisions_end_in_the_schema_that_install_makes(
    tmp_path, dsn, make_database, how
):
    migrated = make_database()
    project = Project(tmp_path / "project", migrated)
    project.models()
    if how == "version location":
        (project.folder / "alembic.ini").write_text(
            "[alembic]\nscript_location = %(here)s\npath_separator = newline\n"
            "version_locations =\n    %(here)s/versions\n    pgrerank:migrations/versions\n"
        )
        project.alembic("upgrade", "pgrerank@pgrerank_0_1_0")
        project.alembic("upgrade", "pgrerank@head")
        version_table = "alembic_version"
    else:
        ini = Path(__file__).parents[1] / "migrations" / "alembic.ini"
        url = (project.folder / "url").read_text()
        subprocess.run(
            [sys.executable, "-m", "alembic", "-c", ini, "upgrade", "head"],
            env=os.environ | {"PGRERANK_MIGRATION_URL": url},
            check=True,
        )
        version_table = "pgrerank_version"
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {version_table}")
    assert dump(migrated, "--schema-only") == dump(dsn, "--schema-only")
