"""A few damaged files of every kind; `benchmarks/damage.py` reads thousands in the same way."""

import pytest

from tests.damage import seeds
from tests.damage.pool import Pool

SEED, EACH = 1, 6


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    seeds.write(folder / "seeds")
    with Pool(folder / "seeds", folder / "scratch") as pool:
        yield pool


@pytest.mark.parametrize("kind", seeds.DAMAGED)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(pool, kind):
    outcomes = [pool.judge(kind, -1, SEED, sound=True), *(pool.judge(kind, number, SEED) for number in range(EACH))]
    assert [(o.number, o.fault) for o in outcomes if o.fault] == []
