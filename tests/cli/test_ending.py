"""The end of a run: what it says of clips that were held out, and of clips that were not."""

import pytest

from distill.cli import ending
from distill.corpora.clips import Clip, Corpus
from distill.recipe.keys import Recipe
from distill.run.directory import RunDir
from distill.run.files import write_json
from tests.helpers import made_up_scores


@pytest.mark.parametrize("held_out", [True, False])
def test_only_what_was_held_out_is_called_so_and_offered(tmp_path, held_out):
    run = RunDir(tmp_path / "a run", Recipe())
    run.manifest = {"stages": {"report": {"speed": {"ms": {"640x360": 2.5}}}}}
    (video := tmp_path / "v 1.mp4").touch()
    clips = tuple(Clip(id=name, video=str(video)) for name in ("a", "b"))
    corpus = Corpus("dhf1k", "CC BY 4.0", clips, train=("a",), val=("b",), held_out=held_out)
    write_json(run / "corpus.json", corpus.to_dict())
    parity = {"image_max_abs": 1e-7, "step_max_abs": 2e-6, "zero_state_max_abs": 3e-6, "tolerance": 2e-5}
    write_json(run / "export" / "student.parity.json", parity)

    said, (report, following) = ending.lines(run, made_up_scores(step=0.5, image=0.2))

    assert said[0] == "Beats its own image file." and said[1].startswith("NSS ")
    assert said[1].endswith("student; 12 held-out clips" if held_out else "student; 12 clips, not held out")
    assert said[3] == "gate passed; parity with PyTorch 2.0e-06 (at most 2e-05); ms a frame, on one thread: 2.5 at 640x360"
    assert report == f"report: {tmp_path}/a run/report.html"
    model = run / "export" / "student_step.onnx"
    assert following == (
        f"next: distill predict '{video}' --model '{model}'" if held_out else f"next: distill eval '{run.path}'"
    )
