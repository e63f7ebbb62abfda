"""Tables of scores in terminals of any width."""

import pytest

from distill.cli.tables import NAME_WIDTH, fit_to_width, table_width
from distill.evaluation.tables import score_cells
from tests.helpers import made_up_scores


def test_tables_fit_the_terminal():
    result = made_up_scores(student_step=0.05, **{"half of the observers": 1.0})
    cells = score_cells(result)
    wide, left = fit_to_width("predictor", cells, 1000)
    assert not left and list(wide[0]) == ["predictor", "NSS", "CC"]
    value, interval = wide[0]["NSS"].split(" ", 1)
    assert float(value) == pytest.approx(result["predictors"]["student_step"]["nss"], abs=1e-3) and interval[0] == "["
    for width in (200, 60, 50, 40, 30, 10):
        rows, left = fit_to_width("predictor", cells, width)
        needed = table_width(rows, NAME_WIDTH)
        assert needed <= width or len(rows[0]) == 2
        assert set(left) | set(rows[0]) == {"predictor", "NSS", "CC"} and "NSS" in rows[0]
    narrow, left = fit_to_width("predictor", cells, 30)
    assert left == ["CC"]
    low, high = result["intervals"]["student_step"]["nss"]
    half = float(narrow[0]["NSS"].split("±")[1])
    assert half == pytest.approx((high - low) / 2, abs=1e-3)
