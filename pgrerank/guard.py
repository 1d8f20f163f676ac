"""Parent-death handling: a small process that stops another when this one is gone."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

# It waits for the end of its standard input, a pipe whose other end only the parent holds: the
# kernel closes it whatever the parent dies of. A word on the pipe means that all is done already.
_SCRIPT = """
read word && exit 0
kill -INT {pid} 2>/dev/null
n=0
while kill -0 {pid} 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
kill -QUIT {pid} 2>/dev/null
rm -rf {folders}
"""


class Guard:
    """Interrupts process `pid` and removes `folders` once this process is dead, however it died."""

    def __init__(self, pid: int, folders: Sequence[Path] = ()) -> None:
        quoted = " ".join(shlex.quote(str(folder)) for folder in folders)
        self._process = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _SCRIPT.format(pid=pid, folders=quoted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        # A forked child would hold the pipe open beyond its parent's death.
        os.register_at_fork(after_in_child=self._pipe.close)

    def dismiss(self) -> None:
        """Stop guarding: the process is stopped and cleared away."""
        if not self._pipe.closed:
            try:
                self._pipe.write(b"done\n")
                self._pipe.close()
            except BrokenPipeError:
                pass
        self._process.wait()
