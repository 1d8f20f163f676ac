"""The corpus: what the running Python says of its own standard library.

Importing some two hundred modules has side effects (threads, warnings, patched globals), so a
process of its own does it: `python -m pgrerank.demo.corpus` prints one JSON object a line.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pgrerank.errors import PgrerankError

_SKIPPED = frozenset(  # with side effects, for one platform, or known under a better name
    (
        "antigravity",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "msilib",
        "pydoc_data",
        "test",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
        "venv",
        "posix",
        "nt",
        "winreg",
        "winsound",
        "msvcrt",
        "posixpath",
        "ntpath",
        "genericpath",
    )
)
_PACKAGES = frozenset(
    (
        "asyncio",
        "collections",
        "concurrent",
        "curses",
        "dbm",
        "email",
        "encodings",
        "html",
        "http",
        "importlib",
        "json",
        "logging",
        "multiprocessing",
        "sqlite3",
        "unittest",
        "urllib",
        "wsgiref",
        "xml",
        "xmlrpc",
        "zipfile",
        "zoneinfo",
    )
)
"""Packages whose public submodules belong to the corpus."""
_KINDS = {
    types.FunctionType: "function",
    types.BuiltinFunctionType: "function",
    types.MethodType: "function",
    functools._lru_cache_wrapper: "function",  # noqa: SLF001 - it has no other name
    types.MethodDescriptorType: "method",
    types.WrapperDescriptorType: "method",
    types.ClassMethodDescriptorType: "method",
    type: "class",
    property: "property",
    types.GetSetDescriptorType: "property",
}


@dataclass(frozen=True)
class Entry:
    """A documented object. `id` is its qualified name, `title` the name with its signature."""

    id: str
    module: str
    kind: str
    title: str
    text: str


def read_corpus() -> list[Entry]:
    """All entries, ordered by id; the same at every call on one Python.

    Raises PgrerankError if the process that reads them fails.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-X", "utf8", "-W", "ignore", "-m", __spec__.name],
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"id"')]
    if done.returncode or not lines:
        raise PgrerankError(f"the documentation can't be read:\n{done.stderr[-2000:]}")
    return sorted((Entry(**json.loads(line)) for line in lines), key=lambda entry: entry.id)


def _entries() -> Iterator[Entry]:
    """An entry an object, under the first of its names; of entries that say the same, the first."""
    seen: set[int] = set()
    said: set[object] = set()
    for module in sorted(_modules(), key=_precedence):
        found = [_entry(module.__name__, module.__name__, "module", module)]
        for name in _public_names(module):
            thing = getattr(module, name, None)
            home = getattr(thing, "__module__", None) or module.__name__
            if _belongs(home, module.__name__) and id(thing) not in seen:
                seen.add(id(thing))
                found += _describe(module.__name__, name, thing)
        for entry in filter(None, found):
            keys = {entry.id, (entry.id.rpartition(".")[2], entry.text)}
            if said.isdisjoint(keys):
                said |= keys
                yield entry


def _precedence(module: types.ModuleType) -> tuple[bool, int, str]:
    return (module.__name__ != "builtins", module.__name__.count("."), module.__name__)


def _modules() -> Iterator[types.ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if not name.startswith("_") and name not in _SKIPPED and (module := _import(name)):
            yield module
            if name in _PACKAGES:
                for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
                    if not found.name.startswith("_") and (
                        child := _import(f"{name}.{found.name}")
                    ):
                        yield child
    if path := _import("os.path"):
        path.__name__ = "os.path"
        yield path


def _import(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # absent on this platform, or not meant to be imported
        return None


def _public_names(module: types.ModuleType) -> list[str]:
    """Functions before classes, so that a bound method counts under its module's name, and str
    before its twins bytes and bytearray, whose methods say the same.
    """
    listed = getattr(module, "__all__", None) or vars(module)
    names = [name for name in listed if isinstance(name, str) and not name.startswith("_")]
    return sorted(
        names, key=lambda name: (isinstance(getattr(module, name, None), type), name != "str", name)
    )


def _belongs(home: str, module: str) -> bool:
    """Whether an object defined in `home` is a part of `module`, private helpers included."""
    own, other = module.partition(".")[0], home.partition(".")[0]
    return (
        own in (other, "builtins")
        or other.startswith("_")
        or (own == "os" and other in ("posixpath", "genericpath", "ntpath", "posix", "nt"))
    )


def _describe(module: str, name: str, thing: object) -> Iterator[Entry | None]:
    """The object itself, then, for a class, the public methods and properties that it defines."""
    prefix = "" if module == "builtins" else f"{module}."
    if kind := _kind(thing):
        yield _entry(prefix + name, module, kind, thing)
    members = sorted(vars(thing).items()) if isinstance(thing, type) else []
    for member, value in members:
        inner = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        kind = _kind(inner)
        if member.startswith("_") or kind in (None, "class"):
            continue
        kind = "property" if kind == "property" else "method"
        yield _entry(f"{prefix}{name}.{member}", module, kind, inner)


def _kind(thing: object) -> str | None:
    return next((kind for type_, kind in _KINDS.items() if isinstance(thing, type_)), None)


def _entry(identifier: str, module: str, kind: str, thing: object) -> Entry | None:
    """None for what has nothing to say."""
    text = _text(thing)
    if len(text.split()) < 3:
        return None
    return Entry(identifier, module, kind, identifier + _signature(thing), text)


def _text(thing: object) -> str:
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    return text.replace("\0", "")


def _signature(thing: object) -> str:
    try:
        signature = str(inspect.signature(thing)) if callable(thing) else ""
    except Exception:  # a few built-in signatures break inspect itself
        return ""
    return signature if len(signature) <= 200 and " at 0x" not in signature else ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for found in _entries():
        print(json.dumps(asdict(found)))  # noqa: T201 - its caller reads it
