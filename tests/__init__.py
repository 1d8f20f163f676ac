"""Settings of the test process and of all that it starts, made before anything is imported."""

import os
import shutil
import tempfile

# Two test processes, servers and workers share the processors: OpenMP's helpers, which wait awake
# for the next piece of work, would take them from each other. Training takes a sixth of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A database is some 300 files: made in memory it takes a fifth of the time.
_MEMORY = "/dev/shm"
if (
    "TMPDIR" not in os.environ
    and os.access(_MEMORY, os.W_OK)
    and shutil.disk_usage(_MEMORY).free > 4 << 30
    and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC  # tests load libraries that they compile
):
    os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY
