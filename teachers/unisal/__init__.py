"""UNISAL: one small network for images and video, with some domain-specific parameters.

    frames -> MobileNetV2 + learned centre priors -> post-CNN -> + ConvGRU -> decoder with two skips -> 41x41 blur -> log-density
                                                        static input bypasses the recurrence ^

Four kinds of data, the *domains* DHF1K, Hollywood, UCFSports and SALICON, share all convolutions but have separate batch
norms, priors, last convolution and blur (Droste, Jiao and Noble, *Unified Image and Video Saliency Modeling*, 2020).

    net.py      `UnisalNet`, name for name, so that the released `weights_best.pth` loads
    frozen.py   `frozen`, the same network for inference, in a third of the time
    teacher.py  `Unisal`: clip in, one map of logits per frame out
"""

from distill.teachers.unisal.net import SIZES, STATIC_DOMAIN, UnisalNet, load_trunk
from distill.teachers.unisal.teacher import Unisal, input_size, normalise, scale, stream_count

__all__ = ["SIZES", "STATIC_DOMAIN", "Unisal", "UnisalNet", "input_size", "load_trunk", "normalise", "scale", "stream_count"]
