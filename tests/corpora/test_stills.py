"""Still images without gaze, and the videos that a simulated camera makes of them."""

import cv2
import numpy as np
import pytest

from distill.corpora import camera, open_corpus
from distill.run.errors import UsageError


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / ("deep/er" if number % 2 else "top") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (120 + 10 * number, 200, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3) * 2)
    return tmp_path


def test_photos_are_static_clips_named_by_their_path(photos):
    clips = open_corpus("photos", photos).clips
    assert [clip.id for clip in clips][:7] == [*(f"deep.er.{n}" for n in (1, 11, 3, 5, 7, 9)), "top.0"]
    assert all(clip.static and clip.frames == 1 and not clip.annotated_frames for clip in clips)
    (photos / "top" / "0.png").write_bytes((photos / "top" / "2.jpg").read_bytes())
    with pytest.raises(UsageError, match=r"0\.jpg and .*0\.png would be one clip, top\.0; rename one of them"):
        open_corpus("photos", photos)
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no images \(\."):
        open_corpus("pans", photos / "empty")


def test_a_film_is_a_function_of_its_images_and_name(photos):
    clips = open_corpus("pans", photos).clips
    films = [np.stack(list(clip.read())) for clip in clips]
    for clip, film in zip(clips, films, strict=True):
        assert film.shape == (clip.frames, clip.height, clip.width, 3) == (camera.FRAMES, camera.HEIGHT, camera.WIDTH, 3)
        assert film.dtype == np.uint8 and clip.fps == camera.FPS and not clip.static
        assert np.array_equal(film[::3], np.stack(list(clip.read(3))))
    assert len({film.tobytes() for film in films}) == len(films)
    moves = [np.abs(np.diff(film.astype(float), axis=0)).mean((1, 2, 3)).max() for film in films]
    assert np.median(moves) > 3  # the camera moves in most of them


def test_some_films_cut_to_another_image(tmp_path, photos):
    clips = open_corpus("pans", photos).clips
    assert 0 < sum(len(clip.shots) == 2 for clip in clips) < len(clips) / 2
    white, black = str(tmp_path / "white.png"), str(tmp_path / "black.png")
    cv2.imwrite(white, np.full((90, 160, 3), 255, np.uint8))
    cv2.imwrite(black, np.zeros((90, 160, 3), np.uint8))
    for seed in range(20):
        levels = [frame.mean() for frame in camera.film((white, black), seed)]
        cut = levels.index(0)
        assert camera.FRAMES // 3 <= cut < camera.FRAMES and levels == [255] * cut + [0] * (camera.FRAMES - cut)


def test_a_view_stays_inside_its_image(tmp_path):
    for height, width in ((90, 300), (700, 200), (720, 1280)):
        marked = np.zeros((height, width, 3), np.uint8)
        marked[[0, -1]], marked[:, [0, -1]] = 255, 255  # beyond the border its white would be repeated
        cv2.imwrite(str(tmp_path / "marked.png"), marked)
        for seed in range(10):
            for frame in camera.film((str(tmp_path / "marked.png"),), seed):
                assert frame[20:-20, 20:-20].mean() < 1, (height, width, seed)


def test_a_damaged_image_is_named(photos):
    (photos / "top" / "0.jpg").write_bytes((photos / "top" / "0.jpg").read_bytes()[:200])
    with pytest.raises(UsageError, match=r"top\.0"):
        open_corpus("pans", photos)
