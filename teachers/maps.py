"""Soft labels computed elsewhere. A folder holds, for a clip:

    CLIP.npz          maps uint8 [T,h,w] and peak float32 [T]: the saliency of frame t is maps[t] / 255 * peak[t], in [0, 1]
                      CLIP is the clip's id, or FOLDER/STEM of its file, in the layouts with a gaze table
    CLIP/*.png        8-bit PNGs in the order of their numbers, with a peak of 1
    SET.npz           for still images: also names [N]; maps and peak have a row per image, clip SET/1001 that of 1001.jpg

The parts of a mixed corpus may have a folder each.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import torch
from torch import Tensor

MAX_WIDTH = 160  # pixels of stored maps; a 640 px map would take 16 times the disk space
Maps = tuple[np.ndarray, np.ndarray]  # uint8 [T,h,w], float32 [T]


class MapsTeacher:
    """Looks up maps in one folder, or in one folder per part of the corpus. ValueError for unusable folders or maps."""

    name = "maps"

    def __init__(self, folders: Path | Mapping[str, Path]) -> None:
        self.folders = {"": folders} if isinstance(folders, Path) else dict(folders)
        for folder in self.folders.values():
            if not folder.is_dir():
                raise ValueError(f"teacher.maps {folder} is not a folder; give the folder of CLIP.npz files as --maps")
            if not any(entry.suffix == ".npz" or entry.is_dir() for entry in folder.iterdir()):
                raise ValueError(f"teacher.maps {folder} holds neither CLIP.npz files nor folders of PNGs")
        self._sets: dict[Path, Maps] = {}

    def _folder(self, part: str) -> Path:
        return self.folders.get(part) or next(iter(self.folders.values()))

    @cached_property
    def _images(self) -> dict[Path, dict[str, list[tuple[Path, int]]]]:
        """File and row of each still image, by folder, under SET/NAME and under NAME."""
        images: dict[Path, dict[str, list[tuple[Path, int]]]] = {}
        for folder in set(self.folders.values()):
            rows = images.setdefault(folder, {})
            for path in sorted(folder.glob("*.npz")):
                for row, name in enumerate(_image_names(path)):
                    stem = Path(name).stem
                    rows.setdefault(f"{path.stem}/{stem}", []).append((path, row))
                    rows.setdefault(stem, []).append((path, row))
        return images

    def _image(self, folder: Path, name: str) -> tuple[Path, int] | None:
        rows = self._images[folder]
        for key in (name, Path(name).name):
            if len(places := rows.get(key, [])) == 1:
                return places[0]
        return None

    def has(self, name: str, part: str = "") -> bool:
        """Whether there are maps for a clip; they may still be damaged."""
        found = any(Path(place).exists() for place in self.places(name, part))
        return found or self._image(self._folder(part), name) is not None

    def places(self, name: str, part: str = "") -> list[str]:
        """Where the maps of a clip are looked for, beside the sets of images; a folder with a slash at its end."""
        place = self._folder(part) / name
        return [f"{place}.npz", f"{place}/", f"{place}.png"]

    def fingerprint(self) -> str:
        """SHA-256, in hex, over the names and contents of all maps."""
        digest = hashlib.sha256()
        for folder in dict.fromkeys(self.folders.values()):
            for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".npz", ".png")):
                digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _find(self, name: str, part: str) -> tuple[np.ndarray, np.ndarray, Path]:
        folder = self._folder(part)
        npz, pngs, png = map(Path, self.places(name, part))
        if npz.exists() and not _image_names(npz):
            return *_read_npz(npz), npz
        if (image := self._image(folder, name)) is not None:
            path, row = image
            if path not in self._sets:
                self._sets[path] = _read_npz(path)
            maps, peak = self._sets[path]
            return maps[row : row + 1], peak[row : row + 1], path
        if pngs.is_dir() or png.exists():
            maps, source = (_read_pngs(pngs), pngs) if pngs.is_dir() else (_read_png(png)[None], png)
            return maps, np.ones(len(maps), np.float32), source
        raise ValueError(
            f"teacher.maps has nothing for clip {name}: there is no {npz}, {pngs}/ or {png}; add it, or corpus.skip the clip"
        )

    def logits(self, name: str, frames: int, part: str = "") -> Tensor:
        """The logits of clip `name` of a part of the corpus, float32 `[frames,h,w]`, at most 160 pixels wide.

        Raises ValueError for missing or damaged maps, and for another number of frames.
        """
        maps, peak, source = self._find(name, part)
        if len(maps) != frames:
            raise ValueError(f"{source} has {len(maps)} maps, clip {name} has {frames} frames; they must agree")
        bad = ~np.isfinite(peak) | (peak < 0) | (peak > 1)
        if bad.any():
            frame = int(bad.argmax())
            raise ValueError(f"{source}, frame {frame + 1}: peak is {peak[frame]}, not in [0, 1] (clip {name})")
        if maps.shape[2] > MAX_WIDTH:  # averaged before the logit; still several times a student's grid
            size = (MAX_WIDTH, max(1, round(maps.shape[1] * MAX_WIDTH / maps.shape[2])))
            maps = np.stack([cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA) for m in maps])
        saliency = torch.from_numpy(maps.astype(np.float32) * (peak[:, None, None] / 255))
        # 8-bit zeros and ones are rounded values: clamp to half a step away, where logits are finite.
        half = torch.from_numpy(np.maximum(peak, 1 / 255)[:, None, None] / 510).float()
        return torch.logit(torch.clamp(saliency, half, 1 - half))


def _image_names(path: Path) -> list[str]:
    """The names of the images in the npz file of a set; empty for that of a clip."""
    try:
        with ZipFile(path) as file:
            if "names.npy" not in file.namelist():
                return []
        with np.load(path, allow_pickle=False) as arrays:
            return [str(name) for name in arrays["names"]]
    except Exception:
        return []  # reading it reports the error


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            maps, peak = file["maps"], file["peak"]
    except Exception as error:  # zip, zlib and numpy each have their own
        raise ValueError(f"{path} is not an npz file with `maps` and `peak`: {error}") from None
    if maps.dtype != np.uint8 or maps.ndim != 3 or peak.shape != maps.shape[:1]:
        raise ValueError(
            f"{path}: expected maps uint8 [T,h,w] and peak [T], got {maps.dtype} {list(maps.shape)} and {list(peak.shape)}"
        )
    return maps, peak.astype(np.float32)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def _read_pngs(folder: Path) -> np.ndarray:
    maps: list[np.ndarray] = []
    for path in sorted(folder.glob("*.png"), key=_by_number):
        image = _read_png(path)
        if maps and image.shape != maps[0].shape:
            (height, width), (rows, columns) = image.shape, maps[0].shape
            raise ValueError(f"{path} is {width}x{height} px, the maps before it {columns}x{rows}")
        maps.append(image)
    if not maps:
        raise ValueError(f"{folder} holds no PNGs")
    return np.stack(maps)


def _read_png(path: Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)  # imread takes no name that is not UTF-8
    except (OSError, cv2.error):  # not there, or empty
        image = None
    if image is None:
        raise ValueError(f"{path} does not open as an image")
    return image
