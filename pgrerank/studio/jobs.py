"""Work that takes longer than a page: in a thread each, with its progress, to be stopped."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import psycopg

from pgrerank.errors import PgrerankError
from pgrerank.evaluation.result import Evaluation
from pgrerank.evaluation.traces import Progress

__all__ = ["Job", "Jobs", "message_of"]

_KEPT = 30
log = logging.getLogger(__name__)


class _Stopped(Exception):  # noqa: N818 - it is no error
    pass


@dataclass
class Job:
    """A piece of work: what it is doing, how far it is, and what came of it."""

    title: str
    identifier: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: Literal["running", "done", "failed", "stopped"] = "running"
    phase: str = "starting"
    done: int = 0
    total: int = 0
    message: str = ""
    evaluation: Evaluation | None = None
    started_at: float = field(default_factory=time.time)
    is_stopping: bool = False

    @contextlib.contextmanager
    def phase_of(self, title: str) -> Iterator[Progress]:
        """Begin a part of the work; what is yielded is told how far that is."""
        self.phase, self.done, self.total = title, 0, 0
        yield self.report

    def report(self, done: int, total: int) -> None:
        """Say how far the part is, and end here if the job is to stop."""
        self.done, self.total = done, total
        if self.is_stopping:
            raise _Stopped

    def shown(self) -> dict[str, str | int]:
        """What the page asks for while the job runs."""
        return {
            "state": self.state,
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "message": self.message,
        }


class Jobs:
    """The jobs of a run, the latest first; old ones that have ended are forgotten."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def start(self, title: str, work: Callable[[Job], str]) -> Job:
        """Start work in a thread of its own; what it returns is the job's last message."""
        job = Job(title)
        ended = [one for one in self._jobs.values() if one.state != "running"]
        for old in ended[: max(0, len(self._jobs) + 1 - _KEPT)]:
            del self._jobs[old.identifier]
        self._jobs[job.identifier] = job
        threading.Thread(target=_run, args=(job, work), daemon=True).start()
        return job

    def get(self, identifier: str) -> Job | None:
        """The job of that identifier, if it is known."""
        return self._jobs.get(identifier)

    def latest(self) -> list[Job]:
        """All jobs, the latest first."""
        return list(reversed(self._jobs.values()))


def _run(job: Job, work: Callable[[Job], str]) -> None:
    try:
        job.message = work(job)
        job.state = "done"
    except _Stopped:
        job.state, job.message = "stopped", "stopped before its end"
    except (psycopg.Error, PgrerankError) as error:
        job.message = " ".join(message_of(error))
        job.state = "failed"
    except Exception as error:
        log.exception("job %s failed", job.title)
        job.message = f"{type(error).__name__}: {error}"
        job.state = "failed"


def message_of(error: Exception) -> tuple[str, str]:
    """What went wrong, and the remedy where there is one."""
    if isinstance(error, psycopg.Error):
        return error.diag.message_primary or str(error).strip(), error.diag.message_hint or ""
    return str(error), ""
