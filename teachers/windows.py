"""Sliding windows: how a teacher that sees a few seconds at a time labels every frame of a clip of any length.

    cut_windows   frame numbers of each window: every sampling offset in turn, with any overlap
    shares        the weight of each window in the logits of each of its frames
    infer         windows through a network, as many at once as fit into memory, averaged in logit space

A window of `length` frames, sampled every `stride`-th frame, spans `length * stride` frames of the clip and labels `length`
of them; the offsets 0 .. stride-1 label the others. The last window of an offset is padded by repeating its last frame, and
the outputs for the padding are discarded.

Where windows overlap, a frame's logits are the weighted mean over its windows. The weight falls linearly from a window's
middle to its ends, where the network sees only one side in time, so there is no seam between windows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

Device = torch.device | str

# Shape suffixes: N windows of a clip · B of a pass · T frames · h, w pixels of a map

PAIR = 2
"""Windows per pass on the CPU, in each of several threads. Two of the small ViSAGE's cost 1.4 times as much as one."""

MOST_WINDOWS = 8
"""Largest number of windows per pass: even one of ViSAGE's makes matrices of 5,000 rows.

Seventeen would have more than 2^31 numbers in the features at full size, which some of torch's CUDA operations refuse.
"""

USABLE = 0.8
"""Share of the free memory to plan with; the rest covers fragmentation and what grows faster than the batch."""


def sampling_stride(fps: float, sample_fps: float) -> int:
    """Frames of a video at `fps` from one sampled frame to the next at about `sample_fps`; at least 1.

    ValueError unless `fps` is a positive number.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"the clip's frame rate is {fps}; it must be a positive number of frames per second")
    return max(1, round(fps / sample_fps))


def cut_windows(count: int, stride: int, length: int, overlap: float = 0.0) -> list[np.ndarray]:
    """Frame numbers of each window over a clip of `count` frames, so that every frame is in at least one.

    For each offset 0..stride-1, every stride-th frame from there on is cut into runs of `length`. Each run repeats the last
    `overlap` (share of `length`, in [0, 1); ValueError otherwise) of the run before; the last run of an offset may be
    shorter. Without overlap every frame is in exactly one window, as in the released ViSAGE.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"windows overlap by {overlap} of their length; it must lie in [0, 1)")
    shared = min(round(overlap * length), length - 1)
    windows = []
    for offset in range(min(stride, count)):
        sampled = np.arange(offset, count, stride)
        starts = range(0, max(1, len(sampled) - shared), length - shared)
        windows += [sampled[start : start + length] for start in starts]
    return windows


def shares(windows: Sequence[np.ndarray], count: int, length: int) -> list[np.ndarray]:
    """For each window float32 `[len(window)]`: its weight in the logits of each of its frames.

    The weights of a frame sum to 1; for a frame in only one window the weight is exactly 1.
    """
    position = np.arange(length)
    taper = np.minimum(position + 1, length - position).astype(np.float64)
    total = np.zeros(count)
    for window in windows:
        total[window] += taper[: len(window)]
    return [(taper[: len(window)] / total[window]).astype(np.float32) for window in windows]


class BatchSize:
    """How many windows go through a network at once, remembered from clip to clip.

    On a CUDA device, unless `fixed`: the first pass takes one window and measures its memory, later passes take as many as
    fit, and half as many after an out-of-memory error. On the CPU: a pair in each of torch's threads, or `fixed` in all.
    """

    def __init__(self, device: Device, fixed: int = 0) -> None:
        self.device = torch.device(device)
        self.windows = fixed or 1
        self._fixed = fixed
        self._measured = bool(fixed)

    def passes(self, step: Callable[[Tensor], Tensor], waiting: Tensor) -> Iterator[Tensor]:
        """The result of `step` for each window, in order. `waiting` is `[N,...]`; `step` maps `[B,...]` to `[B,...]`.

        On the CPU, `step` is called from several threads at once, always with the same pairs and with torch limited to one
        thread each: the batch size and torch's division of work affect the last bits, and labels must depend on neither.
        Raises torch.OutOfMemoryError if even one window does not fit on the device.
        """
        return self._in_threads(step, waiting) if self.device.type == "cpu" else self._batches(step, waiting)

    def _in_threads(self, step: Callable[[Tensor], Tensor], waiting: Tensor) -> Iterator[Tensor]:
        # Inference mode and autocast hold for one thread; the pool's threads enter those of the caller.
        inference, low = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        threads = torch.get_num_threads()

        def in_thread(pair: Tensor) -> Tensor:
            with torch.inference_mode(inference), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                return step(pair)

        most = -(-self._fixed // PAIR) or threads
        pool = ThreadPoolExecutor(most, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for result in pool.map(in_thread, waiting.split(PAIR)):
                yield from result
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def _batches(self, step: Callable[[Tensor], Tensor], waiting: Tensor) -> Iterator[Tensor]:
        while len(waiting):
            batch = waiting[: self.windows]
            try:
                result = step(batch) if self._measured else self._measure(step, batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.windows = len(batch) // 2
                result = None
            if result is None:  # outside the handler, where the exception keeps the failed pass's memory alive
                torch.cuda.empty_cache()
                continue
            yield from result
            waiting = waiting[len(batch) :]

    def _measure(self, step: Callable[[Tensor], Tensor], window: Tensor) -> Tensor:
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        result = step(window)
        needed = torch.cuda.max_memory_allocated(self.device) - before
        free, _ = torch.cuda.mem_get_info(self.device)
        idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        self.windows, self._measured = windows_that_fit(needed, free + idle), True
        return result


def windows_that_fit(needed: int, free: int) -> int:
    """How many windows fit into `free` bytes when one needs `needed` bytes: 1 to MOST_WINDOWS."""
    return max(1, min(MOST_WINDOWS, int(USABLE * free) // max(1, needed)))


def infer(
    network: Callable[[Tensor], Tensor], inputs: Tensor, windows: Sequence[np.ndarray], length: int, batch: BatchSize
) -> Tensor:
    """A clip's prepared frames `[T,...]` through `network`, window by window -> float32 logits `[T,h,w]` on the CPU.

    `network` maps the frames of windows `[B,length,...]`, on the batch's device, to logits `[B,length,h,w]`; on the CPU it
    is called from several threads at once. A batch never mixes windows of two clips.
    """
    padding = [(0, length - len(window)) for window in windows]
    places = np.stack([np.pad(window, pad, mode="edge") for window, pad in zip(windows, padding, strict=True)])
    weights = np.stack([np.pad(w, pad) for w, pad in zip(shares(windows, len(inputs), length), padding, strict=True)])
    host = (inputs, torch.from_numpy(places), torch.from_numpy(weights))
    frames, places_NT, weights_NT = (tensor.to(batch.device, non_blocking=True) for tensor in host)
    logits_Thw: Tensor | None = None
    passes = batch.passes(lambda places_BT: network(frames[places_BT]), places_NT)
    for window, place_T, weight_T, out_Thw in zip(windows, places_NT, weights_NT, passes, strict=True):
        if logits_Thw is None:
            logits_Thw = torch.zeros(len(inputs), *out_Thw.shape[1:], device=batch.device)
        real = slice(len(window))
        logits_Thw[place_T[real]] += weight_T[real, None, None] * out_Thw[real].float()
    assert logits_Thw is not None, "a clip has at least one frame, so at least one window"
    return to_cpu(logits_Thw)


def to_cpu(result: Tensor) -> Tensor:
    """`result` on the CPU; from a CUDA device through pinned memory, several times as fast."""
    if result.device.type != "cuda":
        return result
    pinned = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    pinned.copy_(result, non_blocking=True)
    torch.cuda.current_stream(result.device).synchronize()
    return pinned


@contextmanager
def exact_float32(exact: bool = True) -> Iterator[None]:
    """Float32 on CUDA in full precision inside; afterwards as before.

    cuDNN's convolutions by default round their inputs to 10 bits (TF32), and so do matrix products where a program allows it.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    if exact:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """`net.eval()` inside; afterwards the mode it had."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network runs at `precision`: `fp32`, or `bf16`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
