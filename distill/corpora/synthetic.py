"""A procedural corpus in DHF1K's layout: small films, and simulated observers who look at what moves.

Every film has a textured background under a slowly moving camera, several textured objects of different kinds, and now
and then a cut. Only one object at a time moves by itself; the others are its still look-alikes, so a single frame does
not say which of them is watched, and a model that carries state must win over one that does not. The role passes from
object to object.

Observers (saccades, smooth pursuit, disagreement) are drawn after well-known magnitudes: reaction to a new target after
about 0.2 s, dwell times of 0.3 to 1 s, a bias to the screen's centre after a cut, and a share of glances that follow
nobody's rule. All randomness follows from the seed, one independent stream per clip.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.entries import LICENSE_FILES
from distill.corpora.video import Writer, probe
from distill.recipe.keys import Synthetic
from distill.run.errors import Interrupted, UsageError
from distill.run.files import atomic, is_temporary, read_json, write_json
from distill.run.progress import Narrator

LICENSE = "BSD-2-Clause-Patent (procedural)"
MARKER = "synthetic.json"  # the settings; says that the folder is ours
KINDS = ("disc", "square", "ring", "star", "cross")


@dataclass
class Thing:
    """An object on its way: its sprite (RGB and alpha in [0, 1]), place (x, y in pixels of the screen), own velocity."""

    sprite: np.ndarray
    place: np.ndarray
    velocity: np.ndarray


def write(root: Path, config: Synthetic, narrator: Narrator) -> None:
    """Writes the corpus under `root`; clips that are complete stay as they are, so an interrupted call goes on.

    Raises UsageError where `root` holds something else, a corpus with other settings too.
    """
    made_with = root / MARKER
    if made_with.exists():
        if read_json(made_with) != asdict(config):
            raise UsageError(f"{root} holds a synthetic corpus with other settings; choose another corpus.root")
    elif root.is_dir() and not all(is_temporary(e.name) for e in root.iterdir()):
        raise UsageError(f"{root} holds something that is no synthetic corpus; choose another corpus.root")
    (root / "video").mkdir(parents=True, exist_ok=True)
    write_json(made_with, asdict(config))
    (root / LICENSE_FILES[0]).write_text(LICENSE + "\n", encoding="utf-8")
    with narrator.bar("synthetic corpus", config.clips, unit="clips") as bar:
        for number in range(1, config.clips + 1):
            video = root / "video" / f"{number:03d}.avi"
            if not video.exists():  # moved into place last, after its annotation
                _write_clip(root, video, number, config)
            bar.advance()
            if narrator.stop() and number < config.clips:
                raise Interrupted(f"the synthetic corpus, after clip {number} of {config.clips}")


def _write_clip(root: Path, video: Path, number: int, config: Synthetic) -> None:
    rng = np.random.default_rng([config.seed, number])
    folder = root / "annotation" / f"{number:04d}" / "fixation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames, targets, cuts, switches = film(rng, config)
    with atomic(video) as temporary:
        writer = Writer(temporary, config.fps, (config.height, config.width))
        for frame in frames:
            writer.write(frame)
        writer.close()
        for index, points in enumerate(observe(rng, targets, cuts, switches, config)):
            image = np.zeros((config.height, config.width), np.uint8)
            image[points[:, 1], points[:, 0]] = 255
            path = folder / f"{index + 1:04d}.png"
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())  # imwrite would not say that the disk is full
        if probe(temporary)[0] != len(frames):  # nor does the video writer
            raise OSError(errno.ENOSPC, "the video is not complete", str(video))


# --- the film --------------------------------------------------------------------------------------------------------


def film(rng: np.random.Generator, config: Synthetic) -> tuple[list[np.ndarray], np.ndarray, list[int], list[int]]:
    """Frames uint8 `[H,W,3]`, the watched object's place `[T,2]` (x, y), and the frames at which a scene begins and at
    which the watched object changes."""
    T = config.frames
    cuts = [0]
    if 2 * config.fps < T and rng.random() < 0.5:  # one cut, at least a second from both ends
        cuts.append(int(rng.integers(int(config.fps), T - int(config.fps))))
    frames: list[np.ndarray] = []
    targets, switches = np.zeros((T, 2)), list[int]()
    for start, end in zip(cuts, [*cuts[1:], T], strict=True):
        switches.append(start)
        switches += [start + t for t in _scene(rng, config, targets[start:end], frames)]
    return frames, targets, cuts, switches


def _scene(rng: np.random.Generator, config: Synthetic, targets: np.ndarray, frames: list[np.ndarray]) -> list[int]:
    """Appends the scene's frames, fills in its targets, and returns when the watched object changed."""
    H, W, dt = config.height, config.width, 1 / config.fps
    margin = round(0.35 * W)
    background = texture(rng, H + 2 * margin, W + 2 * margin, contrast=0.25)
    camera, pan = np.zeros(2), rng.normal(0, 0.02 * W, 2) * (rng.random() < 0.6)
    look = _look(rng)
    things = []
    for place in _apart(rng, int(rng.integers(4, 6)), H, W):
        # Most look alike, one in four looks otherwise: looks alone say little about who is watched.
        sprite = _sprite(rng, look if rng.random() < 0.75 else _look(rng), 0.09 * W)
        things.append(Thing(sprite, place, np.zeros(2)))
    mover, until = int(rng.integers(len(things))), float(rng.uniform(0.8, 2.0))
    things[mover].velocity = _velocity(rng, W)
    switches = []
    for t in range(len(targets)):
        if t * dt > until:  # the role passes on
            switches.append(t)
            things[mover].velocity = np.zeros(2)
            mover = (mover + int(rng.integers(1, len(things)))) % len(things)
            things[mover].velocity = _velocity(rng, W)
            until = t * dt + float(rng.uniform(0.8, 2.0))
        shift = pan * dt if np.all(np.abs(camera + pan * dt) < margin - 2) else np.zeros(2)
        camera += shift
        for thing in things:
            thing.place += thing.velocity * dt - shift
        _bounce(things[mover], H, W)
        x, y = camera + margin
        frame = cv2.warpAffine(background, np.array([[1, 0, -x], [0, 1, -y]]), (W, H))
        for i in sorted(range(len(things)), key=lambda i: i == mover):  # the mover in front
            _paste(frame, things[i])
        frame += rng.normal(0, 0.012, frame.shape).astype(np.float32)
        frames.append((np.clip(frame, 0, 1) * 255).astype(np.uint8))
        targets[t] = things[mover].place
    return switches


def texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """Noise of a natural image's spectrum, coloured: float32 `[height,width,3]` in [0, 1]."""
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
    """An object of a kind and colour, RGBA float32, with a border of a few transparent pixels to move within."""
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
    pattern = texture(rng, side, side, contrast=0.6)
    rgb = np.clip(0.65 * colour + 0.5 * (pattern - pattern.mean() + 0.35), 0, 1)
    return np.dstack([rgb, alpha]).astype(np.float32)


def _apart(rng: np.random.Generator, count: int, H: int, W: int) -> list[np.ndarray]:
    """Places at some distance from each other, more of them near the centre than at the border."""
    places: list[np.ndarray] = []
    for _ in range(400):
        place = np.clip(rng.normal(0.5, 0.25, 2), 0.1, 0.9) * (W, H)
        if all(np.hypot(*(place - other)) > 0.16 * W for other in places):
            places.append(place)
        if len(places) == count:
            break
    return places


def _velocity(rng: np.random.Generator, W: int) -> np.ndarray:
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.45) * W  # pixels per second
    return np.array([np.cos(angle), 0.7 * np.sin(angle)]) * speed


def _bounce(thing: Thing, H: int, W: int) -> None:
    for axis, side in ((0, W), (1, H)):
        if (thing.place[axis] < 0.08 * side and thing.velocity[axis] < 0) or (
            thing.place[axis] > 0.92 * side and thing.velocity[axis] > 0
        ):
            thing.velocity[axis] *= -1


def _paste(frame: np.ndarray, thing: Thing) -> None:
    """Blends the sprite into the frame at its place, to a fraction of a pixel."""
    side = thing.sprite.shape[0]
    corner = thing.place - side / 2
    left, top = np.floor(corner).astype(int)
    dx, dy = corner - (left, top)
    moved = cv2.warpAffine(thing.sprite, np.array([[1, 0, dx], [0, 1, dy]]), (side, side))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side, frame.shape[1]), min(top + side, frame.shape[0])
    if x0 < x1 and y0 < y1:
        part = moved[y0 - top : y1 - top, x0 - left : x1 - left]
        frame[y0:y1, x0:x1] += part[..., 3:] * (part[..., :3] - frame[y0:y1, x0:x1])


# --- the observers ---------------------------------------------------------------------------------------------------


def observe(
    rng: np.random.Generator, targets: np.ndarray, cuts: list[int], switches: list[int], config: Synthetic
) -> list[np.ndarray]:
    """Where the observers look in each frame: a list of int arrays `[n,2]` (x, y). Saccades in flight leave no point."""
    T, size = len(targets), np.array([config.width, config.height])
    last_switch = [max(s for s in switches if s <= t) for t in range(T)]
    points: list[list[np.ndarray]] = [[] for _ in range(T)]
    for _ in range(config.observers):
        lag = max(1, round(rng.normal(0.2, 0.04) * config.fps))  # reaction time, in frames
        gaze = np.clip(rng.normal(0.5, 0.1, 2), 0, 1) * size
        mode, until, offset = "centre", int(rng.exponential(0.25) * config.fps), np.zeros(2)
        for t in range(T):
            if t in cuts and t:  # after a cut the eyes rest where they were, then seek the middle
                mode, until = "centre", t + max(2, int(rng.exponential(0.25) * config.fps))
            if t >= until:
                mode = str(rng.choice(["follow", "wander", "centre"], p=[0.85, 0.1, 0.05]))
                until = t + max(3, int(rng.uniform(0.3, 1.0) * config.fps))
                offset = rng.normal(0, 0.015 * config.width, 2)
                elsewhere = np.clip(rng.normal(0.5, 0.22, 2), 0.02, 0.98) * size
                flight = 1
            else:
                flight = 0
            if mode == "follow":
                # Pursuit keeps up with its target, but a new one is noticed only after the reaction time.
                goal = targets[t] + offset if t - last_switch[t] >= lag else gaze
            elif mode == "wander":
                goal = elsewhere
            else:
                goal = size / 2 + offset * 3
            jump = np.hypot(*(goal - gaze)) > 0.15 * config.width
            gaze = goal if jump or flight else gaze + 0.6 * (goal - gaze)  # saccade, or pursuit that lags a little
            if not jump:
                seen = np.round(gaze + rng.normal(0, 0.006 * config.width, 2)).astype(int)
                if np.all(seen >= 0) and np.all(seen < size):
                    points[t].append(seen)
    return [np.array(p, int).reshape(-1, 2) for p in points]
