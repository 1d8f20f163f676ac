"""What the embedded server can be extended by: pgrerank itself, and its native kernel."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

from pgrerank import extension, kernel
from pgrerank.embedded.binaries import cache_folder
from pgrerank.errors import KernelError

log = logging.getLogger(__name__)


def extension_settings(programs: Path, *, kernel: bool) -> tuple[dict[str, str], str | None]:
    """Settings by which a server finds the extensions; and why it has no kernel, if so."""
    share = ["$system", str(_extension() / "share")]
    libraries = ["$libdir"]
    home, without_kernel = _kernel(programs) if kernel else (None, "not wanted")
    if home is not None:
        share.append(str(home / "share"))
        libraries.append(str(home / "lib"))
    return {
        "extension_control_path": ":".join(share),
        "dynamic_library_path": ":".join(libraries),
    }, without_kernel


def _extension() -> Path:
    """Folder with the extension pgrerank, written once for each content."""
    content = "".join(extension.scripts().values()).encode()
    home = cache_folder() / f"extension-{hashlib.sha256(content).hexdigest()[:12]}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=home.parent))
        extension.write(fresh / "share" / "extension")
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755)
        try:
            fresh.rename(home)  # atomic: two processes at once end with one whole copy
        except OSError:
            shutil.rmtree(fresh)
    return home


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
