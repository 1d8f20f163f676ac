from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psycopg
import pytest

from pgrerank import embedded
from pgrerank.errors import EmbeddedServerError


def ask(dsn: str, query: str = "SELECT 42"):
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        time.sleep(0.05)


def test_a_temporary_server_answers_by_tcp_and_socket_and_leaves_nothing():
    with embedded.start() as server:
        assert ask(server.dsn) == ask(server.socket_dsn) == 42
        assert ask(server.dsn, "SELECT current_setting('server_encoding')") == "UTF8"
        assert server.password not in repr(server)
    wait_until_dead(server.pid)
    assert not server.data.exists()
    assert not server.socket_folder.exists()


def test_extensions_can_be_created():
    with embedded.start() as server:
        dsn = server.create_database("a b")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        assert ask(dsn, "SELECT current_database()") == "a b"


def test_nobody_gets_in_without_the_password():
    with embedded.start() as server:
        for dsn in (server.dsn, server.socket_dsn):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(dsn.replace(server.password, "wrong"))


def _fail_with_a_server(started: list[embedded.EmbeddedServer]) -> None:
    with embedded.start() as server:
        started.append(server)
        assert ask(server.dsn) == 42
        raise ZeroDivisionError


def test_two_at_once_and_an_exception_ends_the_one_it_passes():
    started: list[embedded.EmbeddedServer] = []
    with embedded.start() as one:
        with pytest.raises(ZeroDivisionError):
            _fail_with_a_server(started)
        [two] = started
        assert one.port != two.port
        wait_until_dead(two.pid)
        assert ask(one.dsn) == 42
    wait_until_dead(one.pid)


def test_data_is_kept_and_settings_are_heeded(tmp_path):
    folder = tmp_path / "data"
    _open(tmp_path)
    with embedded.start(folder, settings={"work_mem": "7MB"}) as server:
        assert ask(server.dsn, "SHOW work_mem") == "7MB"
        assert ask(server.dsn, "SHOW fsync") == "on"
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
        assert embedded.running(folder).pid == server.pid
        with pytest.raises(EmbeddedServerError, match=f"process id {server.pid}"):
            embedded.start(folder)
    assert embedded.running(folder) is None
    with embedded.start(folder) as server:
        assert ask(server.dsn, "SELECT x FROM kept") == 1


def test_a_server_killed_without_warning_starts_again(tmp_path):
    folder = tmp_path / "data"
    _open(tmp_path)
    with embedded.start(folder) as server:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        wait_until_dead(server.pid)
    assert embedded.running(folder) is None
    with embedded.start(folder) as server:
        assert ask(server.dsn) == 42


def _open(folder: Path) -> None:
    """pytest's folders are closed to others; the server's user has to get through."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)


def test_the_port_can_be_chosen_and_a_taken_one_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match=f"port {port} .* is taken"):
            embedded.start(port=port)
    with embedded.start(port=port) as server:
        assert server.port == port
        assert ask(server.dsn) == 42


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbeddedServerError, match="neither empty nor a database cluster"):
        embedded.start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_wrong_setting_shows_the_servers_own_words():
    with pytest.raises(EmbeddedServerError, match="unrecognized configuration parameter"):
        embedded.start(settings={"no_such_setting": "1"})


def test_libpq_variables_are_of_no_concern(monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "/nowhere")
    monkeypatch.setenv("PGUSER", "stranger")
    with embedded.start() as server:
        assert ask(server.dsn) == 42


PARENT = """
    import os, sys, time
    from pgrerank import embedded
    if os.environ.get("FORK"):
        server = embedded.start()
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
    else:
        server = embedded.start()
    print(server.pid, server.data, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("fork", ["", "1"])
def test_the_server_does_not_outlive_its_parent(signal_, fork):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"FORK": fork},
    ) as parent:
        pid, data = parent.stdout.readline().split()
        assert is_alive(int(pid))
        parent.send_signal(signal_)
        parent.wait()
        wait_until_dead(int(pid))
    deadline = time.monotonic() + 10
    while Path(data).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(data).exists()


def test_a_detached_server_is_found_and_stopped_by_another_process(tmp_path):
    _open(tmp_path)
    folder = tmp_path / "data"
    program = f"from pgrerank import embedded; embedded.start({str(folder)!r}, detach=True)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
    server = embedded.running(folder)
    assert ask(server.dsn) == 42
    server.stop()
    assert embedded.running(folder) is None
    with pytest.raises(EmbeddedServerError, match="needs a data folder"):
        embedded.start(detach=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_plain_user_starts_one_too(tmp_path):
    program = textwrap.dedent(
        """
        import psycopg
        from pgrerank import embedded
        with embedded.start() as server, psycopg.connect(server.dsn) as connection:
            print(connection.execute("SELECT 42").fetchone()[0])
        """
    )
    done = subprocess.run(
        [_python_for_all(), "-c", program],
        cwd="/",
        env={"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": "/tmp", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        **NOBODY,
    )
    assert (done.stdout, done.stderr) == ("42\n", "")


NOBODY = {"user": "nobody", "group": "nogroup", "extra_groups": []}


def _python_for_all() -> str:
    """An interpreter like this one that other users may run, with this one's packages."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            probe = subprocess.run(
                [python, "-c", "import pgrerank.embedded"],
                cwd="/",
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
                check=False,
                capture_output=True,
                **NOBODY,
            )
            if probe.returncode == 0:
                return python
    pytest.skip("this Python and its packages are closed to other users")
