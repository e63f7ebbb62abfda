"""The cache of decoded frames: several clips at once."""

import threading

import pytest
import torch

from distill.corpora import open_corpus
from distill.corpora.clips import Clip
from distill.training import frames
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
