"""ViSAGE (2026): two experts that read a video trunk's intermediate layers, fused in logit space.

    frames -> preprocess -> InternVideo2, four taps -> expert 1: temporal gate, CLS FiLM, centre prior -> fuse -> logits
                                                    -> expert 2: multi-scale fusion, auxiliary heads   ->

    config.py    the shape of the ensemble and its sampling rate; the released layout
    experts.py   the two experts, layer for layer and name for name those of the release, at any width
    net.py       trunk, experts and fusion as one network
    weights.py   released files, and random weights
    teacher.py   `Visage`: clip in, one map of logits per frame out

`VisageNet` joins trunk and experts in one of three ways:

    shared_trunk, lora_rank 0     one trunk, one pass: the small teacher of the default run
    shared_trunk, lora_rank 64    one trunk in memory, a LoRA per expert, one pass per expert: the released pair
    shared_trunk=False            a trunk per expert with its LoRA merged in: less work, more memory

Numbers in layer names (5, 11, 17, 23) are those of the released keys; they mean the four taps, shallow to deep.
"""

from distill.teachers.visage.config import VisageConfig
from distill.teachers.visage.experts import KINDS, Expert1, Expert2
from distill.teachers.visage.net import VisageNet, fuse
from distill.teachers.visage.teacher import Visage, normalise, preprocess, resize
from distill.teachers.visage.weights import expert_kind, load_expert, load_released, random_net

__all__ = ["KINDS", "Expert1", "Expert2", "Visage", "VisageConfig", "VisageNet"]
__all__ += ["expert_kind", "fuse", "load_expert", "load_released", "normalise", "preprocess", "random_net", "resize"]
