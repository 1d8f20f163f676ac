"""The native kernel for the embedded server: compiled once, kept in the cache."""

from __future__ import annotations

import logging
from pathlib import Path

from pgrerank import kernel
from pgrerank.embedded.binaries import cache_folder
from pgrerank.errors import KernelError

log = logging.getLogger(__name__)


def kernel_for(programs: Path) -> tuple[dict[str, str], str | None]:
    """Settings by which a server finds the kernel; or none, and the reason for it."""
    pg_config = programs / "pg_config"
    try:
        home = cache_folder() / f"kernel-{kernel.fingerprint(pg_config)}"
        if not home.exists():
            kernel.build_into(pg_config, home)
    except (KernelError, OSError) as error:
        log.info("starting without the native kernel: %s", error)
        return {}, str(error)
    return {
        "extension_control_path": f"$system:{home / 'share'}",
        "dynamic_library_path": f"$libdir:{home / 'lib'}",
    }, None
