import shlex
import shutil

import cv2
import numpy as np
import pytest

from distill.corpora import SIGMA, density_map, fixation_map, open_corpus, split, synthetic
from distill.corpora.clips import leaving_out
from distill.corpora.video import probe
from distill.recipe import keys
from distill.recipe.files import load_recipe
from distill.run.errors import UsageError
from tests.helpers import make_clip


def test_a_clip_is_read_in_order_with_its_annotation(tmp_path):
    clip = open_corpus("dhf1k", make_clip(tmp_path)).clips[0]
    assert (clip.frames, clip.height, clip.width, clip.fps, clip.annotated_frames) == (6, 48, 80, 25.0, 6)
    frames = list(clip.read())
    assert [round(f.mean() / 10) for f in frames] == list(range(6))
    assert [round(f.mean() / 10) for f in clip.read(stride=2)] == [0, 2, 4]
    assert [int(np.nonzero(fixation_map(clip, t))[1][0]) for t in range(6)] == [0, 5, 10, 15, 20, 25]
    assert fixation_map(clip, 6) is None


def test_density_is_built_from_fixations_with_dhf1ks_blur(tmp_path):
    clip = open_corpus("dhf1k", make_clip(tmp_path, size=(120, 200))).clips[0]
    points = np.zeros((120, 200), bool)
    points[60, 100] = True
    density = density_map(clip, 0, points)
    assert density.sum() == pytest.approx(1, abs=1e-3)
    columns = density.sum(0)
    spread = np.sqrt((columns * (np.arange(200) - 100) ** 2).sum())
    assert spread == pytest.approx(SIGMA * 200, rel=0.02) and pytest.approx(12.74) == SIGMA * 640


def test_density_maps_are_used_where_present(tmp_path):
    clip = open_corpus("dhf1k", make_clip(tmp_path, maps=True)).clips[0]
    density = density_map(clip, 2, fixation_map(clip, 2))
    assert density.max() == 1 and (density > 0).sum() == 2


def test_clips_without_annotation_are_kept(tmp_path):
    make_clip(tmp_path, "001")
    make_clip(tmp_path, "002", annotated=None)
    corpus = split(open_corpus("dhf1k", tmp_path), 0.5)
    assert corpus.clips[1].annotated_frames == 0 and fixation_map(corpus.clips[1], 0) is None


def broken_video(root):
    path = root / "video" / "001.avi"
    path.write_bytes(path.read_bytes()[:200])


def too_few_frames(root):
    make_clip(root, frames=4)


def wrong_size(root):
    cv2.imwrite(str(root / "annotation/0001/fixation/0003.png"), np.zeros((48, 81), np.uint8))


def gap(root):
    (root / "annotation/0001/fixation/0003.png").unlink()


def not_a_png(root):
    (root / "annotation/0001/fixation/0003.png").write_text("<html>")


def maps_without_some(root):
    make_clip(root, maps=True)
    (root / "annotation/0001/maps/0006.png").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_video, "001.avi does not open as a video|not one frame decodes"),
        (too_few_frames, "001.avi has 4 frames, its annotation in .* 6"),
        (wrong_size, "0003.png is 81x48 px, its video 80x48"),
        (gap, "0004.png where 0003.png should be"),
        (not_a_png, "0003.png is not a PNG; restore it, or save it as one"),
        (maps_without_some, "holds 5 maps, .* 6"),
    ],
)
def test_a_damaged_clip_is_named_with_the_way_out(tmp_path, damage, message):
    make_clip(make_clip(tmp_path), "002")
    damage(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        open_corpus("dhf1k", tmp_path)
    assert "--set corpus.skip=001" in str(error.value)
    assert [clip.id for clip in open_corpus("dhf1k", tmp_path, options=keys.Corpus(skip=["001"])).clips] == ["002"]


@pytest.mark.parametrize(
    "ids",
    [
        ["001"], ["001", "a.b"], ["1.10"], ["1_0", "7"], ["2e3"], ["true"], ["2020-01-01"], ["a, b"], ["a", '"b"'], ["[c]"], [" d"],
        ["it's"], ["a # b"], ["{e = 1}"], ["f\ng"], ["caf\\xe9"],
    ],
)  # fmt: skip
def test_the_way_out_leaves_the_clips_out_whatever_they_are_called(ids):
    leave_out, _, option = leaving_out(ids).partition(": ")
    assert leave_out == f"leave {'them' if ids[1:] else 'it'} out"
    [set_, override] = shlex.split(option)
    assert set_ == "--set" and load_recipe(None, [override]).corpus.skip == tuple(ids)


def test_a_list_that_would_fill_the_screen_is_not_printed():
    assert leaving_out([str(number) for number in range(51)]) == "leave them out with corpus.skip"


@pytest.mark.parametrize(
    ("name", "prepare", "message"),
    [
        ("dhf1k", lambda root: None, "is not a folder"),
        ("dhf1k", lambda root: root.mkdir(), "has no video/ folder"),
        ("dhf1k", lambda root: (root / "video").mkdir(parents=True), "holds no videos"),
        ("dhf1", lambda root: None, "unknown corpus 'dhf1'; did you mean 'dhf1k'?"),
    ],
)
def test_a_missing_corpus_is_a_one_line_error(tmp_path, name, prepare, message):
    prepare(tmp_path / "root")
    with pytest.raises(UsageError) as error:
        open_corpus(name, tmp_path / "root")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_video_that_changed_since_it_was_read_is_noticed(tmp_path):
    clip = open_corpus("dhf1k", make_clip(tmp_path, frames=6)).clips[0]
    make_clip(tmp_path, frames=4, annotated=None)
    with pytest.raises(UsageError, match="ended after 4 of 6 frames"):
        list(clip.read())


def six_clips(root):
    for i in range(1, 7):
        make_clip(root, f"{i:03d}", frames=2, annotated=2)
    return open_corpus("dhf1k", root)


def test_damaged_groups_are_named(tmp_path):
    corpus = six_clips(tmp_path)
    groups = tmp_path / "groups.csv"
    groups.write_bytes(b"\xef\xbb\xbf001,a\n002,b\n")  # as Excel writes it
    assert {clip.group for clip in split(corpus, 0.34, groups=groups).clips} >= {"a", "b"}
    groups.write_text(f"001,{'a' * 200_000}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"groups\.csv cannot be read: field larger than field limit"):
        split(corpus, 0.34, groups=groups)


def test_groups_stay_on_one_side(tmp_path):
    corpus = six_clips(tmp_path)
    groups = tmp_path / "groups.csv"
    groups.write_text("# clip,group\n001,a\n002,a\n003,b\n004,b\n", encoding="utf-8")
    for seed in range(12):
        parts = split(corpus, 0.34, groups=groups, seed=seed)
        assert set(parts.train) | set(parts.val) == {c.id for c in corpus.clips} and not set(parts.train) & set(parts.val)
        for pair in ({"001", "002"}, {"003", "004"}):
            assert pair <= set(parts.train) or pair <= set(parts.val)
        assert len(parts.val) == 2


def test_named_clips_are_held_out_and_their_group_does_not_train(tmp_path):
    corpus = six_clips(tmp_path)
    (tmp_path / "groups.csv").write_text("001,a\n002,a\n", encoding="utf-8")
    parts = split(corpus, 0.0, ["001"], tmp_path / "groups.csv")
    assert parts.val == ("001",) and parts.train == ("003", "004", "005", "006")
    with pytest.raises(UsageError, match="'009', which is not in"):
        split(corpus, 0.0, ["009"])


def test_a_group_that_is_too_large_is_not_held_out_while_others_fit(tmp_path):
    corpus = six_clips(tmp_path)
    (tmp_path / "groups.csv").write_text("".join(f"00{i},big\n" for i in range(1, 5)), encoding="utf-8")
    for seed in range(8):
        assert len(split(corpus, 0.34, groups=tmp_path / "groups.csv", seed=seed).val) == 2


def test_naming_the_only_annotated_clip_holds_it_out(tmp_path):
    make_clip(tmp_path, "001")
    make_clip(tmp_path, "002", annotated=None)
    parts = split(open_corpus("dhf1k", tmp_path), 0.2, ["001"])
    assert parts.train == ("002",) and parts.val == ("001",) and parts.held_out


def test_a_truncated_video_is_detected_without_annotation_too(tmp_path):
    path = make_clip(tmp_path, frames=200, annotated=None) / "video" / "001.avi"
    whole = path.read_bytes()
    index = whole.rindex(b"idx1")
    path.write_bytes(whole[: index // 2])
    with pytest.raises(UsageError, match=r"ends early: its \d+ frames end at [34]\.\d\d s, its header says 8\.00 s"):
        probe(path)


def test_a_single_annotated_clip_trains_and_validates_with_a_caveat(tmp_path):
    make_clip(tmp_path, "001")
    make_clip(tmp_path, "002", annotated=None)
    parts = split(open_corpus("dhf1k", tmp_path), 0.2)
    assert parts.train == ("001", "002") and parts.val == ("001",) and not parts.held_out


SMALL = keys.Synthetic(clips=2, frames=40, height=72, width=128, observers=8)


def test_the_synthetic_corpus_is_deterministic_and_resumes(tmp_path, narrator):
    synthetic.write(tmp_path / "a", SMALL, narrator)
    synthetic.write(tmp_path / "b", SMALL, narrator)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 2 + 2 + 2 * 40
    (tmp_path / "b" / "video" / "002.avi").unlink()  # as a kill before the clip was complete leaves it
    shutil.rmtree(tmp_path / "b" / "annotation" / "0002")
    synthetic.write(tmp_path / "b", SMALL, narrator)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert probe(tmp_path / "a" / "video" / "001.avi")[0] == 40


def test_a_synthetic_corpus_does_not_mix_with_others(tmp_path, narrator):
    from dataclasses import replace

    synthetic.write(tmp_path / "a", replace(SMALL, frames=4), narrator)
    with pytest.raises(UsageError, match=r"choose another --root, or take its settings: --set synthetic\.frames=4$"):
        synthetic.write(tmp_path / "a", replace(SMALL, frames=5), narrator)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="not a synthetic corpus"):
        synthetic.write(tmp_path / "b", SMALL, narrator)


def test_the_synthetic_corpus_rewards_motion(tmp_path, narrator):
    """Differences between frames predict gaze; contrast within one frame predicts it much less."""
    from distill.evaluation.metrics import nss

    config = keys.Synthetic(clips=4, frames=48, height=72, width=128)
    synthetic.write(tmp_path, config, narrator)
    moving, still = [], []
    for clip in open_corpus("synthetic", tmp_path).clips:
        frames = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float64) for f in clip.read()]
        for t in range(8, 48, 4):
            fixations = fixation_map(clip, t)
            if fixations.any():
                change = cv2.GaussianBlur(abs(frames[t] - frames[t - 2]), (0, 0), 3)
                contrast = cv2.GaussianBlur(abs(frames[t] - cv2.GaussianBlur(frames[t], (0, 0), 4)), (0, 0), 3)
                moving.append(nss(change, fixations))
                still.append(nss(contrast, fixations))
    assert np.mean(moving) > np.mean(still) + 0.5
