"""A crowd that asks a worker for more than it can do: who is answered, and how late."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from bare_models import CALLS, Load

CROSS_ENCODE = "SELECT pgrerank.cross_encode('reranker', %s, %s, timeout => %s::interval)"
CROWD = 64


def crowd(dsn: str, seeds: range, load: Load, timeout: float, start: Any, taken: Any) -> None:
    """Some of a crowd, in a process: each asks once in `timeout` seconds, which a call may take.

    They begin one after the other. Puts of each call when it ended, how long it took, and whether
    it was answered.
    """
    calls = load.calls(4)

    def ask(seed: int) -> list[tuple[float, float, bool]]:
        seen = []
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT pgrerank.ping_worker()")  # which connects
            start.wait()
            opened = time.perf_counter()
            time.sleep(timeout * seed / CROWD)
            for call in calls[seed % CALLS :][:1] * rounds_of(load, timeout):
                begun = time.perf_counter()
                try:
                    connection.execute(CROSS_ENCODE, (*call, f"{timeout} s")).fetchone()
                    answered = True
                except psycopg.Error:
                    answered = False
                ended = time.perf_counter()
                seen.append((ended - opened, ended - begun, answered))
                time.sleep(max(0.0, timeout - (ended - begun)))
        return seen

    with ThreadPoolExecutor(len(seeds)) as pool:
        taken.put([one for seen in pool.map(ask, seeds) for one in seen])


def rounds_of(load: Load, timeout: float) -> int:
    """How often each of a crowd asks: for as long as a measurement takes, and once before."""
    return 1 + max(2, round(load.seconds / timeout))


def overload(dsn: str, load: Load, peak: float) -> dict[str, float]:
    """What becomes of 64 clients that together ask for three times the peak, in pairs a second.

    `late`: by how many milliseconds an answer or a refusal came after its deadline, at worst;
    `answered`: the share of calls. Pairs a second are counted while all of them ask.
    """
    timeout = CROWD * load.documents / (3 * peak)
    context = multiprocessing.get_context("spawn")
    start, taken = context.Barrier(CROWD), context.Queue()
    each = max(4, CROWD // (os.cpu_count() or 1))
    processes = [
        context.Process(
            target=crowd,
            args=(dsn, range(CROWD)[first : first + each], load, timeout, start, taken),
            daemon=True,
        )
        for first in range(0, CROWD, each)
    ]
    for process in processes:
        process.start()
    seen = [one for _ in processes for one in taken.get(timeout=600)]
    for process in processes:
        process.join()
    rounds = rounds_of(load, timeout)
    counted = [one for one in seen if timeout <= one[0] < rounds * timeout]
    answered = sum(answered for *_, answered in counted)
    served = load.documents * answered / ((rounds - 1) * timeout)
    return {
        "clients": CROWD,
        "timeout": 1000 * timeout,
        "late": 1000 * max(0.0, max(spent for _, spent, _ in seen) - timeout),
        "answered": answered / max(1, len(counted)),
        "pairs_a_second": served,
        "over_peak": served / peak,
    }
