"""Pictures for the report and for `distill predict`: heat maps over frames, and the looping clip."""

import base64
import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

PICTURE_WIDTH = 300  # pixels
PANEL_PIXELS = 300 * 169  # of each of the four pictures of the looping clip
LOOP_BYTES = 400_000  # of the looping clip, at most


def overlay(frame: np.ndarray, saliency: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """A heat map over a darkened grey frame: uint8 `[H,W,3]`, `[h,w]` in [0, 1] -> uint8 `[H,W,3]`."""
    height, width = frame.shape[:2]
    s = np.clip(cv2.resize(saliency.astype(np.float32), (width, height)), 0, 1)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    base = 0.35 * frame + 0.45 * grey
    colours = cv2.applyColorMap(np.minimum(s * 256, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.clip(base + strength * s[..., None] * (colours - base), 0, 255).astype(np.uint8)


def peak_normalised(saliency: np.ndarray) -> np.ndarray:
    """A map divided by its maximum."""
    peak = float(saliency.max())
    return saliency / peak if peak > 0 else saliency


def with_fixations(frame: np.ndarray, density: np.ndarray, fixations: np.ndarray) -> np.ndarray:
    """The density map over a frame, with a dot at every fixation: uint8 `[H,W,3]`, `[H,W]`, bool `[H,W]`."""
    picture = overlay(frame, peak_normalised(density))
    radius = max(1, frame.shape[1] // 160)
    for y, x in zip(*np.nonzero(fixations), strict=True):
        cv2.circle(picture, (int(x), int(y)), radius, (120, 255, 255), -1, cv2.LINE_AA)
    return picture


RED, BLUE = np.array([255, 70, 60], np.float32), np.array([70, 150, 255], np.float32)


def difference_map(frame: np.ndarray, difference: np.ndarray, full: float = 0.3) -> np.ndarray:
    """The difference of two maps over a dark grey frame: red where it is positive, blue where it is negative, full colour from
    `full` on. uint8 `[H,W,3]`, `[H,W]` -> uint8 `[H,W,3]`."""
    grey = 0.45 * cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    d = np.clip(difference / full, -1, 1)[..., None]
    return (grey + np.abs(d) * (np.where(d > 0, RED, BLUE) - grey)).astype(np.uint8)


def data_uri(picture: np.ndarray) -> str:
    """A picture, uint8 RGB `[H,W,3]`, as a small JPEG inside a URI."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(_small(picture), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _small(picture: np.ndarray, width: int = PICTURE_WIDTH) -> np.ndarray:
    size = (width, max(1, round(width * picture.shape[0] / picture.shape[1])))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def four_panels(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Four pictures of one size by their labels, uint8 `[H,W,3]` each, two by two, with the labels in their corners."""
    height, width = next(iter(pictures.values())).shape[:2]
    narrow = round((PANEL_PIXELS * width / height) ** 0.5)
    first, second, third, fourth = (_labelled(_small(picture, narrow), label) for label, picture in pictures.items())
    return np.vstack([np.hstack([first, second]), np.hstack([third, fourth])])


def _labelled(picture: np.ndarray, label: str) -> np.ndarray:
    from matplotlib import get_data_path  # its fonts, for Pillow, which it brings
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", 19)
    ImageDraw.Draw(image).text((8, 6), label, font=font, fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def looping_clip(frames: Sequence[np.ndarray], fps: float) -> tuple[str, str]:
    """Frames, uint8 RGB `[H,W,3]`, as a looping WebP inside a URI, of at most LOOP_BYTES: a clip that is hard to compress has
    a lower quality, then fewer frames. And its middle frame as a picture that stands still."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]

    def webp(pictures: Sequence[Image.Image], quality: int, duration: int = 0) -> bytes:
        buffer = io.BytesIO()
        more = {"save_all": True, "append_images": pictures[1:], "duration": duration, "loop": 0} if len(pictures) > 1 else {}
        pictures[0].save(buffer, "WEBP", quality=quality, method=4, **more)
        return buffer.getvalue()

    for quality, every in ((70, 1), (45, 1), (25, 1), (25, 2), (25, 4)):
        moving = webp(images[::every], quality, round(1000 * every / fps))
        if len(moving) <= LOOP_BYTES:
            break
    uris = (base64.b64encode(data).decode() for data in (moving, webp(images[len(images) // 2 :][:1], 80)))
    first, second = (f"data:image/webp;base64,{uri}" for uri in uris)
    return first, second
