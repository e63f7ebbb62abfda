"""Mutated files: never a traceback or a hang, never weaker than the downstream, and what `--load` accepts loads and runs.

A few hundred files in child processes; `benchmarks/gate_fuzz.py` judges tens of thousands in the same way.
"""

from collections import Counter
from collections.abc import Iterator

import onnx
import onnxruntime
import pytest

from distill.opallowlist import check
from tests.opallowlist import fuzzing
from tests.opallowlist.fuzzing import seeds, wire
from tests.opallowlist.fuzzing.oracle import Judge, faults

SEED = 1
EACH = 9
"""Files of each kind of mutation."""
DAMAGED = 200


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Iterator[Judge]:
    pool = tmp_path_factory.mktemp("seeds") / "pool.zip"
    seeds.save_pool(seeds.pool(public_too=False), pool)
    judge = Judge(pool)
    yield judge
    judge.close()


@pytest.mark.parametrize("name", sorted(seeds.small()))
def test_the_seeds_are_models_that_load(name):
    data = seeds.small()[name]
    assert check(data).ok
    onnx.checker.check_model(data, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    onnxruntime.InferenceSession(data, options)


def test_the_walker_of_the_wire_format_gives_back_what_it_reads():
    for name, data in seeds.pool(public_too=False):
        assert wire.encode(wire.parse(data)) == data, name


def test_a_case_is_always_the_same_file():
    pool = seeds.pool(public_too=False)
    for level in ("structured", "bytes"):
        for number in range(len(fuzzing.KINDS)):
            assert fuzzing.case(level, number, SEED, pool) == fuzzing.case(level, number, SEED, pool)


def test_files_mutated_by_structure(judge):
    rules: Counter[str] = Counter()
    loaded: Counter[str] = Counter()
    for number in range(EACH * len(fuzzing.KINDS)):
        result = judge.ask("structured", number, SEED)
        assert not faults(result), (number, result)
        rules.update(result.get("rules", []))
        loaded[result["kind"]] += result["accepted"] and "load" not in result
    assert len(rules) > 12 and {"malformed", "op", "external-data", "local-function", "opset"} <= set(rules)
    assert all(loaded[kind] == EACH for kind in fuzzing.PRESERVING)


def test_damaged_files(judge):
    accepted = 0
    for number in range(DAMAGED):
        result = judge.ask("bytes", number, SEED)
        assert not faults(result), (number, result)
        accepted += result["accepted"]
    assert accepted > 5
