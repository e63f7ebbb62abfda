"""A procedural corpus in DHF1K's layout: short videos, and simulated observers who look at what moves.

Each video has a textured background under a slowly moving camera, several textured objects, and sometimes a cut. Only one
object moves at a time; most of the others look the same but stay where they are. A single frame therefore does not show
which object is watched, and a model that carries state must beat one that does not. After a while another object moves.

The simulated gaze (saccades, smooth pursuit, disagreement) has realistic magnitudes: reaction to a new target after about
0.2 s, dwell times of 0.3 to 1 s, a bias to the screen's centre after a cut, and some glances elsewhere. All randomness
follows from the seed, with an independent stream per clip.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.checking import LICENSE_FILES
from distill.corpora.layouts import detect_corpus
from distill.corpora.video import write_video
from distill.recipe.keys import Synthetic
from distill.run.errors import Interrupted, UsageError
from distill.run.files import is_temporary, value_in, write_json
from distill.run.progress import Narrator

LICENSE = "BSD-2-Clause-Patent (procedural)"
MARKER = "synthetic.json"  # the settings; marks a folder as a synthetic corpus
KINDS = ("disc", "square", "ring", "star", "cross")


@dataclass
class MovingObject:
    """A sprite (RGB and alpha in [0, 1]), its position (x, y in pixels of the frame) and its velocity (pixels per second)."""

    sprite: np.ndarray
    place: np.ndarray
    velocity: np.ndarray


def write(root: Path, config: Synthetic, narrator: Narrator) -> None:
    """Writes the corpus under `root`. Clips that are complete are kept, so an interrupted call can be continued.

    Raises UsageError if `root` holds anything else, or a corpus with other settings; Interrupted between clips.
    """
    check_root(root, config)
    (root / "video").mkdir(parents=True, exist_ok=True)
    write_json(root / MARKER, asdict(config))
    (root / LICENSE_FILES[0]).write_text(LICENSE + "\n", encoding="utf-8")
    with narrator.bar("synthetic corpus", config.clips, unit="clips") as bar:
        for number, name in enumerate(clip_ids(config), 1):
            video = root / "video" / f"{name}.avi"
            if not video.exists():  # it is written last, after the annotation
                _write_clip(root, video, number, config)
            bar.advance()
            if narrator.stop() and number < config.clips:
                raise Interrupted(f"the synthetic corpus, after clip {number} of {config.clips}")


def clip_ids(config: Synthetic) -> list[str]:
    """The ids of all clips."""
    return [f"{number:03d}" for number in range(1, config.clips + 1)]


def check_root(root: Path, config: Synthetic) -> None:
    """Raises UsageError if `root` holds anything but a synthetic corpus with these settings."""
    marker = root / MARKER
    if marker.exists():
        wanted, found = asdict(config), value_in(marker, dict)
        if found != wanted:
            other = [
                f"--set synthetic.{name}={found[name]}" for name in wanted if name in found and found[name] != wanted[name]
            ]
            take = f", or take its settings: {' '.join(other)}" if other else ""
            raise UsageError(f"{root} holds a synthetic corpus with other settings; choose another --root{take}")
    elif root.is_dir() and not all(is_temporary(e.name) for e in root.iterdir()):
        known = detect_corpus(root)
        way_out = f"--corpus {known} reads it" if known else "name its corpus with --corpus"
        raise UsageError(f"{root} holds files that are not a synthetic corpus; {way_out}, or choose another --root")


def _write_clip(root: Path, video: Path, number: int, config: Synthetic) -> None:
    rng = np.random.default_rng([config.seed, number])
    folder = root / "annotation" / f"{number:04d}" / "fixation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames, targets, cuts, switches = _render(rng, config)
    for number, points in enumerate(_simulate_gaze(rng, targets, cuts, switches, config), 1):
        image = np.zeros((config.height, config.width), np.uint8)
        image[points[:, 1], points[:, 0]] = 255
        png = cv2.imencode(".png", image)[1].tobytes()  # imwrite would not report a full disk
        (folder / f"{number:04d}.png").write_bytes(png)
    write_video(video, config.fps, (config.height, config.width), frames)


def _render(rng: np.random.Generator, config: Synthetic) -> tuple[list[np.ndarray], np.ndarray, list[int], list[int]]:
    """Frames uint8 `[H,W,3]`, the place of the watched object `[T,2]` (x, y), the frames at which a scene begins, and those
    at which the watched object changes."""
    T = config.frames
    cuts = [0]
    if 2 * config.fps < T and rng.random() < 0.5:  # one cut, at least one second from both ends
        cuts.append(int(rng.integers(int(config.fps), T - int(config.fps))))
    frames: list[np.ndarray] = []
    targets, switches = np.zeros((T, 2)), list[int]()
    for start, end in zip(cuts, [*cuts[1:], T], strict=True):
        switches.append(start)
        switches += [start + t for t in _scene(rng, config, targets[start:end], frames)]
    return frames, targets, cuts, switches


def _scene(rng: np.random.Generator, config: Synthetic, targets: np.ndarray, frames: list[np.ndarray]) -> list[int]:
    """Appends the scene's frames to `frames`, fills in `targets`, and returns when the watched object changes."""
    H, W, dt = config.height, config.width, 1 / config.fps
    margin = round(0.35 * W)
    background = _texture(rng, H + 2 * margin, W + 2 * margin, contrast=0.25)
    camera, pan = np.zeros(2), rng.normal(0, 0.02 * W, 2) * (rng.random() < 0.6)
    look = _look(rng)
    objects = []
    for place in _spaced_places(rng, int(rng.integers(4, 6)), H, W):
        # Most look the same, one in four looks different: appearance alone says little about which one is watched.
        sprite = _sprite(rng, look if rng.random() < 0.75 else _look(rng), 0.09 * W)
        objects.append(MovingObject(sprite, place, np.zeros(2)))
    mover, until = int(rng.integers(len(objects))), float(rng.uniform(0.8, 2.0))
    objects[mover].velocity = _velocity(rng, W)
    switches = []
    for t in range(len(targets)):
        if t * dt > until:  # another object moves from now on
            switches.append(t)
            objects[mover].velocity = np.zeros(2)
            mover = (mover + int(rng.integers(1, len(objects)))) % len(objects)
            objects[mover].velocity = _velocity(rng, W)
            until = t * dt + float(rng.uniform(0.8, 2.0))
        shift = pan * dt if np.all(np.abs(camera + pan * dt) < margin - 2) else np.zeros(2)
        camera += shift
        for each in objects:
            each.place += each.velocity * dt - shift
        _bounce(objects[mover], H, W)
        x, y = camera + margin
        frame = cv2.warpAffine(background, np.array([[1, 0, -x], [0, 1, -y]]), (W, H))
        for i in sorted(range(len(objects)), key=lambda i: i == mover):  # the mover in front
            _paste(frame, objects[i])
        frame += rng.normal(0, 0.012, frame.shape).astype(np.float32)
        frames.append((np.clip(frame, 0, 1) * 255).astype(np.uint8))
        targets[t] = objects[mover].place
    return switches


def _texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """Coloured noise with the spectrum of a natural image: float32 `[height,width,3]` in [0, 1]."""
    out = np.zeros((height, width), np.float32)
    for cells in (3, 6, 12, 24, 48):
        coarse = rng.normal(0, 1, (cells, cells * 2)).astype(np.float32)
        out += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.7
    out = (out - out.mean()) / (out.std() + 1e-6)
    colour = rng.uniform(0.25, 0.75, 3) + contrast * out[..., None] * rng.uniform(0.3, 0.7, 3)
    return np.clip(colour, 0, 1).astype(np.float32)


def _look(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    return str(rng.choice(KINDS)), rng.uniform(0, 1, 3)


def _sprite(rng: np.random.Generator, look: tuple[str, np.ndarray], size: float) -> np.ndarray:
    """An object of a kind and colour, RGBA float32, with a transparent border for shifts by fractions of a pixel."""
    kind, colour = look
    r = size * rng.uniform(0.8, 1.2) / 2
    side = int(2 * r) + 9
    y, x = np.mgrid[:side, :side] - side / 2
    angle, distance = np.arctan2(y, x) + rng.uniform(0, np.pi), np.hypot(x, y)
    edge = {
        "disc": r - distance,
        "square": 0.85 * r - np.maximum(abs(x), abs(y)),
        "ring": 0.3 * r - abs(distance - 0.75 * r),
        "star": r * (0.65 + 0.3 * np.cos(5 * angle)) - distance,
        "cross": np.maximum(np.minimum(0.3 * r - abs(x), r - abs(y)), np.minimum(0.3 * r - abs(y), r - abs(x))),
    }[kind]
    alpha = np.clip(edge + 0.5, 0, 1)
    pattern = _texture(rng, side, side, contrast=0.6)
    rgb = np.clip(0.65 * colour + 0.5 * (pattern - pattern.mean() + 0.35), 0, 1)
    return np.dstack([rgb, alpha]).astype(np.float32)


def _spaced_places(rng: np.random.Generator, count: int, H: int, W: int) -> list[np.ndarray]:
    """Places (x, y) at some distance from each other, more of them near the centre than at the border."""
    places: list[np.ndarray] = []
    for _ in range(400):
        place = np.clip(rng.normal(0.5, 0.25, 2), 0.1, 0.9) * (W, H)
        if all(np.hypot(*(place - other)) > 0.16 * W for other in places):
            places.append(place)
        if len(places) == count:
            break
    return places


def _velocity(rng: np.random.Generator, W: int) -> np.ndarray:
    """Pixels per second, in any direction."""
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.45) * W
    return np.array([np.cos(angle), 0.7 * np.sin(angle)]) * speed


def _bounce(mover: MovingObject, H: int, W: int) -> None:
    """Turns an object back that is about to leave the frame."""
    for axis, side in ((0, W), (1, H)):
        place, velocity = mover.place[axis], mover.velocity[axis]
        if (place < 0.08 * side and velocity < 0) or (place > 0.92 * side and velocity > 0):
            mover.velocity[axis] *= -1


def _paste(frame: np.ndarray, item: MovingObject) -> None:
    """Blends the sprite into the frame at its place, with sub-pixel accuracy."""
    side = item.sprite.shape[0]
    corner = item.place - side / 2
    left, top = np.floor(corner).astype(int)
    dx, dy = corner - (left, top)
    moved = cv2.warpAffine(item.sprite, np.array([[1, 0, dx], [0, 1, dy]]), (side, side))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side, frame.shape[1]), min(top + side, frame.shape[0])
    if x0 < x1 and y0 < y1:
        part = moved[y0 - top : y1 - top, x0 - left : x1 - left]
        frame[y0:y1, x0:x1] += part[..., 3:] * (part[..., :3] - frame[y0:y1, x0:x1])


def _simulate_gaze(
    rng: np.random.Generator, targets: np.ndarray, cuts: list[int], switches: list[int], config: Synthetic
) -> list[np.ndarray]:
    """Where the observers look in each frame: a list of int arrays `[n,2]` (x, y). A saccade in flight is not a fixation."""
    T, size = len(targets), np.array([config.width, config.height])
    last_switch = [max(s for s in switches if s <= t) for t in range(T)]
    points: list[list[np.ndarray]] = [[] for _ in range(T)]
    for _ in range(config.observers):
        lag = max(1, round(rng.normal(0.2, 0.04) * config.fps))  # reaction time, in frames
        gaze = np.clip(rng.normal(0.5, 0.1, 2), 0, 1) * size
        mode, until, offset = "centre", int(rng.exponential(0.25) * config.fps), np.zeros(2)
        for t in range(T):
            if t in cuts and t:  # after a cut the eyes go to the centre first
                mode, until = "centre", t + max(2, int(rng.exponential(0.25) * config.fps))
            saccade = t >= until
            if saccade:
                mode = str(rng.choice(["follow", "wander", "centre"], p=[0.85, 0.1, 0.05]))
                until = t + max(3, int(rng.uniform(0.3, 1.0) * config.fps))
                offset = rng.normal(0, 0.015 * config.width, 2)
                elsewhere = np.clip(rng.normal(0.5, 0.22, 2), 0.02, 0.98) * size
            if mode == "follow":
                # Pursuit follows its target, but a new target is noticed only after the reaction time.
                goal = targets[t] + offset if t - last_switch[t] >= lag else gaze
            elif mode == "wander":
                goal = elsewhere
            else:
                goal = size / 2 + offset * 3
            jump = np.hypot(*(goal - gaze)) > 0.15 * config.width
            gaze = goal if jump or saccade else gaze + 0.6 * (goal - gaze)  # pursuit lags a little
            if not jump:
                point = np.round(gaze + rng.normal(0, 0.006 * config.width, 2)).astype(int)
                if np.all(point >= 0) and np.all(point < size):
                    points[t].append(point)
    return [np.array(p, int).reshape(-1, 2) for p in points]
