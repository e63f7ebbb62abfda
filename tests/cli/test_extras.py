"""What each extra is enough for: verbs in a process that cannot import what the other extras install."""

import subprocess
import sys

import pytest

from distill.corpora.video import write_video
from distill.run.extras import EXTRAS
from tests.helpers import moving_blobs, step_model

BLOCKED_RUN = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from distill.cli.exits import run_command
sys.exit(run_command({arguments!r}))
"""


def without(modules, *arguments):
    """`distill ARGUMENTS` where these modules are not installed."""
    script = BLOCKED_RUN.format(blocked=set(modules), arguments=[str(argument) for argument in arguments])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A clip and a step file."""
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "clip.mp4", 25.0, (48, 80), next(moving_blobs([0])))
    return folder / "clip.mp4", step_model(folder / "step.onnx")


@pytest.mark.parametrize("out", ["o.mp4", "o.npy", "maps"])
def test_predict_needs_only_its_extra(files, tmp_path, out):
    clip, model = files
    result = without(EXTRAS["train"] + EXTRAS["encode"], "predict", clip, "--model", model, "--out", tmp_path / out)
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / out}\n"), result.stderr


def test_encode_needs_only_its_extra(files, tmp_path):
    clip, model = files
    result = without(EXTRAS["train"], "encode", clip, tmp_path / "o.mp4", "--model", model)
    assert result.returncode == 0 and (tmp_path / "o.mp4").stat().st_size > 0, result.stderr


def test_bd_needs_only_the_extra_of_encode(files):
    clip, model = files
    result = without(EXTRAS["train"], "bd", clip, "--model", model, "--crf", "20,40", "--preset", "ultrafast")
    assert result.returncode == 0 and "centred Gaussian" in result.stdout, result.stderr


def test_without_its_extra_a_verb_names_it(files, tmp_path):
    clip, model = files
    everything = [module for modules in EXTRAS.values() for module in modules]
    for arguments, extra in (
        (("predict", clip, "--model", model, "--out", tmp_path / "o.mp4"), "predict"),
        (("encode", clip, tmp_path / "o.mp4", "--model", model), "encode"),
        (("bd", clip, "--model", model), "encode"),
    ):
        result = without(everything, *arguments)
        assert result.returncode == 2 and result.stderr.endswith(f"pip install 'saliency-distill[{extra}]'\n"), result.stderr
