"""Arrays of numbers as Postgres takes them, without a Python object for each number."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import adapt, pq

REAL, REAL_ARRAY = 700, 1021
"""Object identifiers of the types, which are the same in every database."""


class Reals(NamedTuple):
    """A parameter of type real[]."""

    values: NDArray[np.floating]


class RealsDumper(adapt.Dumper):
    """Writes the binary form of an array (array_send in Postgres's arrayfuncs.c): a header, then
    for each number its size and itself, all big-endian.
    """

    format = pq.Format.BINARY
    oid = REAL_ARRAY

    def dump(self, obj: Reals) -> bytes:
        """The array's bytes; one without numbers has no dimensions."""
        count = len(obj.values)
        if not count:
            return struct.pack("!iiI", 0, 0, REAL)
        body = np.empty(count, [("size", ">i4"), ("value", ">f4")])
        body["size"], body["value"] = 4, obj.values
        return struct.pack("!iiIii", 1, 0, REAL, count, 1) + body.tobytes()
