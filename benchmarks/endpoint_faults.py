"""Whether an endpoint that lies, stalls or breaks ever makes a wrong order, or holds up a call.

    python benchmarks/endpoint_faults.py [--calls 40] [--timeout 500]

For each fault so many calls of a cross-encoder at a provider of our own, eight at a time, with a
timeout in milliseconds; one request in three is answered by the truth. Each call has a client of
its own, so that what is measured is a call and not the breaker, which would keep most from being
sent. Prints what became of them; the last line is one JSON object with counts of all: `calls`,
`right`, `refused` (an error, so that a fallback or the stage before answers), `wrong`, and `late`,
by more than 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pgrerank.errors import PgrerankError
from pgrerank.models import ModelSpec, load_reranker
from pgrerank.terminal import print_rows, work_progress
from tests.helpers.provider import Provider, logit, provider
from tests.test_endpoints import LIES, QUERY, TEXTS

AT_ONCE = 8
TRUTH = 1 / 3
LATE = 0.1
TOLERANCE = 1e-3


async def call(server: Provider, timeout: float) -> tuple[str, float]:
    """What became of one call, and how long it took in seconds."""
    options = {"dialect": "cohere"}
    url = server.url("cohere/rerank")
    model = load_reranker(ModelSpec("m", "cross_encoder", "http", url, options=options))
    begun = time.monotonic()
    try:
        scores = await model.steps().ask([(QUERY, text) for text in TEXTS], timeout)
    except PgrerankError:
        return "refused", time.monotonic() - begun
    finally:
        await model.close()
    took = time.monotonic() - begun
    pairs = zip(scores, (logit(QUERY, text) for text in TEXTS), strict=True)
    return "right" if all(abs(a - b) < TOLERANCE for a, b in pairs) else "wrong", took


async def calls(server: Provider, count: int, timeout: float) -> tuple[Counter[str], float]:
    """Counts of what became of calls, and the longest time that one took."""
    found: Counter[str] = Counter()
    longest = 0.0
    for begin in range(0, count, AT_ONCE):
        some = [call(server, timeout) for _ in range(min(AT_ONCE, count - begin))]
        for became, took in await asyncio.gather(*some):
            found[became] += 1
            found["late"] += took > timeout + LATE
            longest = max(longest, took)
    return found, longest


def main() -> None:
    """Try each fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--timeout", type=float, default=500, help="milliseconds")
    arguments = parser.parse_args()
    chance = random.Random(1)
    total: Counter[str] = Counter()
    rows = []
    with provider() as server, work_progress("asking", "faults") as progress:
        for number, (name, lie) in enumerate(LIES.items(), 1):
            server.lies = [
                None if chance.random() < TRUTH else lie for _ in range(3 * arguments.calls)
            ]
            server.always = lie
            found, longest = asyncio.run(calls(server, arguments.calls, arguments.timeout / 1000))
            total += found
            figures = [found[key] for key in ("right", "refused", "wrong", "late")]
            rows.append([name, *figures, f"{1000 * longest:.0f}"])
            progress(number, len(LIES))
    print_rows(["fault", "right", "refused", "wrong", "late", "longest ms"], rows, as_json=False)
    done = {"calls": len(LIES) * arguments.calls, "timeout_ms": arguments.timeout}
    done |= {key: total[key] for key in ("right", "refused", "wrong", "late")}
    print(json.dumps(done))


if __name__ == "__main__":
    main()
