"""Builds the native MaxSim kernel for a server and puts it there."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path

from pgrerank.errors import KernelError

__all__ = ["EXTENSION", "build_into", "fingerprint", "install", "pg_config_value"]

EXTENSION = "pgrerank_native"
_HEADERS = (
    "the server's headers: Debian, Ubuntu: apt install postgresql-server-dev-{major};"
    " Red Hat: dnf install postgresql{major}-devel; Homebrew's postgresql@{major} has them"
)


def install(pg_config: Path) -> None:
    """Build for the server of this pg_config, and install into its folders.

    Raises KernelError, naming what is missing and where it comes from.
    """
    library, share = (
        Path(pg_config_value(pg_config, name)) for name in ("--pkglibdir", "--sharedir")
    )
    for folder in (library, share / "extension"):
        if not os.access(folder, os.W_OK):
            raise KernelError(
                f"no right to write to {folder}, where this Postgres keeps its extensions: run\n"
                f"  sudo {sys.executable} -m pgrerank native install --pg-config {pg_config}"
            )
    with _built(pg_config) as folder:
        _make(folder, pg_config, "install")


def build_into(pg_config: Path, home: Path, source: Traversable | None = None) -> None:
    """Build for the server of this pg_config, and lay the files out below ``home``.

    ``source`` is the folder of another extension than the kernel.

    `home/lib` is for dynamic_library_path, `home/share` for extension_control_path (Postgres 18).
    Two processes at once end with one whole copy. Raises KernelError as :func:`install` does.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with _built(pg_config, source) as built:
        fresh = Path(tempfile.mkdtemp(dir=home.parent))
        try:
            for kind, suffixes in (
                ("lib", (".so", ".dylib")),
                ("share/extension", (".control", ".sql")),
            ):
                (fresh / kind).mkdir(parents=True)
                for file in built.iterdir():
                    if file.suffix in suffixes:
                        shutil.copy(file, fresh / kind)
            for path in (fresh, *fresh.rglob("*")):
                path.chmod(0o755)
            fresh.rename(home)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not home.exists():
                raise


def fingerprint(pg_config: Path) -> str:
    """Names what a build depends on: the server's version, the machine's kind, the sources."""
    version = pg_config_value(pg_config, "--version").split()[1]
    digest = hashlib.sha256()
    for name, content in sorted(_sources()):
        digest.update(name.encode() + b"\0" + content)
    return f"{version}-{platform.system()}-{platform.machine()}-{digest.hexdigest()[:12]}".lower()


def pg_config_value(pg_config: Path, option: str) -> str:
    """What pg_config says to an option such as ``--version``. Raises KernelError."""
    try:
        done = subprocess.run(  # noqa: S603
            [pg_config, option], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "strerror", None) or error
        raise KernelError(
            f"{pg_config} does not run ({why}): give the pg_config of the server, such as"
            " --pg-config /usr/lib/postgresql/18/bin/pg_config"
        ) from error
    return done.stdout.strip()


def _sources(folder: Traversable | None = None) -> list[tuple[str, bytes]]:
    """The files that a build needs, by their names below the folder."""

    def walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
        for entry in folder.iterdir():
            name = prefix + entry.name
            if entry.is_dir():
                if entry.name == "kernels":
                    yield from walk(entry, name + "/")
            elif entry.name == "Makefile" or entry.name.endswith((".c", ".h", ".control", ".sql")):
                yield name, entry.read_bytes()

    return list(walk(folder or importlib.resources.files("pgrerank") / "kernel_source", ""))


@contextmanager
def _built(pg_config: Path, source: Traversable | None = None) -> Iterator[Path]:
    """Build in a fresh copy of the sources; gives the folder."""
    version = pg_config_value(pg_config, "--version").split()[1]
    if (
        not Path(pg_config_value(pg_config, "--pgxs")).exists()
        or not (Path(pg_config_value(pg_config, "--includedir-server")) / "postgres.h").exists()
    ):
        raise KernelError(
            f"Postgres {version} of {pg_config} can't be built against without "
            + _HEADERS.format(major=version.split(".")[0])
        )
    with tempfile.TemporaryDirectory(prefix="pgrerank-kernel-") as name:
        folder = Path(name)
        for path, content in _sources(source):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        _make(folder, pg_config)
        yield folder


def _make(folder: Path, pg_config: Path, *targets: str) -> None:
    make = shutil.which("gmake") or shutil.which("make")
    if make is None:
        raise KernelError("make is not installed: apt install make, or dnf install make")
    arguments = [make, "-s", f"PG_CONFIG={pg_config}", *_compiler(pg_config), *targets]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(  # noqa: S603
        arguments, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise KernelError(f"{' '.join(arguments)} failed:\n{done.stderr.strip()[-3000:]}")


def _compiler(pg_config: Path) -> list[str]:
    """Choose make's settings: the server's compiler and flags, or another without its flags."""
    own = pg_config_value(pg_config, "--cc").split()[0]
    flags = pg_config_value(pg_config, "--cflags").split()
    named = os.environ.get("CC")
    for compiler in [named] if named else [own, "cc", "gcc", "clang"]:
        path = shutil.which(compiler)
        if path is None or not _accepts(path, []):
            continue
        return [f"CC={path}"] if _accepts(path, flags) else [f"CC={path}", "CFLAGS=-O2"]
    raise KernelError(
        f"no C compiler{f' {named}' if named else ''}: apt install gcc, or dnf install gcc"
    )


def _accepts(compiler: str, flags: list[str]) -> bool:
    """Whether the compiler takes the flags without a warning."""
    done = subprocess.run(  # noqa: S603
        [compiler, *flags, "-Werror", "-x", "c", "-c", "-o", os.devnull, "-"],
        input="extern int probe(void); int probe(void) { return 0; }\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0
