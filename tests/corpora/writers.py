"""Writes tiny corpora in every layout: frame t has brightness 10 t, and its fixation is at x = 5 t."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.video import write_video

SIZE = (48, 80)
ROW = SIZE[0] // 2


def frame(t: int, size=SIZE) -> np.ndarray:
    return np.full((*size, 3), 10 * (t % 20), np.uint8)


def fixations(t: int, size=SIZE) -> np.ndarray:
    image = np.zeros(size, np.uint8)
    image[size[0] // 2, 5 * t % size[1]] = 255
    return image


def density(t: int, size=SIZE) -> np.ndarray:
    blurred = cv2.GaussianBlur(fixations(t, size).astype(np.float32), (0, 0), 4)
    return (blurred / blurred.max() * 255).astype(np.uint8)


def video(path: Path, frames: int, fps=25.0, size=SIZE, make=frame) -> Path:
    images = (make(t, size) for t in range(frames))
    write_video(path, fps, size, (image if image.ndim == 3 else np.repeat(image[..., None], 3, 2) for image in images))
    return path


def destroy(path: Path, number: int) -> None:
    """Overwrites the data of a video's packet, all but its start: it does not decode any more."""
    import av

    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        start, end = packet.pos + 8, packet.pos + packet.size
    data = bytearray(path.read_bytes())
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def folder(path: Path, frames: int, make=frame, name="{:04d}.png", first=1, size=SIZE) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for t in range(frames):
        assert cv2.imwrite(str(path / name.format(t + first)), make(t, size))
    return path


def _sparse(element, matrix: np.ndarray, kind: int, order: str) -> bytes:
    """Rows, the first element of every column, and the values that are not 0."""
    columns, rows = np.nonzero(matrix.T)
    starts = np.searchsorted(columns, np.arange(matrix.shape[1] + 1))
    values = matrix[rows, columns].astype(matrix.dtype.newbyteorder(order))
    return (
        element(5, rows.astype(order + "i4").tobytes())
        + element(5, starts.astype(order + "i4").tobytes())
        + element(kind, values.tobytes())
    )


def mat(path: Path, matrix: np.ndarray, name="I", compressed=True, order="<", sparse=False) -> Path:
    """A MATLAB file of version 5, as `save -v7` (compressed) or `save -v6` writes it."""
    kinds = {"uint8": (2, 9), "float64": (9, 6), "bool": (2, 9)}
    kind, matlab_class = kinds[str(matrix.dtype)]

    def element(type_: int, data: bytes) -> bytes:
        if len(data) <= 4:  # a small element: type and length share four bytes
            tag = struct.pack(order + "I", len(data) << 16 | type_)
            return tag + data.ljust(4, b"\0")
        return struct.pack(order + "II", type_, len(data)) + data + b"\0" * (-len(data) % 8)

    numbers = matrix.astype(matrix.dtype.newbyteorder(order)).tobytes(order="F")
    body = (
        element(6, struct.pack(order + "II", 5 if sparse else matlab_class, 0))
        + element(5, struct.pack(order + "ii", *matrix.shape))
        + element(1, name.encode())
        + (_sparse(element, matrix, kind, order) if sparse else element(kind, numbers))
    )
    whole = struct.pack(order + "II", 14, len(body)) + body
    if compressed:
        packed = zlib.compress(whole)
        whole = struct.pack(order + "II", 15, len(packed)) + packed
    mark = b"IM" if order == "<" else b"MI"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "H", 0x0100) + mark + whole)
    return path


# --- DHF1K, in its own layout and the four others --------------------------------------------------------------------


def annotation(place: Path, frames: int, maps=True) -> None:
    folder(place / "fixation", frames, fixations)
    if maps:
        folder(place / "maps", frames, density)


def official(root: Path, number: int, frames=6) -> None:
    video(root / "video" / f"{number:03d}.avi", frames, 30.0)
    annotation(root / "annotation" / f"{number:04d}", frames)
    cv2.imwrite(str(root / "annotation" / f"{number:04d}" / f"{frames:04d}.png"), frame(frames))  # as in the archive


def unisal(root: Path, number: int, frames=6) -> None:
    annotation(root / "annotation" / f"{number:04d}", frames)
    folder(root / "annotation" / f"{number:04d}" / "images", frames)


def tased(root: Path, number: int, frames=6) -> None:
    annotation(root / "annotation" / f"{number:04d}", frames)
    folder(root / "video" / f"{number:04d}", frames)


def salema(root: Path, number: int, frames=6) -> None:
    for name, make in (("frames", frame), ("fixations", fixations), ("maps", density)):
        folder(root / name / str(number), frames, make, "{}.png")


def vinet(root: Path, number: int, frames=6) -> None:
    annotation(root / f"{number:04d}", frames)
    folder(root / f"{number:04d}" / "images", frames)


DHF1K = {"official": official, "unisal": unisal, "tased": tased, "salema": salema, "vinet": vinet}


def export(root: Path, number: int, person: int, rows: list[tuple], short=False) -> Path:
    """Raw gaze of one observer: (microseconds, x, y, event); `short` in the format of record_mapping.m."""
    if short:
        path = root / "gaze_record" / f"P{person:03d}" / f"P{person:03d}_Trail{number:04d}.txt"
        lines = ["Time\tX\tY\tEvent", *(f"{t}\t{x}\t{y}\t{e}" for t, x, y, e in rows)]
    else:
        path = root / "exportdata_train" / f"P{person:02d}" / f"P{person:02d}_Trail{number:03d}.txt"
        head = "Time\tType\tTrial\tL Dia X [px]\tL Dia Y [px]\tL POR X [px]\tL POR Y [px]\tL Event Info"
        lines = [head, *(f"{t}\tSMP\t{number}\t16.2\t16.2\t{x}\t{y}\t{e}" for t, x, y, e in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- shots, mouse positions, tables ----------------------------------------------------------------------------------


def shot(root: Path, side: str, name: str, pattern: str, frames=5, first=1) -> None:
    for part, make in (("images", frame), ("fixation", fixations), ("maps", density)):
        folder(root / side / name / part, frames, make, pattern, first)


def hollywood2(root: Path) -> None:
    """Three shots of two films to train on; a shot's numbers continue those of the one before."""
    shot(root, "training", "actioncliptrain00001_1", "actioncliptrain00001_{:05d}.png")
    shot(root, "training", "actioncliptrain00001_2", "actioncliptrain00001_{:05d}.png", first=6)
    shot(root, "training", "actioncliptrain00002_1", "actioncliptrain00002_{:05d}.png")
    shot(root, "testing", "actioncliptest00001_1", "actioncliptest00001_{:05d}.png")


def ucf_sports(root: Path) -> None:
    for side, names in (("training", ("Diving-Side-001", "Golf-Swing-Back-001")), ("testing", ("Diving-Side-002",))):
        for name in names:
            shot(root, side, name, f"{name[:-4]}_{name[-3:]}_{{:03d}}.png")


def avimos(root: Path, names=("0001", "0002", "0003"), frames=6, ntire=False) -> None:
    """Two training clips and a public test clip; the pixel of every frame is fixated twice, a second one once."""
    for i, name in enumerate(names):
        video(root / "Videos" / f"{name}.mp4", frames, 30.0)
        side = "Train" if i < 2 else "Test"
        video(root / f"Saliency{side}" / side / f"{name}.mp4", frames, 30.0, make=density)
        clip = root / f"Fixations{side}" / side / name
        folder(clip / ("fixations_maps" if ntire else "fixations"), frames, fixations, "{:03d}.png")
        points = [[[ROW, 5 * t], [ROW, 5 * t], [3, 70]] for t in range(frames)]
        (clip / "fixations.json").write_text(json.dumps(points), encoding="utf-8")
    suffix = ".mp4" if ntire else ""
    train, test = [f"{n}{suffix}" for n in names[:2]], [f"{n}{suffix}" for n in names[2:]]
    split = {"train": train, "public_test": test, "private_test": []}
    (root / "TrainTestSplit.json").write_text(json.dumps(split), encoding="utf-8")


def images(root: Path, count=3, size=SIZE, suffix=".jpg") -> Path:
    """Still images with two observers each: `image,subject,order,x_norm,y_norm,duration_ms`."""
    (root / "img").mkdir(parents=True, exist_ok=True)
    rows = ["image,subject,order,x_norm,y_norm,duration_ms"]
    for i in range(1, count + 1):
        cv2.imwrite(str(root / "img" / f"{i:03d}{suffix}"), frame(i, size))
        rows += [f"{i:03d}{suffix},{who},{n},{0.1 * i + 0.01 * n:.4f},{0.5:.4f},200" for who in (1, 2) for n in (1, 2)]
    (root / "fixations.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
