"""Where a model's files are, found without importing anything."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pgrerank.errors import ModelError
from pgrerank.models.spec import ModelSpec

_PACKAGE = "package://"


@dataclass(frozen=True)
class Source:
    """A folder on this machine, or else the name of a model on the hub and its revision."""

    name: str
    revision: str | None
    folder: Path | None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, so that nothing may be fetched."""
        return self.folder is not None


def locate(spec: ModelSpec) -> Source:
    """Resolve a model's ``source``; raises ModelError when it names a folder that isn't there."""
    if spec.source.startswith(_PACKAGE):
        folder = _package_folder(spec)
    elif spec.source and Path(spec.source).is_dir():
        folder = Path(spec.source).resolve()
    elif _looks_like_a_hub_name(spec.source):
        return Source(spec.source, spec.revision, None)
    else:
        raise ModelError(
            f"model {spec.name}: source {spec.source!r} is neither a folder here nor a hub name;"
            " check the path, or write organisation/model"
        )
    if spec.revision is not None:
        raise ModelError(
            f"model {spec.name}: source {spec.source!r} is a folder, which has no revision"
            f" {spec.revision!r}; leave the revision out, or use a hub name"
        )
    return Source(str(folder), None, folder)


def _looks_like_a_hub_name(source: str) -> bool:
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and "\\" not in source and source[0] not in ".~"


def _package_folder(spec: ModelSpec) -> Path:
    package, _, path = spec.source.removeprefix(_PACKAGE).partition("/")
    # A dotted name would import the parent package; only a top-level one is found without.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            f"model {spec.name}: source {spec.source!r} needs the Python package {package!r},"
            f" which is not installed; try: pip install {package.replace('_', '-')}"
        )
    for location in found.submodule_search_locations:
        root = Path(location).resolve()
        folder = (root / path).resolve()
        if folder.is_dir() and folder.is_relative_to(root):
            return folder
    raise ModelError(
        f"model {spec.name}: source {spec.source!r}: the package {package!r} is installed but has"
        f" no folder {path!r}"
    )
