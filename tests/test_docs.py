"""The documentation is executed: every block of code runs, or says by a comment why it does not.

A page (README.md, docs/**/*.md) has one database and one folder; its blocks run in order. Models
named `minilm`, `minilm-tokens` and `ms-marco` are there before a reranker is created; a worker
is there before the first search. ```sql runs statement by statement, ```python in one namespace,
the commands of ```sh and ```console in this process, with the connection string in $DSN, and as
SQLAlchemy's URL in $DATABASE_URL; $TEI, $COHERE and $LLM are endpoints of a small provider.

HTML comments, which readers don't see, just before a block:

    <!-- not run: why -->        it is only looked at
    <!-- raises: SQLSTATE … -->  its last statement fails with one of these (sql only)
    <!-- file: NAME -->          it is a file of that name in the page's folder

and in a place of their own, SQL that readers need not see: <!-- setup: … -->

Writes docs/reference/cli.md anew: python -m tests.test_docs
"""

from __future__ import annotations

import contextlib
import html
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mdformat
import psycopg
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from pgrerank.cli import app
from tests.helpers.provider import provider
from tests.helpers.urls import url
from tests.helpers.workers import wait_for, worker

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLI_PAGE = ROOT / "docs" / "reference" / "cli.md"
PYTHON_PAGE = ROOT / "docs" / "reference" / "python.md"
SQL_PAGE = ROOT / "docs" / "reference" / "sql.md"
MODELS = [
    ("minilm", "embedding", "embedding", "sentence_transformer", 32),
    ("minilm-tokens", "late_interaction", "tokens", "sentence_transformer", 32),
    ("ms-marco", "cross_encoder", "reranker", "cross_encoder", None),
]
ELSEWHERE = ("make", "pip", "git", "cd", "export", "python -m venv", "python -m pip")
MODULES = {"alembic": "alembic", "django-admin": "django"}
ENVIRONMENT = {"PYTHONPATH": f".{os.pathsep}{ROOT}", "DJANGO_SETTINGS_MODULE": "settings"}
ENDLESS = ("pgrerank dev", "pgrerank worker", "pgrerank demo", "pgrerank studio", "pgrerank mcp")

_BLOCK = re.compile(
    r"^<!-- setup:\s(?P<setup>.*?)\s-->$"
    r"|(?:^<!-- (?P<directive>not run|raises|file): (?P<value>[^\n]*?) -->\n\n?)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    line: int
    language: str
    code: str
    directive: str | None
    value: str | None


def blocks(text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        part = "setup" if match["setup"] is not None else "code"
        line = text.count("\n", 0, match.start(part)) + 1
        if part == "setup":
            yield Block(line, "sql", match["setup"], "setup", None)
        else:
            yield Block(line, match["language"], match["code"], match["directive"], match["value"])


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def statements(code: str) -> Iterator[str]:
    """SQL cut where a line ends in a semicolon outside of $$."""
    statement = ""
    for line in code.splitlines(keepends=True):
        statement += line
        if line.split("--")[0].rstrip().endswith(";") and statement.count("$$") % 2 == 0:
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def commands(block: Block) -> list[str]:
    """What is typed: all lines, or in ```console those after "$ "; continued lines are joined."""
    lines = re.sub(r"\\\n\s*", "", block.code).splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


class Page:
    def __init__(self, path: Path, dsn: str, folder: Path, models: Any, running: Any) -> None:
        self.path, self.dsn, self.folder = path, dsn, folder
        self._models, self._running = models, running
        self._connection = running.enter_context(psycopg.connect(dsn, autocommit=True))
        self._admin = running.enter_context(psycopg.connect(dsn, autocommit=True))
        self._namespace: dict[str, Any] = {"__name__": "docs"}
        self._worker: Any = None

    def run(self, block: Block) -> None:
        if block.directive == "file":
            path = self.folder / str(block.value)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, "utf-8")
            self._prepare(block.code)
            return
        self._prepare(block.code)
        if block.language == "sql":
            self._sql(block)
        elif block.language == "python":
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, self.path, "exec", dont_inherit=True), self._namespace)
        elif block.language in ("sh", "console"):
            self._commands(block)
        elif block.language not in ("", "text", "json"):
            pytest.fail(f"{page_id(self.path)}:{block.line}: what is ```{block.language}?")

    def dispose(self) -> None:
        """Close what pages leave to their readers' processes: connection pools."""
        for value in self._namespace.values():
            if isinstance(value, Engine):
                value.dispose()

    def _prepare(self, code: str) -> None:
        """Models before rerankers; a worker, and all encoded, before searches."""
        if re.search(r"create_reranker|pgrerank create |\b(?:Create)?Reranker\(", code):
            for name, kind, folder, loader, dims in MODELS:
                self._admin.execute(
                    "SELECT pgrerank.register_model(%s, %s, %s, %s, %s)"
                    " WHERE NOT EXISTS (SELECT FROM pgrerank.models WHERE name = %s)",
                    (name, kind, self._models[folder], dims, loader, name),
                )
        if re.search(
            r"search(?:_many)?\(|retriever\.invoke|\.rerank\("
            r"|pgrerank (?:search|explain|evaluate|calibrate|tune|replay) ",
            code,
        ):
            self._worker = self._worker or self._running.enter_context(
                worker(self.dsn, self.folder)
            )
            wait_for(self._admin, "pending = 0 AND next_generation IS NULL")

    def _sql(self, block: Block) -> None:
        place, wanted = f"{page_id(self.path)}:{block.line}", str(block.value).split()
        *first, last = statements(block.code)
        for statement in [*first, last]:
            try:
                self._connection.execute(statement)
            except psycopg.Error as error:
                if statement is last and block.directive == "raises" and error.sqlstate in wanted:
                    return
                pytest.fail(f"{place}: {error}\n{statement}")
        assert block.directive != "raises", f"{place}: nothing is raised"

    def _commands(self, block: Block) -> None:
        place = f"{page_id(self.path)}:{block.line}"
        for command in commands(block):
            if command.startswith(ELSEWHERE):
                continue
            if not command.startswith(("pgrerank ", "pytest ", *MODULES)) or command.startswith(
                ENDLESS
            ):
                pytest.fail(f"{place}: {command!r} is not run: put <!-- not run: why --> before it")
            program, *arguments = shlex.split(os.path.expandvars(command))
            if program == "pytest":
                done = pytest.main([*arguments, "-q", "-p", "no:cacheprovider"])
                assert done == 0, f"{place}: {command}"
                continue
            if program in MODULES:
                done = subprocess.run(
                    [sys.executable, "-m", MODULES[program], *arguments],
                    env=os.environ | ENVIRONMENT,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{place}: {command}\n{done.stderr}"
                continue
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{place}: {command}\n{result.output}"


@pytest.fixture
def own_roles(server_dsn: str) -> Iterator[Any]:
    """Gives the roles that a text creates names of this process; drops them at the end."""
    made = set()

    def rename(text: str) -> str:
        for role in set(re.findall(r"CREATE ROLE (\w+)", text)):
            made.add(f"{role}_{os.getpid()}")
            text = re.sub(rf"\b{role}\b", f"{role}_{os.getpid()}", text)
        return text

    yield rename
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        for role in made:
            connection.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_the_code_of_a_page_runs(path, own_roles, dsn, tmp_path, tiny_models, monkeypatch):
    text = own_roles(path.read_text("utf-8"))
    monkeypatch.setenv("DSN", dsn)
    monkeypatch.setenv("DATABASE_URL", url(dsn, "psycopg"))
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as running:
        if re.search("export (TEI|LLM|COHERE)=", text):
            server = running.enter_context(provider())
            for name, dialect in (("TEI", "tei"), ("LLM", "openai"), ("COHERE", "cohere")):
                monkeypatch.setenv(name, server.url(dialect))
        page = Page(path, dsn, tmp_path, tiny_models, running)
        for block in blocks(text):
            if block.directive != "not run":
                page.run(block)
        page.dispose()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_no_block_escapes(path):
    """An indented fence, or a comment that is not just before its block, would go unnoticed."""
    text = path.read_text("utf-8")
    seen = list(blocks(text))
    fences = re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)
    assert len(fences) == 2 * sum(block.directive != "setup" for block in seen)
    comments = re.findall("<!-- (?:not run|raises|file|setup):", text)
    assert len(comments) == sum(block.directive is not None for block in seen)


def headings(path: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


def test_the_index_links_every_page():
    index = ROOT / "docs" / "index.md"
    linked = set(re.findall(r"\]\(([^)#\s]+)\)", index.read_text("utf-8")))
    assert {str(page.relative_to(index.parent)) for page in PAGES[2:]} - linked == {"index.md"}


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/reference/sql.md lacks a heading {title!r}"
    return match[1]


def test_the_sql_reference_has_every_function_with_its_arguments(db):
    text = SQL_PAGE.read_text("utf-8")
    functions = db.execute(
        """
        SELECT p.proname, p.proargnames[1:p.pronargs], p.proargtypes::regtype[]::text[],
               p.proargnames[p.pronargs + 1:]
        FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname !~ '^_'
          AND NOT EXISTS (
            SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
            WHERE d.objid = p.oid AND d.deptype = 'e' AND e.extname = 'dblink')"""
    ).fetchall()
    assert len(functions) >= 10
    for name, arguments, types, columns in functions:
        described = section(text, f"`pgrerank.{name}`")
        for argument, of_type in zip(arguments or [], types, strict=True):
            assert f"| `{argument}` | {of_type} |" in described, f"{name}: {argument}"
        for column in columns or []:
            assert f"`{column}`" in described, f"{name}: {column}"


def test_the_sql_reference_has_every_relation_with_its_columns(db):
    text = SQL_PAGE.read_text("utf-8")
    for relation, columns in db.execute(
        """
        SELECT c.relname, array_agg(a.attname) FROM pg_class c JOIN pg_attribute a
          ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'pgrerank'::regnamespace AND c.relkind IN ('r', 'v')
        GROUP BY c.relname"""
    ):
        described = section(text, f"`pgrerank.{relation}`")
        for column in columns:
            assert f"| `{column}` |" in described, f"{relation}: {column}"


def test_the_sql_reference_has_the_search_function(db, source):
    described = section(SQL_PAGE.read_text("utf-8"), "`pgrerank.NAME_search`")
    source.create()
    names, types = db.execute(
        "SELECT p.proargnames, p.proallargtypes::regtype[]::text[] FROM pg_proc p"
        " WHERE p.proname = 'documents_search'"
    ).fetchone()
    for name, of_type in zip(names, types, strict=True):
        if name != "id":
            wanted = "*key*[]" if name in ("keys", "after") else of_type
            assert f"| `{name}` | {wanted} |" in described, name


def cli_page() -> str:
    """The commands' own help, put on a page by Typer's own tool."""
    command = [sys.executable, "-m", "typer", "pgrerank.cli", "utils", "docs", "--name", "pgrerank"]
    made = subprocess.check_output(command, text=True, env=os.environ | {"NO_COLOR": "1"})
    made = html.unescape(made).replace("```console\n", "```text\n")
    note = "<!-- Generated from the commands' help. Write it anew: python -m tests.test_docs -->\n"
    page = note + re.sub("^# `pgrerank`", "# Command line", made)
    return mdformat.text(page, options={"wrap": 100}, extensions={"gfm", "tables"})


def test_the_cli_reference_is_what_the_commands_say():
    assert CLI_PAGE.read_text("utf-8") == cli_page(), "renew it: python -m tests.test_docs"


def test_the_python_reference_has_the_public_names():
    text = PYTHON_PAGE.read_text("utf-8")
    described = {
        module: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        for module, body in re.findall(
            r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
        )
        if module != "pgrerank.testing"
    }
    assert len(described) > 10
    for module, names in described.items():
        assert names == list(importlib.import_module(module).__all__), module


def test_the_page_of_signatures_has_the_modules_of_the_python_reference():
    listed = re.findall(r"^## `(pgrerank\.\w+)`", PYTHON_PAGE.read_text("utf-8"), re.MULTILINE)
    signed = re.findall(r"^::: (\S+)$", PYTHON_PAGE.with_name("api.md").read_text("utf-8"), re.M)
    assert signed == [m for m in listed if m not in ("pgrerank.install", "pgrerank.testing")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation's site, built without a warning."""
    pytest.importorskip("zensical")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def test_the_site_has_every_page_in_its_navigation(site):
    written = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in PAGES[2:]}
    listed = re.findall(r"^ +- ([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    assert sorted(listed) == sorted(written)
    for name in listed:
        assert (site / ("" if name == "index" else name) / "index.html").is_file(), name


def test_the_site_searches_signs_and_loads_nothing_from_elsewhere(site):
    assert "circuit breaker" in (site / "search.json").read_text("utf-8")
    assert "pack_parts" in (site / "reference" / "api" / "index.html").read_text("utf-8")
    ours = r"(?!https://pgrerank\.github\.io)"
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|link)\b[^>]*>", page.read_text("utf-8"))
        assert [tag for tag in tags if re.search(rf"(?:src|href)=\"?{ours}https?:", tag)] == [], (
            page
        )


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), "utf-8")
