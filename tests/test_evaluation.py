from __future__ import annotations

import math

import pytest

from pgrerank.errors import SettingsError
from pgrerank.evaluation import measure

QRELS = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}


def test_measures_are_means_over_all_judged_queries():
    measures = ["nDCG@10", "RR@10", "R@100"]
    assert measure(QRELS, {"q1": ["a", "b"], "q2": ["c"]}, measures) == dict.fromkeys(measures, 1.0)
    worse = measure(QRELS, {"q1": ["x", "b", "a"]}, measures)
    gain = (1 / math.log2(3) + 2 / math.log2(4)) / (2 + 1 / math.log2(3))
    assert worse == pytest.approx({"nDCG@10": gain / 2, "RR@10": 1 / 4, "R@100": 1 / 2}, abs=1e-6)


def test_an_unknown_measure_is_named():
    with pytest.raises(SettingsError, match="gain@ten"):
        measure(QRELS, {}, ["gain@ten"])
