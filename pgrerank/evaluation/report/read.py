"""Evaluations that were written to a file, held against their types."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints, is_typeddict

from pgrerank.errors import SettingsError
from pgrerank.evaluation.result import Evaluation

FILE = "evaluation.json"

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file, or in a folder's `evaluation.json`.

    Raises SettingsError where there is none, or something in it is missing or of another type;
    what is in it besides is left alone.
    """
    file = path / FILE if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"{file} does not exist: name a folder or a file that `pgrerank evaluate` wrote"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SettingsError(f"{file} can't be read as JSON: {error}") from error
    if problem := next(_problems(found, Evaluation, ""), None) or _gap(found):
        raise SettingsError(f"{file} is no evaluation: {problem}; make it by `pgrerank evaluate`")
    return cast("Evaluation", found)


def _problems(value: object, wanted: Any, where: str) -> Iterator[str]:
    """What does not fit the type, the first one first."""
    if is_typeddict(wanted):
        yield from _object_problems(value, wanted, where)
    elif (origin := get_origin(wanted)) is list:
        yield from _of_type(value, list, where)
        for place, item in enumerate(value if isinstance(value, list) else []):
            yield from _problems(item, get_args(wanted)[0], f"{where}[{place}]")
    elif origin is dict:
        yield from _of_type(value, dict, where)
        for key, item in (value if isinstance(value, dict) else {}).items():
            yield from _problems(item, get_args(wanted)[1], f"{where}[{key!r}]")
    elif origin is UnionType:
        if value is not None:
            [present] = [kind for kind in get_args(wanted) if kind is not NoneType]
            yield from _problems(value, present, where)
    elif wanted is not object:
        yield from _of_type(value, wanted, where)


def _object_problems(value: object, wanted: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield from _of_type(value, dict, where or "the file")
        return
    for name, kind in get_type_hints(wanted).items():
        place = f"{where}.{name}" if where else name
        if name in value:
            yield from _problems(value[name], kind, place)
        else:
            yield f"{place} is missing"


def _of_type(value: object, wanted: type, where: str) -> Iterator[str]:
    allowed = (int, float) if wanted is float else wanted
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, allowed) or isinstance(value, bool) or not finite:
        yield f"{where} is {_short(value)}, {_NAMES[wanted]} is wanted"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"


def _gap(found: Evaluation) -> str | None:
    """Whether measures or orders are named that have no value."""
    for what in ("measures", "orders", "per_query"):
        if not found[what]:
            return f"{what} is empty, at least one is wanted"
    names = {order["name"] for order in found["orders"]}
    for order in found["orders"]:
        if missing := set(found["measures"]) - set(order["measures"]):
            return f"order {order['name']} has no {min(missing)}"
        if (against := order["against"]) is not None:
            if against not in names:
                return f"order {order['name']} is compared with {against}, which is no order"
            if None in (order["gain"], order["p"], order["better"], order["worse"]):
                return f"order {order['name']} has no gain, p, better or worse against {against}"
    for query in found["per_query"]:
        if missing := names - set(query["quality"]):
            return f"query {query['id']} has no quality for {min(missing)}"
    return None
