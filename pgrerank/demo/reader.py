"""A program that prints what the running Python says of its standard library.

One JSON object a line, with the fields of pgrerank.demo.corpus.Entry. It imports nothing but the
standard library, because it runs isolated from everything else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import NamedTuple

_SKIPPED = {  # act on import, need a display, belong to one platform, or have a better name
    *("antigravity", "distutils", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"),
    *("curses.has_key", "turtle", "tkinter"),
    *("msilib", "msvcrt", "nt", "posix", "winreg", "winsound"),
    *("genericpath", "ntpath", "posixpath"),
}
_SHOWN: dict[str, frozenset[str]] = {  # packages whose other submodules are implementation
    "asyncio": frozenset(),
    "concurrent.futures": frozenset(),
    "ctypes": frozenset({"util"}),
    "encodings": frozenset(),
    "ensurepip": frozenset(),
    "importlib": frozenset({"abc", "machinery", "metadata", "resources", "util"}),
    "importlib.metadata": frozenset(),
    "importlib.resources": frozenset({"abc"}),
    "json": frozenset({"tool"}),
    "multiprocessing": frozenset({"connection", "managers", "pool", "shared_memory"}),
    "sqlite3": frozenset(),
    "unittest": frozenset({"mock"}),
    "xml.dom": frozenset({"minidom", "pulldom"}),
    "xml.etree": frozenset({"ElementTree"}),
    "xml.sax": frozenset({"handler", "saxutils", "xmlreader"}),
}
_HOMES = {  # where the objects of a module say that they come from
    "os": {"posix", "nt"},
    "os.path": {"os", "posix", "nt", "posixpath", "ntpath", "genericpath"},
    "types": {"builtins"},
    "weakref": {"builtins"},
}
_KINDS = {
    type: "class",
    types.FunctionType: "function",
    types.BuiltinFunctionType: "function",
    types.MethodType: "function",
    functools._lru_cache_wrapper: "function",  # noqa: SLF001 - it has no other name
    types.MethodDescriptorType: "method",
    types.ClassMethodDescriptorType: "method",
    property: "property",
    functools.cached_property: "property",
    types.GetSetDescriptorType: "property",
    types.MemberDescriptorType: "property",
}


class _Named(NamedTuple):
    """An object under one of its names; `listed` if the module's `__all__` has it."""

    module: str
    name: str
    thing: object
    listed: bool

    @property
    def home(self) -> str:
        """The module that the object says it comes from, often a private one."""
        home = getattr(self.thing, "__module__", None)
        return home if isinstance(home, str) else self.module

    @property
    def rank(self) -> tuple[object, ...]:
        """Lowest for the best of an object's names: public, near its home, its own, short."""
        own = getattr(self.thing, "__name__", None)
        foreign = self.module.partition(".")[0] not in re.split(r"[._]", self.home)
        length = (self.module.count("."), self.module, self.name)
        return (self.module != "builtins", foreign, not self.listed, self.name != own, *length)


def _entries() -> list[dict[str, str]]:
    """An entry for each documented object.

    Of those that say the same under the same last name (random.shuffle and random.Random.shuffle,
    str.strip and bytes.strip) only the one with the shortest id.
    """
    entries: dict[tuple[str, str], dict[str, str]] = {}
    for entry in sorted(_all_entries(), key=lambda entry: (len(entry["id"]), entry["id"])):
        entries.setdefault((entry["id"].rpartition(".")[2], entry["text"]), entry)
    return list({entry["id"]: entry for entry in reversed(entries.values())}.values())


def _all_entries() -> Iterator[dict[str, str]]:
    modules = dict(_modules())
    for name, imported in modules.items():
        yield from _entry(name, name, "module", imported)
    found = _best_names(modules)
    public = {id(named.thing) for named in found}
    claimed: set[int] = set()  # by a base, which comes before its heirs
    for named in sorted(found, key=lambda each: (*_seniority(each.thing), each.module, each.name)):
        module, name, thing = named[:3]
        identifier = name if module == "builtins" else f"{module}.{name}"
        yield from _entry(identifier, module, _kind(thing), thing)
        for member, value in _members(thing, public) if isinstance(thing, type) else ():
            if id(value) not in claimed:
                claimed.add(id(value))
                kind = "property" if _kind(value) == "property" else "method"
                yield from _entry(f"{identifier}.{member}", module, kind, value)


def _seniority(thing: object) -> tuple[bool, int]:
    """Lower for a class that speaks for a private base of its name (io.IOBase), or is a base."""
    bases = thing.__mro__[1:] if isinstance(thing, type) else ()
    own = getattr(thing, "__name__", None)
    return own not in {base.__name__.lstrip("_") for base in bases}, len(bases)


def _modules() -> Iterator[tuple[str, types.ModuleType]]:
    """The public modules that can be imported here, by the names they are known by."""
    names = sorted(name for name in sys.stdlib_module_names if name not in _SKIPPED)
    while names:
        name = names.pop(0)
        if not re.search(r"(^|\.)_", name) and (module := _import(name)):
            yield name, module
            children = {found.name for found in pkgutil.iter_modules(_path(module))}
            shown = children & _SHOWN.get(name, children)
            names.extend(f"{name}.{child}" for child in sorted(shown))
            names.extend(["os.path"] if name == "os" else [])


def _import(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # absent on this platform, or not meant to be imported
        return None


def _path(module: types.ModuleType) -> list[str]:
    return list(getattr(module, "__path__", ()))


def _best_names(modules: dict[str, types.ModuleType]) -> list[_Named]:
    """Every public object once, by identity, under the best of its names."""
    best: dict[int, _Named] = {}
    for module_name, module in modules.items():
        listed = {name for name in getattr(module, "__all__", ()) if isinstance(name, str)}
        whole = not listed or module_name == "asyncio"  # whose list of 3.11 forgets TaskGroup
        for name in listed | set(vars(module)) if whole else listed:
            named = _Named(module_name, name, getattr(module, name, None), name in listed)
            if not name.startswith("_") and _kind(named.thing) and _belongs(named, module):
                rival = best.get(id(named.thing), named)
                best[id(named.thing)] = min(rival, named, key=lambda each: each.rank)
    return list(best.values())


def _belongs(named: _Named, module: types.ModuleType) -> bool:
    """Whether the object was made for this module, be it by a private one, not just imported."""
    own = getattr(named.thing, "__name__", None)
    namesake = vars(module).get(str(own), named.thing)
    if named.module == "builtins":
        return named.name == own  # no IOError beside OSError
    if namesake is not named.thing and isinstance(namesake, type) and isinstance(named.thing, type):
        return not issubclass(namesake, named.thing)  # no socket.SocketType beside socket.socket
    return (
        named.home == named.module
        or named.home.startswith("_")
        or named.home in _HOMES.get(named.module, ())
        or named.home.partition(".")[0] == named.module.partition(".")[0] != "os"
    )


def _members(cls: type, public: set[int]) -> Iterator[tuple[str, object]]:
    """Public methods and properties that a class defines, or a private base defines for it."""
    shadowed: set[str] = set()
    for base in cls.__mro__[:-1]:
        if base is cls or id(base) not in public:
            found = []
            for name, value in vars(base).items():
                inner = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                if _kind(inner) not in ("", "class") and not name.startswith("_"):
                    alias = getattr(inner, "__name__", name) != name
                    found.append((alias, name, inner))
            # an object's own name comes first, so that do_continue is not known as do_c
            for _, name, inner in sorted(found, key=lambda each: each[:2]):
                if name not in shadowed and _is_own(name, inner, base, public):
                    yield name, inner
        shadowed |= vars(base).keys()


def _is_own(name: str, member: object, cls: type, public: set[int]) -> bool:
    """Whether it was written for the class, as time.localtime was not as Formatter.converter, and
    says something else than what it overrides."""
    bases = [base for base in cls.__mro__[1:] if id(base) in public]
    inherited = {_text(vars(base).get(name)) for base in bases}
    home = getattr(member, "__module__", None)
    return home in (None, cls.__module__) and _text(member) not in inherited


def _kind(thing: object) -> str:
    return next((kind for kind_of, kind in _KINDS.items() if isinstance(thing, kind_of)), "")


def _entry(identifier: str, module: str, kind: str, thing: object) -> Iterator[dict[str, str]]:
    text = _text(thing)
    if len(text.split()) >= 3:
        title = identifier + _signature(thing)
        yield dict(id=identifier, module=module, kind=kind, title=title, text=text)


def _text(thing: object) -> str:
    """The docstring; for a class without one, that of its own `__init__`."""
    text = getattr(thing, "__doc__", None)
    if isinstance(thing, type) and (not isinstance(text, str) or _is_generated(thing, text)):
        made_by = vars(thing).get("__init__")
        text = made_by.__doc__ if isinstance(made_by, types.FunctionType) else None
    text = inspect.cleandoc(text if isinstance(text, str) else "").replace("\0", "")
    return "" if text.startswith("Alias for field number") else text.strip()


def _is_generated(cls: type, text: str) -> bool:
    """Whether dataclass, namedtuple or enum wrote the text, which then says nothing."""
    fields = is_dataclass(cls) or issubclass(cls, tuple)
    generated = re.fullmatch(rf"{re.escape(cls.__name__)}\(.*\)( -> None)?", text, re.DOTALL)
    return bool(fields and generated) or text == "An enumeration."


def _signature(thing: object) -> str:
    """Empty where there is none, or where it tells of this machine rather than of the object."""
    try:
        signature = str(inspect.signature(thing)) if callable(thing) else ""
    except Exception:  # a few built-in signatures break inspect itself
        return ""
    telling = len(signature) <= 200 and " at 0x" not in signature and sys.prefix not in signature
    return signature if telling and sys.executable not in signature else ""


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # some modules print when imported
        lines = [json.dumps(entry) for entry in _entries()]
    print("\n".join(lines))  # noqa: T201 - its caller reads it
