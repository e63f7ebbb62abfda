"""Small things that many tests need: a tiny corpus, a tiny recipe, the golden cases, the real data where it is at hand."""

import os
from pathlib import Path

# Before torch loads: threads that spin while they wait make tests slow wherever anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from distill.corpora import synthetic
from distill.recipe.files import load_recipe
from distill.recipe.keys import Recipe
from distill.run.progress import Narrator

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# A whole run in seconds.
TINY = (
    "student.height=32", "student.width=64", "student.widths=[8,8,12,16]", "student.state_channels=8",
    "synthetic.clips=5", "synthetic.frames=24", "synthetic.height=64", "synthetic.width=96", "synthetic.observers=6",
    "teacher.steps=4", "teacher.batch=1", "train.steps=12", "train.frames=8", "train.batch=2", "train.window=4", "train.windows=2",
    "train.validate_every=4", "train.checkpoint_every=4", "report.clips=1",
)  # fmt: skip


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
    """The folder with real data beside the checkout; tests that want it are skipped where it is not."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return SHARED
