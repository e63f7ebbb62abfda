"""Calibration, on the procedural corpus: teachers that see the truth, and give it too flat, too wide, or unchanged."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from distill.corpora import Clip, Corpus, density_map, fixation_map, open_corpus
from distill.labels import calibrate as module
from distill.labels import calibration as model
from distill.labels.calibrate import Fit, calibrate, calibrate_run, save
from distill.labels.calibration import IDENTITY, Calibrated, Calibration, blurred, load
from distill.run.errors import Interrupted, UsageError
from distill.run.files import write_json
from distill.run.progress import Narrator


@pytest.fixture(scope="module")
def clips(tiny_root: Path) -> list[Clip]:
    return list(open_corpus("dhf1k", tiny_root).clips)


def knowing(distort: Callable[[Tensor], Tensor], noise: float = 0.1) -> Callable[[Sequence[Clip]], Iterator[Tensor]]:
    """A teacher that sees the density itself, with some noise, and returns its logits through `distort`."""

    def labels(clips: Sequence[Clip]) -> Iterator[Tensor]:
        for number, clip in enumerate(clips):
            rng = np.random.default_rng(number)
            maps = []
            for index in range(clip.frames):
                fixations = fixation_map(clip, index)
                assert fixations is not None
                density = cv2.resize(density_map(clip, index, fixations), (24, 16), interpolation=cv2.INTER_AREA)
                wrong = cv2.GaussianBlur(rng.random((16, 24), np.float32), (0, 0), 1.5)
                wrong = (wrong - wrong.min()) / np.ptp(wrong)
                maps.append(np.clip(0.9 * density / max(density.max(), 1e-6) + noise * wrong, 1e-5, 0.99))
            yield distort(torch.from_numpy(np.stack(maps)).logit())

    return labels


@pytest.fixture(scope="module")
def flat(clips: list[Clip]) -> Fit:
    return calibrate(clips, knowing(lambda logits: logits / 4 + 1), Narrator(quiet=True), frames=4)


# --- what it does to logits -------------------------------------------------------------------------------------------


def test_temperature_and_bias() -> None:
    logits = torch.tensor([[[-2.0, 0.0, 30.0]]])
    assert Calibration(2.0, 0.5).apply(logits).tolist() == [[[-0.5, 0.5, pytest.approx(13.8155 / 2 + 0.5, abs=1e-3)]]]
    assert IDENTITY.apply(logits.half()).tolist() == logits.tolist()


def test_blur_spreads_and_sharpening_undoes_some_of_it() -> None:
    maps = torch.zeros(1, 31, 41)
    maps[0, 15, 20] = 10.0
    soft = blurred(maps, 0.05)
    columns = torch.arange(41.0) - 20
    profile = soft[0, 15] / soft[0, 15].sum()
    assert float((profile * columns.square()).sum().sqrt()) == pytest.approx(0.05 * 41, rel=0.02), "its sigma"
    assert float(soft.sum()) == pytest.approx(10.0, rel=1e-4)
    sharper = blurred(soft, -0.05)
    assert float(soft.max()) < float(sharper.max()) < 10.0
    torch.testing.assert_close(sharper, 2 * soft - blurred(soft, 0.05))
    level = torch.full((2, 5, 7), 3.0)
    torch.testing.assert_close(blurred(level, 0.2), level)
    torch.testing.assert_close(blurred(level, -0.2), level)
    assert blurred(maps, 0.0) is maps


def test_long_clips_are_worked_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 6, 8, generator=torch.Generator().manual_seed(0))
    whole = Calibration(0.7, 0.1, 0.1).apply(logits)
    monkeypatch.setattr(model, "CHUNK", 2)
    torch.testing.assert_close(Calibration(0.7, 0.1, 0.1).apply(logits), whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0}, "temperature is 0.0; it must be a number above 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"bias": float("inf")}, "bias"),
        ({"blur": 0.5}, r"blur is 0.5; it must lie in \[-0.2, 0.2\]"),
        ({"blurr": 0.1}, "not a calibration"),
        ("12", "not a calibration"),
        (None, "not a calibration"),
    ],
)
def test_invalid_calibrations_are_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration.from_dict(values)


def test_a_calibration_survives_json() -> None:
    calibration = Calibration(0.53, -1.9, -0.06)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_too_flat_is_made_sharp_on_clips_held_out(flat: Fit, clips: list[Clip]) -> None:
    assert flat.helps and flat.held_out and len(flat.folds) == 4
    assert flat.calibration == flat.fitted
    assert flat.calibration.temperature < 0.5
    assert flat.calibration.bias < -1
    for name in ("nss", "cc", "sim"):
        assert flat.after[name] > flat.before[name] + 0.05
    assert flat.after["kld"] < flat.before["kld"] - 0.2
    assert flat.clips.keys() == {clip.id for clip in clips}
    for name in ("before", "after"):
        means = {key: np.mean([clip[name][key] for clip in flat.clips.values()]) for key in module.METRICS}
        assert means == pytest.approx(getattr(flat, name))
    assert all(1 <= clip["frames"] <= 4 for clip in flat.clips.values())
    json.dumps(flat.to_dict())


def test_the_same_input_gives_the_same_fit(flat: Fit, clips: list[Clip]) -> None:
    assert calibrate(clips, knowing(lambda logits: logits / 4 + 1), Narrator(quiet=True), frames=4) == flat


def test_a_teacher_that_is_too_wide_is_sharpened(clips: list[Clip]) -> None:
    fit = calibrate(clips, knowing(lambda logits: blurred(logits, 0.06)), Narrator(quiet=True), frames=4)
    assert fit.calibration.blur < 0
    assert fit.after["cc"] > fit.before["cc"]


def test_a_teacher_that_is_right_is_left_alone(clips: list[Clip]) -> None:
    fit = calibrate(clips, knowing(lambda logits: logits, noise=0.0), Narrator(quiet=True), frames=4)
    assert abs(fit.fitted.blur) <= 0.01 and 0.9 < fit.fitted.temperature < 1.1
    assert abs(fit.after["cc"] - fit.before["cc"]) < 0.01
    assert abs(fit.after["kld"] - fit.before["kld"]) < 0.05


def test_an_overfitted_calibration_is_not_used(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = Calibration(5.0)
    monkeypatch.setattr(module, "fit_parts", lambda samples, parts: [fitted] * (1 + len(parts)))
    fit = calibrate(clips, knowing(lambda logits: logits), Narrator(quiet=True), frames=2)
    assert not fit.helps
    assert (fit.fitted, fit.calibration) == (fitted, IDENTITY)


def test_groups_are_held_out_whole_and_one_group_not_at_all(clips: list[Clip]) -> None:
    grouped = [replace(clip, group="ab"[number % 2]) for number, clip in enumerate(clips)]
    fit = calibrate(grouped, knowing(lambda logits: logits / 2), Narrator(quiet=True), frames=2)
    assert fit.held_out and len(fit.folds) == 2
    assert module.assign_folds(grouped, 4) == [module.assign_folds(grouped, 4)[n % 2] for n in range(len(grouped))]
    alone = [replace(clip, group="a") for clip in clips]
    fit = calibrate(alone, knowing(lambda logits: logits / 2), Narrator(quiet=True), frames=2)
    assert not fit.held_out
    assert fit.folds == ()


def test_clips_without_annotation(clips: list[Clip]) -> None:
    labels, quiet = knowing(lambda logits: logits / 2), Narrator(quiet=True)
    bare = [replace(clip, annotated_frames=0) for clip in clips]
    with pytest.raises(UsageError, match="none of these clips is annotated"):
        calibrate(bare, labels, quiet)
    assert calibrate([clips[0], *bare[1:]], labels, quiet, frames=2).clips.keys() == {clips[0].id}


def test_it_can_be_stopped(clips: list[Clip]) -> None:
    with pytest.raises(Interrupted, match=f"calibrate, after 1 of {len(clips)} clips"):
        calibrate(clips, knowing(lambda logits: logits), Narrator(quiet=True, stop=lambda: True))


# --- its use and its file ---------------------------------------------------------------------------------------------


class Constant:
    name = "constant"

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(frames)

    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        return torch.full((len(inputs), 2, 3), fps)

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        return self.infer(self.prepare(frames), fps)

    def fingerprint(self) -> str:
        return "a" * 64


def test_a_calibrated_teacher_is_another_teacher() -> None:
    teacher = Calibrated(Constant(), Calibration(2.0, 1.0))
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    assert teacher.infer(teacher.prepare(frames), 6.0).tolist() == teacher.logits(frames, 6.0).tolist()
    assert torch.equal(teacher.logits(frames, 6.0), torch.full((4, 2, 3), 4.0))
    prints = {Calibrated(Constant(), Calibration(*values)).fingerprint() for values in ((2.0, 1.0), (2.0, 1.1), (2.1, 1.0))}
    assert len(prints) == 3 and Constant().fingerprint() not in prints
    assert Calibrated(Constant(), IDENTITY).fingerprint() == Constant().fingerprint()


def test_a_file_of_one_teacher_is_not_used_for_another(flat: Fit, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    save(path, flat, {"name": "constant", "fingerprint": "a" * 64, "license": "MIT"}, "dhf1k:tiny")
    assert load(path, "a" * 64) == flat.calibration
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["teacher"] == {"name": "constant", "fingerprint": "a" * 64}
    assert written["report"]["after"] == flat.after
    with pytest.raises(UsageError, match=r"was fitted to teacher constant .a{12}., this one is b{12}; calibrate again"):
        load(path, "b" * 64)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"calibration\.json is not a calibration"):
        load(path, "a" * 64)
    path.write_text('{"teacher": {"name": "x", "fingerprint": "a"}, "calibration": {"blur": 9}}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"is not a calibration .*blur is 9"):
        load(path, "a")


def test_the_file_of_a_run_says_which_folder_it_was_fitted_to(
    flat: Fit, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels").mkdir()
    teacher = {"name": "constant", "fingerprint": "a" * 64}
    write_json(tmp_path / "labels" / "store.json", {"schema": 1, "teacher": teacher})
    corpus = Corpus("dhf1k", "MIT", tuple(clips), (clips[0].id,), roots={"dhf1k": "/data/hevc-gaze"})
    write_json(tmp_path / "corpus.json", corpus.to_dict())
    monkeypatch.setattr(module, "calibrate", lambda chosen, *_: flat if [c.id for c in chosen] == [clips[0].id] else None)
    assert calibrate_run(tmp_path, tmp_path / "c.json", Narrator(quiet=True)) == flat
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["corpus"] == "dhf1k:hevc-gaze"
