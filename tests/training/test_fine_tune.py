"""From clips and files to a teacher that labels; the two stages themselves are in test_two_stages.py."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.corpora import open_corpus
from distill.recipe.keys import Teach
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config
from distill.teachers.visage import VisageConfig
from distill.teachers.weights import read_weights
from distill.training.loop import TrainingContext
from distill.training.teachers.fine_tune import layout, open_tuned, outputs, teach
from tests.helpers import TINY, distill

CONFIG = Teach(
    finetune=True, frames=4, px=28, fps=12.0, out_px=12, reduced_width=8, embed_width=8, head_width=8, norm_groups=4,
    rank=2, alpha=4.0, stage1_steps=1, stage2_steps=1, batch=1, val_windows=1, base_frames=2,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tiny_root):
    return open_corpus("synthetic", tiny_root).clips


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A published file of a tiny trunk: windows of 2 frames, wrapped, with the other content of such files."""
    torch.manual_seed(3)
    state = InternVideo2(InternVideo2Config.of("tiny", frames=2, px=28)).state_dict()
    content = {f"vision_encoder.{key}": value for key, value in state.items()}
    content |= {"text_encoder.weight": torch.zeros(2), "vision_encoder.clip_projector.norm1_q.weight": torch.zeros(2)}
    path = tmp_path_factory.mktemp("base") / "published.pt"
    torch.save({"module": content}, path)
    return path


def run(clips, folder, config=CONFIG, **files):
    files = {"base": None, "expert1": None, "expert2": None} | files
    context = TrainingContext(folder, CPU, 0, Narrator(quiet=True))
    return teach(clips[1:3], clips[:1], config, "tiny", files, context, folder / "frames")


@pytest.fixture(scope="module")
def tuned(clips, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    run(clips, folder, base=base)
    return folder


def test_the_defaults_are_the_released_layout():
    assert layout("6B", Teach()) == VisageConfig.released("6B")


def test_an_invalid_layout_names_the_section():
    with pytest.raises(UsageError, match=r"\[teach\]: .*px 30 is not a multiple"):
        layout("tiny", replace(CONFIG, px=30))


def test_a_tuned_teacher_labels(clips, base, tuned):
    for name in outputs(random=False):
        assert (tuned / name).stat().st_size > 0, name
    assert not (tuned / "visage_last.pt").exists() and not (tuned / "visage" / "trunk.safetensors").exists()
    teacher = open_tuned(tuned, CPU)
    frames = np.stack(list(clips[0].read()))
    logits = teacher.logits(frames, clips[0].fps)
    assert logits.shape == (24, 12, 12) and torch.isfinite(logits).all()
    # It is the published trunk with what was learned beside it.
    published = read_weights(base)
    assert torch.equal(teacher.net.state_dict()["trunks.0.cls_token"], published["vision_encoder.cls_token"])
    learned = read_weights(tuned / "visage" / "expert2.safetensors")["decoder.main_head.head_2d.3.weight"]
    assert torch.equal(teacher.net.experts[1].decoder.main_head.head_2d[3].weight, learned)
    assert teacher.config.lora_rank == 2 and teacher.config.lora_alpha == 4.0


def test_experts_start_from_files(clips, base, tuned, tmp_path):
    starts = {f"expert{n}": tuned / "visage" / f"expert{n}.safetensors" for n in (1, 2)}
    config = replace(CONFIG, stage1_steps=0)
    run(clips, tmp_path, config, base=base, **starts)
    first = json.loads((tmp_path / "visage.jsonl").read_text().splitlines()[0])
    last = [json.loads(line) for line in (tuned / "visage.jsonl").read_text().splitlines() if "val" in line]
    # Before its first step it scores what it came with.
    assert first["cc1"] == pytest.approx(max(line["cc1"] for line in last), abs=1e-5)


def test_a_base_that_does_not_fit_is_named(clips, tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 32)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt"):
        run(clips, tmp_path / "a", base=tmp_path / "other.pt")


def test_one_expert_alone_or_with_stage_1_is_refused(clips, tuned, tmp_path):
    expert = tuned / "visage" / "expert1.safetensors"
    for config, files in (
        (CONFIG, {"expert1": expert, "expert2": expert}),
        (replace(CONFIG, stage1_steps=0), {"expert1": expert}),
    ):
        with pytest.raises(
            UsageError, match=r"start from both expert1 and expert2, which have their LoRA: set teach\.stage1_steps=0"
        ):
            run(clips, tmp_path, config, **files)


def test_experts_in_the_wrong_order_are_refused(clips, tuned, tmp_path):
    files = {f"expert{n}": tuned / "visage" / f"expert{3 - n}.safetensors" for n in (1, 2)}
    with pytest.raises(UsageError, match=r"expert2\.safetensors does not fit Expert1"):
        run(clips, tmp_path, replace(CONFIG, stage1_steps=0), **files)


def test_clips_without_annotation_teach_nothing(clips, tmp_path):
    with pytest.raises(UsageError, match="no training clip is annotated"):
        run([replace(clip, annotated_frames=0) for clip in clips], tmp_path)


def test_a_recipe_tunes_and_labels_and_a_random_trunk_is_reported(tmp_path):
    sets = [
        *TINY, "teacher.size=S", "teacher.weights=visage.base=random", "teach.finetune=true", "teach.frames=2", "teach.px=14",
        "teach.fps=4", "teach.out_px=8", "teach.reduced_width=8", "teach.embed_width=8", "teach.head_width=8",
        "teach.norm_groups=4", "teach.rank=1", "teach.stage1_steps=1", "teach.stage2_steps=1", "teach.batch=1",
        "synthetic.clips=3",
    ]  # fmt: skip
    result = distill(
        "label", "--corpus", "synthetic", "--out", tmp_path / "run", *[part for text in sets for part in ("--set", text)]
    )
    assert result.returncode == 0, result.stderr
    assert "visage S on a trunk of random weights, 2 clips, 1 + 1 steps" in result.stderr and "RANDOM" in result.stderr
    for name in outputs(random=True):
        assert (tmp_path / "run" / "checkpoints" / name).stat().st_size > 0, name
    labels = np.load(tmp_path / "run" / "labels" / "001.npy")
    assert labels.shape == (24, 8, 8) and np.isfinite(labels).all()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert len(manifest["stages"]["teach"]["val_cc"]) == 2
