"""Labels clips with a teacher into the soft-label store, and resumes at the first clip that the store lacks.

    decode and prepare (worker threads) -> the teacher's network -> float16 on disk (one thread)
           the next clips                      this clip                the previous clip

All three run at the same time, so the accelerator waits neither for video nor for the disk. Memory holds the small frames
that the teacher prepares, of the current clip and of `workers` clips ahead: never a whole clip at full size.

The ranks of a torchrun job divide the clips by frame count. A clip's labels do not depend on the rank: no pass through the
network mixes clips, and batches on the CPU have the same size everywhere.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.corpora import Clip
from distill.labels.store import LabelStore
from distill.recipe.keys import Label
from distill.run.errors import Interrupted, UsageError, usage_errors
from distill.run.machine.parallel import job
from distill.run.progress import Narrator, cancelling_pool
from distill.teachers import Inference, Lookup, Prepared, Teacher

LabelsOf = Callable[[Sequence[Clip]], Generator[Tensor, None, None]]
"""Clips -> their logits `[T,h,w]`, clip by clip, in order."""

CHUNK = 8  # full-size frames that a worker holds


def inference(options: Label, device: torch.device) -> Inference:
    """The recipe's inference options on `device`, where `auto` becomes bf16 on CUDA and fp32 elsewhere."""
    automatic = "bf16" if device.type == "cuda" else "fp32"
    precision = automatic if options.precision == "auto" else options.precision
    return Inference(options.overlap, precision, options.compile, options.batch)


def computed_by(teacher: Teacher, workers: int = 2, pin: bool = False) -> LabelsOf:
    """Labels by a teacher that sees frames. `pin`: decode into pinned memory, so that copies to a CUDA device overlap."""

    def labels(clips: Sequence[Clip]) -> Generator[Tensor, None, None]:
        over = threading.Event()
        with cancelling_pool(workers) as pool:
            started = (pool.submit(decode, clip, teacher, pin, over) for clip in clips)
            try:
                ahead = deque(islice(started, workers))
                for clip in clips:
                    inputs = ahead.popleft().result()
                    ahead.extend(islice(started, 1))
                    logits = _infer(teacher, clip, inputs)
                    del inputs
                    yield logits
            finally:
                over.set()

    return labels


def _infer(teacher: Teacher, clip: Clip, inputs: Prepared) -> Tensor:
    try:
        with usage_errors(f"clip {clip.id}: teacher {teacher.name}: "):
            return teacher.infer(inputs, clip.fps)
    except torch.OutOfMemoryError as error:
        reason = ". ".join(str(error).split(". ")[:3])
        raise UsageError(
            f"clip {clip.id}: teacher {teacher.name} does not fit into the GPU's memory, not even one window "
            f"({reason}); free the GPU, or choose a smaller teacher"
        ) from None


def decode(clip: Clip, teacher: Teacher, pin: bool = False, over: threading.Event | None = None) -> Prepared:
    """All frames of a clip, prepared by the teacher a few at a time. Raises Interrupted as soon as `over` is set."""
    whole: Prepared | None = None
    frames, done = islice(clip.read(), clip.frames), 0
    while chunk := list(islice(frames, CHUNK)):
        if over is not None and over.is_set():
            raise Interrupted(f"decoding clip {clip.id}")
        with usage_errors(f"clip {clip.id}: teacher {teacher.name}: "):
            prepared = teacher.prepare(np.stack(chunk))
        whole = _insert(prepared, whole, done, clip.frames, pin)
        done += len(chunk)
    if whole is None:
        raise UsageError(f"clip {clip.id} has no frames; leave it out with corpus.skip")
    return whole


def _insert(chunk: Prepared, whole: Any, first: int, frames: int, pin: bool) -> Prepared:
    """A whole clip's prepared frames, with `chunk` at its place; made with the first chunk, where `whole` is None."""
    if isinstance(chunk, tuple):
        targets = whole or (None,) * len(chunk)
        return tuple(_insert(part, target, first, frames, pin) for part, target in zip(chunk, targets, strict=True))
    whole = torch.empty((frames, *chunk.shape[1:]), dtype=chunk.dtype, pin_memory=pin) if whole is None else whole
    whole[first : first + len(chunk)] = chunk
    return whole


def label_names(clip: Clip) -> list[str]:
    """The names under which labels of a clip are looked for, the first that there is: FOLDER/STEM of its file, which names one clip
    wherever it was labelled; its id; and its id in its part of a mixed corpus. A set may be called like its corpus: where `images.001`
    is an id of `images` alone, the last is a guess, and so comes last."""
    return list(dict.fromkeys((clip.name, clip.id, clip.id.removeprefix(f"{clip.corpus}."))))


def looked_up_in(teacher: Lookup) -> LabelsOf:
    """Labels by a teacher that looks clips up, by their `label_names`."""

    def labels(clips: Sequence[Clip]) -> Generator[Tensor, None, None]:
        for clip in clips:
            with usage_errors():
                names = label_names(clip)
                name = next((name for name in names if teacher.has(name, clip.corpus)), clip.id)
                logits = teacher.logits(name, clip.frames, clip.corpus)
            yield logits

    return labels


def by_part(common: LabelsOf, of_part: Mapping[str, LabelsOf]) -> LabelsOf:
    """Labels of some parts of the corpus by teachers of their own, and of all others by the common one."""

    def labels(clips: Sequence[Clip]) -> Generator[Tensor, None, None]:
        for labels_of, some in groupby(clips, key=lambda clip: of_part.get(clip.corpus, common)):
            yield from labels_of(list(some))

    return labels


def label(clips: Sequence[Clip], store: LabelStore, labels_of: LabelsOf, narrator: Narrator) -> int:
    """Labels this rank's share of the clips that the store lacks; returns how many those are.

    On rank 0 it returns when all ranks are done and the store is complete. Raises Interrupted after the current clip.
    """
    ranks = job()
    missing_ids = set(
        ranks.agree("lacking", lambda: [clip.id for clip in clips if not store.holds(clip.id, clip.frames)], narrator.stop)
    )
    missing = [clip for clip in clips if clip.id in missing_ids]
    if len(missing) < len(clips):
        narrator.say(f"label: {len(clips) - len(missing)} of {len(clips)} clips are in the store")
    mine = share_out(missing, ranks.world)[ranks.rank]
    total, to_do = (sum(clip.frames for clip in some) for some in (clips, missing))
    started, labelled = time.monotonic(), 0
    with narrator.bar("label", total, total - to_do, unit="frames") as bar, ThreadPoolExecutor(1) as writer:

        def advance(frames: int, note: str = "") -> None:
            """Moves the bar on by these frames and by those of the other ranks."""
            nonlocal labelled
            now = ranks.count("frames", frames) if ranks.world > 1 else labelled + frames
            rate = now / max(time.monotonic() - started, 1e-9)
            bar.advance(now - labelled, note=f"{rate:.3g} frames/s {note}".rstrip())
            labelled = now

        writing: Future[None] = writer.submit(lambda: None)
        with closing(labels_of(mine)) as labels:
            for number, (clip, logits) in enumerate(zip(mine, labels, strict=True), 1):
                if len(logits) != clip.frames:
                    raise UsageError(
                        f"teacher {store.teacher['name']} gave {len(logits)} maps for clip {clip.id} of {clip.frames} frames"
                    )
                writing.result()
                writing = writer.submit(store.write, clip.id, logits.numpy())
                advance(clip.frames, f"clip {clip.id}")
                if number < len(mine) and (narrator.stop() or ranks.ended()):
                    writing.result()
                    stored = sum(store.holds(clip.id, clip.frames) for clip in clips)
                    raise Interrupted(f"labelling, after clip {clip.id}, {stored} of {len(clips)}")
        writing.result()
        ranks.finish(narrator.stop, meanwhile=lambda: advance(0))
    if ranks.leads and (lost := [clip.id for clip in missing if not store.holds(clip.id, clip.frames)]):
        raise UsageError(
            f"{store.path} lacks clip {lost[0]}, which another rank has labelled; all ranks need the same run directory"
        )
    if missing:
        seconds = time.monotonic() - started
        narrator.say(f"label: {to_do:,} frames in {seconds:.0f} s, {to_do / seconds:.3g} frames/s")
    return len(mine)


def share_out(clips: Sequence[Clip], ranks: int) -> list[list[Clip]]:
    """The clips of each rank: longest first, each to the rank with the fewest frames so far; of equal ranks, to the first.

    A part's clips follow each other: it may have a teacher of its own, and decoding ahead starts anew with each teacher.
    """
    shares: list[list[Clip]] = [[] for _ in range(ranks)]
    frames = [0] * ranks
    for clip in sorted(clips, key=lambda clip: -clip.frames) if ranks > 1 else clips:
        least = frames.index(min(frames))
        shares[least].append(clip)
        frames[least] += clip.frames
    return [sorted(share, key=lambda clip: clip.corpus) for share in shares] if ranks > 1 else shares
