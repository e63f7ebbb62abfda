"""Learning rates and averaging as functions of the step; no state."""

import math


def half_cosine(progress: float) -> float:
    """From 1 at progress 0 down to 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """The student's rate, as a share of the peak: linear warm-up over `warmup` (a share of the steps), cosine down to a hundredth."""
    rising = max(1, round(warmup * steps))
    progress = max(0.0, (step - rising) / max(1, steps - rising))
    return min(1.0, (step + 1) / rising) * (0.01 + 0.99 * half_cosine(progress))


def visage_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The rate of ViSAGE's fine-tuning: from a hundredth of the peak up to it, then a cosine down to 1e-6."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (0.01 + (1 - 0.01) * step / rising)
    end = min(1e-6, peak)
    return end + (peak - end) * half_cosine((step - rising) / max(1, steps - rising))


def tiny_visage_share(step: int, steps: int) -> float:
    """The tiny ViSAGE's rate, as a share of the peak: a cosine over all steps, damped by a warm-up over a twentieth of them."""
    return min(1.0, (step + 1) / max(1, steps // 20)) * half_cosine(step / steps)


def ema_decay(largest: float, step: int) -> float:
    """Decay of the averaged weights at a step, from 0: small at first, so that the start is soon forgotten."""
    return min(largest, (step + 1) / (step + 10))
