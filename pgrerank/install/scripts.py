"""The files of sql/: the schema, the upgrades to it, and the frozen releases.

Numbered files are the current truth; each install and upgrade runs them all, and running them again
changes nothing. `upgrades/OLD--NEW.sql` holds what is run once, before them. `releases/VERSION.sql`
is what the numbered files were when a version was released, frozen, with its hash in SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from pgrerank import __version__
from pgrerank.errors import InstallError

__all__ = ["SCRIPTS", "Scripts", "freeze"]


@dataclass(frozen=True)
class Scripts:
    """A folder of SQL files, and the version that its numbered files make."""

    folder: Traversable
    version: str

    def numbered(self) -> list[Traversable]:
        """The files that make the current version, in their order."""
        files = (file for file in self.folder.iterdir() if file.name[0].isdigit())
        return sorted(files, key=lambda file: file.name)

    def release(self, version: str) -> list[Traversable]:
        """The files that make a version. Raises InstallError for one that was never released."""
        if version == self.version:
            return self.numbered()
        file = self.folder / "releases" / f"{version}.sql"
        if not file.is_file():
            raise InstallError(f"there is no pgrerank {version}: this package makes {self.version}")
        return [file]

    def upgrade(self, since: str, version: str | None = None) -> list[Traversable]:
        """The files that lead from one version to another, by default the current one.

        For each release in between: what is run once, then the files that make it. Raises
        InstallError where no upgrade leads there.
        """
        target = version or self.version
        following = dict(step.split("--") for step in self._steps())
        files: list[Traversable] = []
        reached = since
        while reached != target:
            if reached not in following:
                raise InstallError(
                    f"no upgrade leads from pgrerank {since} to {target}: there are"
                    f" {', '.join(self._steps()) or 'none'}"
                )
            files.append(self.folder / "upgrades" / f"{reached}--{following[reached]}.sql")
            reached = following[reached]
            files += self.release(reached)
        return files

    def versions(self) -> list[str]:
        """All versions that can be made, the current one last."""
        return [*sorted({step.split("--")[0] for step in self._steps()}), self.version]

    def wrapped(self, files: list[Traversable]) -> list[Traversable]:
        """Put the files between `begin.sql` and `end.sql`; all run in one transaction."""
        return [self.folder / "begin.sql", *files, self.folder / "end.sql"]

    @staticmethod
    def text(files: Sequence[Traversable]) -> str:
        """The files as one script."""
        return "\n".join(file.read_text("utf-8") for file in files)

    @property
    def uninstall(self) -> Traversable:
        """The file that removes everything."""
        return self.folder / "uninstall.sql"

    def _steps(self) -> list[str]:
        upgrades = self.folder / "upgrades"
        names = [file.name for file in upgrades.iterdir()] if upgrades.is_dir() else []
        return sorted(name.removesuffix(".sql") for name in names if "--" in name)


SCRIPTS = Scripts(importlib.resources.files("pgrerank") / "sql", __version__)
"""This package's own."""


def freeze(scripts: Scripts, folder: Path) -> Path:
    """Write the release file of the current version and its hash into a folder of releases.

    Part of a release; returns the file's path. Raises InstallError where the version is frozen.
    """
    path = folder / f"{scripts.version}.sql"
    if path.exists():
        raise InstallError(f"pgrerank {scripts.version} is released: {path} must not change")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(scripts.text(scripts.numbered()), "utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with (folder / "SHA256SUMS").open("a", encoding="utf-8") as sums:
        sums.write(f"{digest}  {path.name}\n")
    return path


if __name__ == "__main__":
    print(freeze(SCRIPTS, Path(str(SCRIPTS.folder)) / "releases"))  # noqa: T201
