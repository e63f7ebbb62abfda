import numpy as np
import pytest
import torch

from distill.corpora import density_map, fixation_map, open_corpus
from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.visage import VisageConfig, resize
from distill.training.teachers import visage_windows

SHAPE = VisageConfig(
    trunk=InternVideo2Config(width=16, depth=4, heads=2, mlp_width=16, frames=4, px=16, patch=8), out_px=12, sample_fps=12.0
)


@pytest.fixture(scope="module")
def cached(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    clips = open_corpus("synthetic", tiny_root).clips
    for clip in clips:
        visage_windows.cache(folder, clip, SHAPE)
    return [visage_windows.cache(folder, clip, SHAPE) for clip in clips]


def centre(density):
    """Centre of mass, as shares of height and width."""
    total = density.sum(dtype=np.float64)
    return np.array([(density.sum(1 - axis) * (np.arange(n) + 0.5) / n).sum() / total for axis, n in enumerate(density.shape)])


def test_the_cache_holds_what_the_teacher_sees_and_where_people_looked(cached):
    clip = cached[0].clip
    assert cached[0].stride == 2 and cached[0].frames.shape == (12, 3, 16, 16) and cached[0].density.shape == (12, 12, 12)
    decoded = list(clip.read(2))
    assert np.array_equal(cached[0].frames[5], resize(decoded[5][None], 16)[0])
    points = cached[0].points[:]
    for j in range(12):
        fixations = fixation_map(clip, 2 * j)
        assert (points[:, 0] == j).sum() == fixations.sum()
        small = cached[0].density[j]
        assert small.max() == (255 if fixations.any() else 0)
        if fixations.any():
            large = density_map(clip, 2 * j, fixations)
            assert np.abs(centre(small) - centre(large)).max() < 0.01


def test_a_window_shows_frames_density_and_fixations_of_the_same_moments(cached):
    windows = visage_windows.read([(cached[0], 3), (cached[1], 0)], 4)
    assert windows.frames_BTCHW.shape == (2, 4, 3, 16, 16) and windows.frames_BTCHW.dtype == torch.uint8
    assert torch.equal(windows.frames_BTCHW[0, 2], torch.from_numpy(cached[0].frames[5]))
    assert windows.density_BTHW.max() == 1
    for t in range(4):
        assert windows.fixations_BTHW[0, t].sum() == fixation_map(cached[0].clip, 2 * (3 + t)).sum()
    assert windows.places == [("001", [7, 9, 11, 13]), ("002", [1, 3, 5, 7])]


def test_repeated_frames_and_frames_without_fixations_do_not_count(cached):
    windows = visage_windows.read([(cached[0], 10)], 4)
    assert torch.equal(windows.frames_BTCHW[0, 3], windows.frames_BTCHW[0, 1])
    seen = cached[0].density[[10, 11]].any((1, 2))
    assert windows.counts_BT[0].tolist() == [*seen.tolist(), False, False]


def test_every_clip_is_drawn_once_an_epoch_in_a_new_order_at_a_new_start(cached):
    epochs = [visage_windows.draw(cached, 4, len(cached), 0, epoch) for epoch in range(6)]
    for epoch in epochs:
        assert sorted(c.clip.id for c, _ in epoch) == sorted(c.clip.id for c in cached)
        assert all(0 <= start <= 12 - 4 for _, start in epoch)
    assert len({tuple(c.clip.id for c, _ in epoch) for epoch in epochs}) > 1
    assert len({start for epoch in epochs for _, start in epoch}) > 4
    assert visage_windows.draw(cached, 4, 3, 7, 5) == visage_windows.draw(cached, 4, 3, 7, 5)
    # How many are drawn at once changes nothing: two processes see what one would.
    assert [p for s in range(6) for p in visage_windows.draw(cached, 4, 2, 0, s)] == [
        p for s in range(4) for p in visage_windows.draw(cached, 4, 3, 0, s)
    ]


def test_validation_windows_are_spread_from_end_to_end(cached):
    starts = [start for clip, start in visage_windows.spread(cached[:1], 4, 4)]
    assert starts == [0, 2, 5, 8]
    assert visage_windows.spread(cached[:1], 12, 4) == [(cached[0], 0)]
    assert visage_windows.spread(cached[:1], 30, 4) == [(cached[0], 0)]
