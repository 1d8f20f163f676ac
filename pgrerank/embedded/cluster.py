"""The folder that a server keeps its data in."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from pathlib import Path

from pgrerank.embedded.binaries import Account
from pgrerank.errors import EmbeddedServerError

PASSWORD_FILE = "pgrerank.password"  # noqa: S105 - a file's name


def prepare(folder: Path, programs: Path, who: Account | None) -> str:
    """Make a cluster where there is none; returns its superuser's password.

    Raises EmbeddedServerError for a folder that holds something else, or a cluster of another
    version or origin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "PG_VERSION").exists():
        return _check(folder, programs)
    if any(folder.iterdir()):
        raise EmbeddedServerError(
            f"data folder {folder} is neither empty nor a database cluster: choose another"
        )
    folder.chmod(0o700)
    if who is not None:
        os.chown(folder, who.uid, who.gid)
    password = secrets.token_urlsafe(24)
    _initdb(folder, programs, who, password)
    secret = folder / PASSWORD_FILE
    secret.touch(0o600)
    secret.write_text(password, "utf-8")
    return password


def _check(folder: Path, programs: Path) -> str:
    found = (folder / "PG_VERSION").read_text("utf-8").strip()
    version = subprocess.run(  # noqa: S603
        [programs / "pg_config", "--version"], capture_output=True, text=True, check=True
    ).stdout
    wanted = version.split()[1].split(".")[0]
    if found != wanted:
        raise EmbeddedServerError(
            f"data folder {folder} was made by Postgres {found}, this is Postgres {wanted}: "
            "choose another folder, or dump and restore"
        )
    if not (folder / PASSWORD_FILE).exists():
        raise EmbeddedServerError(
            f"data folder {folder} was not made by pgrerank ({PASSWORD_FILE} is missing): "
            "choose another"
        )
    return (folder / PASSWORD_FILE).read_text("utf-8")


def _initdb(folder: Path, programs: Path, who: Account | None, password: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as secret:
        secret.write(password)
        secret.flush()
        if who is not None:
            os.chown(secret.name, who.uid, who.gid)
        done = subprocess.run(  # noqa: S603
            [
                programs / "initdb",
                "-D",
                folder,
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
                f"--pwfile={secret.name}",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            cwd="/",
            env=environment(),
            check=False,
            **(who.arguments if who else {}),
        )
    if done.returncode:
        hint = (
            f"\nthe server does not run as root but as user id {who.uid}: choose a folder that it "
            "can reach, below /var/cache or /tmp for example"
            if who is not None and "Permission denied" in done.stderr
            else ""
        )
        raise EmbeddedServerError(
            f"initdb failed in {folder}:\n{done.stderr.strip()[-2000:]}{hint}"
        )


def environment() -> dict[str, str]:
    """This process's environment without libpq's variables, which would mislead the programs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return kept | {"LC_ALL": "C.UTF-8", "HOME": "/"}
