"""Reads evaluations from files and checks their types."""

from __future__ import annotations

from pathlib import Path

from pgrerank.errors import SettingsError, extra
from pgrerank.evaluation.result import Evaluation

FILE = "evaluation.json"


def read_evaluation(path: Path) -> Evaluation:
    """Read the evaluation in a file, or in a folder's `evaluation.json`.

    Raises SettingsError where there is none, or something in it is missing or of another type.
    """
    with extra("evaluation", "reading an evaluation"):
        import msgspec
    file = path / FILE if path.is_dir() else path
    try:
        evaluation = msgspec.json.decode(file.read_bytes(), type=Evaluation)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{file} does not exist: name a folder or a file that `pgrerank evaluate` wrote"
        ) from error
    except msgspec.ValidationError as error:
        raise _not_an_evaluation(file, str(error)) from error
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise SettingsError(f"{file} can't be read as JSON: {error}") from error
    if gap := _gap(evaluation):
        raise _not_an_evaluation(file, gap)
    return evaluation


def _not_an_evaluation(file: Path, problem: str) -> SettingsError:
    return SettingsError(f"{file} is no evaluation: {problem}; make it by `pgrerank evaluate`")


def _gap(evaluation: Evaluation) -> str | None:
    """Say which of the measures or orders that are named has no value."""
    for name, values in (
        ("measures", evaluation["measures"]),
        ("orders", evaluation["orders"]),
        ("per_query", evaluation["per_query"]),
    ):
        if not values:
            return f"{name} is empty, at least one is expected"
    names = {order["name"] for order in evaluation["orders"]}
    for order in evaluation["orders"]:
        if missing := set(evaluation["measures"]) - set(order["measures"]):
            return f"order {order['name']} has no {min(missing)}"
        if (against := order["against"]) is not None:
            if against not in names:
                return f"order {order['name']} is compared with {against}, which is no order"
            if None in (order["gain"], order["p"], order["better"], order["worse"]):
                return f"order {order['name']} has no gain, p, better or worse against {against}"
    for query in evaluation["per_query"]:
        if missing := names - set(query["quality"]):
            return f"query {query['id']} has no quality for {min(missing)}"
    return None
