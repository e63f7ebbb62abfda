"""Labels clips with a teacher into the soft-label store; goes on at the next clip.

    decode and prepare (worker threads) -> the teacher's network -> float16 on disk (one thread)
          the next clips                      this clip                  the one before

All three work at once, so the accelerator waits for neither video nor disk. What is held in memory is small frames, as the
teacher prepares them, of the clip in work and of `workers` clips ahead: never a clip at full size.

The ranks of a torchrun job share the clips out by frame count. What a clip's labels are does not depend on who made them:
a pass through the network never mixes clips, and the CPU's batches are the same everywhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from distill.corpora import Clip
from distill.labels.store import LabelStore
from distill.recipe.keys import Label
from distill.run.errors import Interrupted, UsageError
from distill.run.parallel import job
from distill.run.progress import Narrator, cancelling_pool
from distill.teachers import Inference, Lookup, Prepared, Teacher

LabelsOf = Callable[[Sequence[Clip]], Generator[Tensor, None, None]]
"""Clips -> their logits `[T,h,w]`, one clip after the other, in order."""

CHUNK = 8  # frames at full size that a worker holds


def inference(options: Label, device: torch.device) -> Inference:
    """How a teacher runs on `device`: the recipe's choices, `auto` decided."""
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return Inference(options.overlap, precision, options.compile, options.batch)


def computed_by(teacher: Teacher, workers: int = 2, pin: bool = False) -> LabelsOf:
    """Labels by a teacher that looks at frames; `pin` its inputs where it runs on CUDA, so that copies overlap."""

    def labels(clips: Sequence[Clip]) -> Generator[Tensor, None, None]:
        over = threading.Event()
        rest = iter(clips)
        with cancelling_pool(workers) as pool:
            ahead: deque[Future[Prepared]] = deque()

            def start(count: int) -> None:
                ahead.extend(pool.submit(decode, clip, teacher, pin, over) for clip in islice(rest, count))

            try:
                start(workers)
                for clip in clips:
                    inputs = ahead.popleft().result()
                    start(1)
                    logits = _infer(teacher, clip, inputs)
                    del inputs
                    yield logits
            finally:
                over.set()

    return labels


def _infer(teacher: Teacher, clip: Clip, inputs: Prepared) -> Tensor:
    try:
        return teacher.infer(inputs, clip.fps)
    except torch.OutOfMemoryError as error:
        told = str(error).split(". ")
        raise UsageError(
            f"clip {clip.id}: teacher {teacher.name} does not fit into the GPU's memory, not even one window "
            f"({'. '.join(told[:3])}); free the GPU, or choose a smaller teacher"
        ) from None
    except ValueError as error:
        raise UsageError(f"clip {clip.id}: teacher {teacher.name}: {error}") from None


def decode(clip: Clip, teacher: Teacher, pin: bool = False, over: threading.Event | None = None) -> Prepared:
    """All frames of a clip as the teacher prepares them, a few at a time. Stops early, with Interrupted, once `over`."""
    room: Prepared | None = None
    frames, done = islice(clip.read(), clip.frames), 0
    while piece := list(islice(frames, CHUNK)):
        if over is not None and over.is_set():
            raise Interrupted(f"decoding clip {clip.id}")
        try:
            prepared = teacher.prepare(np.stack(piece))
        except ValueError as error:
            raise UsageError(f"clip {clip.id}: teacher {teacher.name}: {error}") from None
        room = _room_for(prepared, clip.frames, pin) if room is None else room
        _put(prepared, room, done)
        done += len(piece)
    if room is None:
        raise UsageError(f"clip {clip.id} has no frames; leave it out with corpus.skip")
    return room


def _room_for(piece: Prepared, frames: int, pin: bool) -> Prepared:
    if isinstance(piece, tuple):
        return tuple(_room_for(part, frames, pin) for part in piece)
    return torch.empty((frames, *piece.shape[1:]), dtype=piece.dtype, pin_memory=pin)


def _put(piece: Prepared, room: Prepared, first: int) -> None:
    if isinstance(piece, Tensor):
        assert isinstance(room, Tensor)
        room[first : first + len(piece)] = piece
        return
    for part, place in zip(piece, room, strict=True):
        _put(part, place, first)


def looked_up_in(teacher: Lookup) -> LabelsOf:
    """Labels by a teacher that knows clips by name."""

    def labels(clips: Sequence[Clip]) -> Generator[Tensor, None, None]:
        for clip in clips:
            try:
                yield teacher.logits(clip.name, clip.frames, clip.corpus)
            except ValueError as error:
                raise UsageError(str(error)) from None

    return labels


def label(clips: Sequence[Clip], store: LabelStore, labels_of: LabelsOf, narrator: Narrator) -> int:
    """Labels the clips that the store lacks, this rank's share of them; returns how many it labelled.

    On rank 0 it returns when all ranks are through and the store is whole. Raises Interrupted after the clip in work.
    """
    ranks = job()
    lacking = set(ranks.agree("lacking", lambda: [clip.id for clip in clips if clip.id not in store], narrator.stop))
    missing = [clip for clip in clips if clip.id in lacking]
    if len(missing) < len(clips):
        narrator.say(f"label: {len(clips) - len(missing)} of {len(clips)} clips are in the store")
    mine = share_out(missing, ranks.world)[ranks.rank]
    total, to_do = (sum(clip.frames for clip in some) for some in (clips, missing))
    started, seen = time.monotonic(), 0
    with narrator.bar("label", total, total - to_do, unit="frames") as bar, ThreadPoolExecutor(1) as writer:

        def tell(frames: int, note: str = "") -> None:
            nonlocal seen
            now = ranks.count("frames", frames) if ranks.world > 1 else seen + frames
            rate = now / max(time.monotonic() - started, 1e-9)
            bar.advance(now - seen, note=f"{rate:.3g} frames/s {note}".rstrip())
            seen = now

        writing: Future[None] | None = None
        with closing(labels_of(mine)) as labels:
            for number, (clip, logits) in enumerate(zip(mine, labels, strict=True), 1):
                if len(logits) != clip.frames:
                    raise UsageError(
                        f"teacher {store.teacher['name']} gave {len(logits)} maps for clip {clip.id} of {clip.frames} frames"
                    )
                if writing is not None:
                    writing.result()
                writing = writer.submit(store.write, clip.id, logits.numpy())
                tell(clip.frames, f"clip {clip.id}")
                if number < len(mine) and (narrator.stop() or ranks.ended()):
                    writing.result()
                    stored = sum(clip.id in store for clip in clips)
                    raise Interrupted(f"labelling, after clip {clip.id}, {stored} of {len(clips)}")
        if writing is not None:
            writing.result()
        ranks.finish(narrator.stop, meanwhile=lambda: tell(0))
    if ranks.leads and (lost := [clip.id for clip in missing if clip.id not in store]):
        raise UsageError(
            f"{store.path} lacks clip {lost[0]}, which another rank has labelled; all ranks need the same run directory"
        )
    if missing:
        seconds = time.monotonic() - started
        narrator.say(f"label: {to_do:,} frames in {seconds:.0f} s, {to_do / seconds:.3g} frames/s")
    return len(mine)


def share_out(clips: Sequence[Clip], ranks: int) -> list[list[Clip]]:
    """The clips of each rank: the longest first, each to the rank that has the fewest frames so far. Ties go to the first."""
    shares: list[list[Clip]] = [[] for _ in range(ranks)]
    frames = [0] * ranks
    for clip in sorted(clips, key=lambda clip: -clip.frames) if ranks > 1 else clips:
        least = frames.index(min(frames))
        shares[least].append(clip)
        frames[least] += clip.frames
    return shares
