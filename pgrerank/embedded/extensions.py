"""The extensions of the embedded server: pgrerank itself, and its native kernel."""

from __future__ import annotations

import logging
from pathlib import Path

from pgrerank.embedded.binaries import cache_folder
from pgrerank.errors import KernelError
from pgrerank.install import extension, kernel

log = logging.getLogger(__name__)


def extension_settings(
    folder: Path, programs: Path, *, kernel: bool
) -> tuple[dict[str, str], str | None]:
    """Settings by which a server finds the extensions; and why it has no kernel, if so.

    The extension pgrerank is written anew into the server's own `folder` at every start, so that
    it is this package's; the kernel takes a compiler, so it is kept in the cache.
    """
    own = folder / "pgrerank"
    extension.write(own / "share" / "extension")
    for path in (own, own / "share", own / "share" / "extension"):
        path.chmod(0o755)  # whatever root's umask: the server's account is another
    share, libraries = ["$system", str(own / "share")], ["$libdir"]
    home, without_kernel = _kernel(programs) if kernel else (None, "not wanted")
    if home is not None:
        share.append(str(home / "share"))
        libraries.append(str(home / "lib"))
    return {
        "extension_control_path": ":".join(share),
        "dynamic_library_path": ":".join(libraries),
    }, without_kernel


def _kernel(programs: Path) -> tuple[Path | None, str | None]:
    """Folder with the native kernel, compiled once; or none, and the reason for it."""
    pg_config = programs / "pg_config"
    try:
        home = cache_folder() / f"kernel-{kernel.fingerprint(pg_config)}"
        if not home.exists():
            kernel.build_into(pg_config, home)
    except (KernelError, OSError) as error:
        log.info("starting without the native kernel: %s", error)
        return None, str(error)
    return home, None
