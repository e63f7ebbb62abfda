"""The cache of decoded frames: several clips at once."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.corpora import open_corpus
from distill.corpora.clips import Clip
from distill.recipe.keys import Train
from distill.training import frames
from distill.training.batches import Sample, draw_windows
from tests.training.test_student import STUDENT

FPS = 12.0


@pytest.fixture
def clips(tiny_root):
    return open_corpus("synthetic", tiny_root).clips[:3]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_clips_are_decoded_together_in_order_to_the_same_files(clips, tmp_path, monkeypatch):
    for clip in clips:
        frames.cache(tmp_path / "alone", clip, STUDENT, FPS)
    all_at_once, read = threading.Barrier(len(clips), timeout=30), Clip.read

    def meet_and_read(clip, stride=1):
        all_at_once.wait()
        return read(clip, stride)

    monkeypatch.setattr(Clip, "read", meet_and_read)
    monkeypatch.setattr(frames, "usable_cores", lambda: 8)
    before = torch.get_num_threads()
    assert list(frames.cache_all(tmp_path / "together", clips, STUDENT, FPS)) == list(clips)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert torch.get_num_threads() == before


def test_long_clips_are_decoded_one_by_one(clips, tmp_path, monkeypatch):
    threads, cache = set(), frames.cache

    def noted(folder, clip, *how):
        threads.add(threading.get_ident())
        cache(folder, clip, *how)

    monkeypatch.setattr(frames, "cache", noted)
    monkeypatch.setattr(frames, "usable_cores", lambda: 8)
    monkeypatch.setattr(frames, "FRAMES_AT_ONCE", clips[0].frames - 1)  # every second one is cached
    assert len(list(frames.cache_all(tmp_path, clips, STUDENT, FPS))) == len(clips)
    assert len(threads) == 1


def test_a_clip_of_variable_rate_is_sampled_in_real_time(clips, tmp_path):
    """Half a second at 24 frames per second, then 4 per second: every second frame, then all."""
    times = tuple(n / 24 for n in range(12)) + tuple(0.5 + n / 4 for n in range(12))
    clip = replace(clips[0], times=times, fps=24.0)
    frames.cache(tmp_path, clip, STUDENT, FPS)
    cached = frames.load(tmp_path, clip, FPS)
    expected = [*range(0, 12, 2), *range(12, 24)]
    assert cached.video_frames(np.arange(18)).tolist() == expected and cached.frames.shape[0] == 18
    assert cached.place(np.array([0, 6, 17])) == (clip.id, [1, 13, 24])
    decoded = list(clip.read())
    assert all(np.array_equal(cached.frames[j], frames.to_twice(decoded[n], STUDENT)) for j, n in enumerate(expected))
    assert cached.seconds_apart(np.arange(5), 1) == pytest.approx(1 / 12)
    assert cached.seconds_apart(np.array([17, 15, 13, 15]), 2) == pytest.approx(1 / 2)  # over the end of the clip and back
    steady = frames.load(tmp_path, clips[0], FPS)
    assert steady.seconds_apart(np.arange(5), 2) == 2 / steady.fps
    labels = np.linspace(-4, 4, 24, dtype=np.float16)[:, None, None] * np.ones((1, 8, 16), np.float16)
    drawn = draw_windows([Sample(cached, labels)], Train(batch=1, window=18, windows=1), STUDENT, (0, 0), 3)
    soft = torch.logit(drawn.targets_BT3hw[0, :, 0, 4, 8])
    numbers = np.array(drawn.places[0][1]) - 1  # each frame with its own label
    assert set(numbers) <= set(expected) and torch.allclose(
        soft, torch.from_numpy(labels[numbers, 4, 8].astype(np.float32)), atol=1e-3
    )
    assert drawn.dt_B[0] == pytest.approx(np.abs(np.diff(np.array(times)[numbers])).mean())
