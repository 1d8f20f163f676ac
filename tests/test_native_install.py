"""The kernel's way into a server: compiled for the embedded one, installed into a real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgrerank import embedded
from pgrerank.errors import KernelError
from pgrerank.install import kernel, schema

needs_compiler = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("cc") is None, reason="no make or C compiler"
)


def pgrerank(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgrerank", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def cache(open_folder, monkeypatch) -> Path:
    """A cache of its own, in a folder that the server's user can read."""
    folder = open_folder / "cache"
    monkeypatch.setattr("pgrerank.embedded.extensions.cache_folder", lambda: folder)
    return folder


@needs_compiler
def test_the_embedded_server_compiles_it_once(cache):
    made = []
    for _ in range(2):
        with embedded.start() as server, psycopg.connect(server.dsn, autocommit=True) as db:
            assert server.without_kernel is None
            schema.install(db)
            assert schema.maxsim_engine(db).startswith("native (")
        [home] = cache.glob("kernel-*")
        made.append(home.stat().st_mtime_ns)
    assert made[0] == made[1]


@needs_compiler
def test_two_servers_that_start_at_once_end_with_one_whole_copy(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pgrerank.install import kernel\n"
        "kernel.build_into(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(embedded_pg_config()), str(tmp_path / "home")]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()} == {
        "pgrerank_native.so",
        "pgrerank_native.control",
        "pgrerank_native--0.1.0.sql",
    }


def embedded_pg_config() -> Path:
    from pgrerank.embedded.binaries import account, find

    return find(account()) / "pg_config"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make, which is missed first")
def test_without_a_compiler_the_embedded_server_says_so_and_starts(cache, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with embedded.start() as server, psycopg.connect(server.dsn, autocommit=True) as db:
        assert "no C compiler no-such-compiler" in (server.without_kernel or "")
        schema.install(db)
        assert schema.maxsim_engine(db) == "worker"
    assert not list(cache.glob("kernel-*"))


def test_without_kernel_means_that_it_is_not_there():
    with embedded.start(kernel=False) as server, psycopg.connect(server.dsn) as db:
        assert server.without_kernel == "not wanted"
        found = db.execute("SELECT FROM pg_available_extensions WHERE name = 'pgrerank_native'")
        assert found.fetchone() is None


@needs_compiler
def test_it_is_installed_where_pg_config_says(tmp_path):
    """A pg_config like the server's, but for the folders."""
    library, share = tmp_path / "lib", tmp_path / "share"
    (share / "extension").mkdir(parents=True)
    library.mkdir()
    wrapper = tmp_path / "pg_config"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --pkglibdir) echo {library};; --sharedir) echo {share};;'
        f' *) exec {embedded_pg_config()} "$@";; esac\n'
    )
    wrapper.chmod(0o755)
    done = pgrerank("native", "install", "--pg-config", str(wrapper))
    assert done.returncode == 0, done.stderr
    assert "the kernel is installed for PostgreSQL" in done.stderr
    assert "CREATE EXTENSION pgrerank_native;" in done.stderr
    assert (library / "pgrerank_native.so").exists()
    assert (share / "extension" / "pgrerank_native.control").exists()


def test_what_stands_in_the_way_is_named(tmp_path, monkeypatch):
    done = pgrerank("native", "install", "--pg-config", str(tmp_path / "none"))
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "does not run (No such file or directory): give the pg_config" in said
    assert "--pg-config /usr/lib/postgresql" in said
    bare = tmp_path / "pg_config"
    bare.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo PostgreSQL 17.2;; *) echo /none;; esac\n'
    )
    bare.chmod(0o755)
    with pytest.raises(KernelError, match="apt install postgresql-server-dev-17"):
        kernel.build_into(bare, tmp_path / "home")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        KernelError, match=r"no right to write to /none(.|\n)*sudo .*native install"
    ):
        kernel.install(bare)


def test_status_and_what_it_takes_to_create_it(dsn, db, make_role, empty_dsn):
    said = pgrerank("native", "status", "--dsn", dsn, "--json")
    [status] = json.loads(said.stdout)
    assert status["maxsim"] == schema.maxsim_engine(db)
    assert (status["created"] is None) == (status["maxsim"] == "worker")
    assert (status["created"] is None) == (status["client"] == "dblink")
    db.execute("DROP EXTENSION IF EXISTS pgrerank_native CASCADE")
    assert schema.maxsim_engine(db) == "worker"
    refused = pgrerank("native", "status", "--dsn", empty_dsn)
    assert refused.returncode == 1
    assert "run pgrerank install" in refused.stderr
