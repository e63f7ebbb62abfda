"""Soft labels computed elsewhere, per clip: `CLIP.npz` or a folder `CLIP/` of 8-bit PNGs in order of their names.

An npz holds `maps` uint8 `[T,h,w]` and `peak` float32 `[T]`: the saliency of frame t is maps[t] / 255 * peak[t], in
[0, 1]. PNGs have a peak of 1.
"""

import hashlib
import re
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from torch import Tensor

MAX_WIDTH = 160  # pixels that are kept; a 640 px map would take 16 times the disk


class MapsTeacher:
    """Looks maps up in a folder. Raises ValueError for a folder or maps that cannot be used."""

    name = "maps"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(
                f"teacher.maps {folder} is not a folder; give the one that holds CLIP.npz files with --maps"
            )
        self.folder = folder
        if not any(entry.suffix == ".npz" or entry.is_dir() for entry in folder.iterdir()):
            raise ValueError(f"teacher.maps {folder} holds neither CLIP.npz files nor folders of PNGs")

    def has(self, clip_id: str) -> bool:
        """Whether there is something for a clip; it may still be damaged."""
        return (self.folder / f"{clip_id}.npz").exists() or (self.folder / clip_id).is_dir()

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all maps."""
        digest = hashlib.sha256()
        for path in sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in (".npz", ".png")):
            digest.update(f"{path.relative_to(self.folder)} {path.stat().st_size}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def logits(self, clip_id: str, frames: int) -> Tensor:
        """The clip's logits, float32 `[frames,h,w]`."""
        npz, pngs = self.folder / f"{clip_id}.npz", self.folder / clip_id
        if npz.exists():
            maps, peak, source = *_read_npz(npz), npz
        elif pngs.is_dir():
            maps, source = _read_pngs(pngs), pngs
            peak = np.ones(len(maps), np.float32)
        else:
            raise ValueError(
                f"teacher.maps has nothing for clip {clip_id}: neither {npz} nor {pngs}/; add it, or corpus.skip the clip"
            )
        if len(maps) != frames:
            raise ValueError(f"{source} has {len(maps)} maps, clip {clip_id} has {frames} frames; they must agree")
        bad = ~np.isfinite(peak) | (peak < 0) | (peak > 1)
        if bad.any():
            raise ValueError(
                f"{source}, frame {int(bad.argmax()) + 1}: peak is {peak[bad.argmax()]}, where it must be in [0, 1] (clip {clip_id})"
            )
        if maps.shape[2] > MAX_WIDTH:  # averaged before the logit, several times what a student's grid resolves
            size = (MAX_WIDTH, max(1, round(maps.shape[1] * MAX_WIDTH / maps.shape[2])))
            maps = np.stack([cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA) for m in maps])
        saliency = torch.from_numpy(maps.astype(np.float32) * (peak[:, None, None] / 255))
        # Zero and one are 8-bit roundings: hold them half a step away, where their logits are finite.
        half = torch.from_numpy(np.maximum(peak, 1 / 255)[:, None, None] / 510).float()
        return torch.logit(torch.clamp(saliency, half, 1 - half))


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            maps, peak = file["maps"], file["peak"]
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is no npz with `maps` and `peak`: {error}") from None
    if maps.dtype != np.uint8 or maps.ndim != 3 or peak.shape != maps.shape[:1]:
        raise ValueError(
            f"{path}: want maps uint8 [T,h,w] and peak [T], got {maps.dtype} {list(maps.shape)} and {list(peak.shape)}"
        )
    return maps, peak.astype(np.float32)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def _read_pngs(folder: Path) -> np.ndarray:
    maps: list[np.ndarray] = []
    for path in sorted(folder.glob("*.png"), key=_by_number):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise ValueError(f"{path} does not open as an image")
        if maps and image.shape != maps[0].shape:
            raise ValueError(
                f"{path} is {image.shape[1]}x{image.shape[0]} px, the maps before it {maps[0].shape[1]}x{maps[0].shape[0]}"
            )
        maps.append(image)
    if not maps:
        raise ValueError(f"{folder} holds no PNGs")
    return np.stack(maps)
