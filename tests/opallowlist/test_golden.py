"""Every hand-made case with a recorded verdict: the downstream's, the strict gate's, the student contract's."""

import csv
import os
from pathlib import Path

import pytest

from distill.opallowlist import check

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden")) / "scanner"

with (GOLDEN / "verdicts.csv").open(newline="") as file:
    CASES = list(csv.DictReader(file))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_the_strict_gate_matches_the_record(case):
    report = check(GOLDEN / case["file"])
    assert ("accept" if report.ok else "reject") == case["strict_gate"], str(report.violations)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_never_weaker_than_the_downstream(case, scanner):
    data = (GOLDEN / case["file"]).read_bytes()
    assert (scanner(data) == "") == (case["downstream_scanner"] == "accept"), "the scanner of these tests is wrong"
    report = check(data)
    assert not (report.ok and case["downstream_scanner"] == "reject")
    if case["first_bad_op"] and report.facts.nodes is not None:
        assert case["first_bad_op"] in {violation.op_type for violation in report.violations}


@pytest.mark.parametrize("case", [c for c in CASES if c["student_contract"]], ids=lambda case: case["file"])
def test_the_student_contract_matches_the_record(case):
    accepted = any(check(GOLDEN / case["file"], contract=name).ok for name in ("saliency-image", "saliency-step"))
    assert ("accept" if accepted else "reject") == case["student_contract"]


def test_there_are_cases():
    assert len(CASES) >= 38
