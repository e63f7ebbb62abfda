"""Shared fixtures: a tiny corpus, a tiny recipe, the golden cases, the real data where it is available."""

import os
from pathlib import Path

# Before torch loads: threads that spin while they wait make tests slow wherever anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What the user has fetched must not change a test.
os.environ["SALIENCY_DISTILL_CACHE"] = os.devnull

import pytest

from distill.corpora import synthetic
from distill.recipe.files import load_recipe
from distill.recipe.keys import Recipe
from distill.run.progress import Narrator
from tests.helpers import ROOT, SHARED, TINY


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    return load_recipe(None, TINY)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Path:
    """A synthetic corpus on disk; read only."""
    root = tmp_path_factory.mktemp("corpus")
    synthetic.write(root, tiny_recipe.synthetic, Narrator(quiet=True))
    return root


@pytest.fixture
def narrator() -> Narrator:
    return Narrator(quiet=True)


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "golden"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data beside the checkout; tests that need it are skipped without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return SHARED
