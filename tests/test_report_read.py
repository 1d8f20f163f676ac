"""Evaluations read back: what is malformed is named by its place."""

from __future__ import annotations

import json

import pytest

from pgrerank.errors import SettingsError
from pgrerank.evaluation.report import read_evaluation
from tests.helpers.evaluations import evaluation


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.pop("orders"), "Object missing required field `orders`"),
        (
            lambda e: e["orders"][1]["total_ms"].pop("p50"),
            "Object missing required field `p50` - at `$.orders[1].total_ms`",
        ),
        (
            lambda e: e["orders"][0].update(gain="x"),
            "Expected `float | null`, got `str` - at `$.orders[0].gain`",
        ),
        (lambda e: e.update(generation=True), "Expected `int`, got `bool` - at `$.generation`"),
        (lambda e: e.update(warnings="none"), "Expected `array`, got `str` - at `$.warnings`"),
        (
            lambda e: e["tuning"]["depth"].update(candidates=[1]),
            "Expected `object`, got `int` - at `$.tuning.depth[...][0]`",
        ),
        (lambda e: e["per_query"][2]["quality"].popitem(), "query q3 has no quality for + cross"),
        (lambda e: e["orders"][1].update(against="x"), "order dense is compared with x,"),
        (lambda e: e["orders"][1]["measures"].pop("RR@10"), "order dense has no RR@10"),
        (lambda e: e["orders"][2].update(p=None), "order + cross-encoder has no gain, p, better"),
        (lambda e: e.update(orders=[]), "orders is empty, at least one is expected"),
        (lambda e: e.update(per_query=[]), "per_query is empty, at least one is expected"),
    ],
)
def test_a_malformed_evaluation_is_refused_by_the_place(tmp_path, spoil, message):
    found = evaluation()
    spoil(found)
    (tmp_path / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        read_evaluation(tmp_path)
    assert f"evaluation.json is no evaluation: {message}" in str(raised.value)


def test_what_is_no_json_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"evaluation\.json does not exist"):
        read_evaluation(tmp_path)
    for malformed in ("{", json.dumps(evaluation(made_at=float("nan")))):
        (tmp_path / "evaluation.json").write_text(malformed, encoding="utf-8")
        with pytest.raises(SettingsError, match="can't be read as JSON"):
            read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SettingsError, match="Expected `object`, got `array`"):
        read_evaluation(tmp_path)
