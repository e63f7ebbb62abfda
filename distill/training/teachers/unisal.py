"""Trains UNISAL on images and videos together, by its published recipe, on a corpus's ground truth.

Every batch is of one domain: images, or windows of videos. The convolutions learn from all domains; a domain's norms, priors
and blur learn from it alone: those of the others are not in the batch's graph, get no gradient, and the optimizer skips what
has none. Images bypass the recurrence and do not train it.

    frames/unisal/CLIP.frames.npy   uint8 [T,h,w,3], as the network sees them, 6 per second: 430 KB for a frame of 224x384
    frames/unisal/CLIP.truth.npy    uint8 [T,2,h,w]: density (maximum 255) and fixations (0 or 1)

An epoch is one pass over the clips. The recipe is that of Droste, Jiao and Noble (2020) and its code: the defaults of the
recipe's section [unisal], and the constants below.

Legend: B clips · T frames · C channels · H, W pixels · N frames of a batch that have fixations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.corpora import Clip, density_map, fixation_map
from distill.recipe.keys import Unisal as UnisalConfig
from distill.run.errors import UsageError, usage_errors
from distill.run.files import ArrayFile
from distill.teachers import unisal
from distill.teachers.unisal import SIZES, STATIC_DOMAIN, Unisal, UnisalNet, normalise, scale
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.training import checkpoint
from distill.training.cache import Cached, array_files, fill
from distill.training.loop import Losses, Moment, Place, Task, TrainingContext, fit

EPS = 1e-8
VIDEO_DOMAINS = tuple(domain for domain in SIZES if domain != STATIC_DOMAIN)
MOMENTUM, WEIGHT_DECAY, TRUNK_WEIGHT_DECAY = 0.9, 1e-4, 1e-5  # of SGD
TRUNK_LR = 0.1  # the trunk's learning rate, as a share of the others'; a trunk with random weights learns like the rest
FROZEN_EPOCHS = 2  # before a trained trunk learns at all
MAX_NORM = 2.0  # of the gradient
IMAGE_WEIGHT = 0.5  # of an image batch's loss, as published; the released code never applies its setting for it
CC_WEIGHT, NSS_WEIGHT = 0.1, 0.1  # beside KL's 1


@dataclass(frozen=True)
class DomainClip(Cached):
    """A clip to train on, in the cache, and the domain that it trains."""

    domain: str
    truth: ArrayFile

    @property
    def kind(self) -> tuple[str, int, int]:
        """Clips of one kind may share a batch: domain, height, width."""
        height, width = self.frames.shape[1:3]
        return self.domain, height, width


def train_unisal(
    clips: Sequence[Clip], config: UnisalConfig, context: TrainingContext, frames: Path, start: Path | None = None,
    trunk: Path | None = None,
) -> Unisal:  # fmt: skip
    """Trains, or continues training, and leaves `unisal.pt` in the context's folder, a state dict in the released layout.

    `frames` is the folder for decoded clips. The training starts from the weights `start`, in the released layout; or from
    the trunk `trunk`, MobileNetV2's ImageNet weights; or from random weights.
    Raises Interrupted after saving, UsageError where a gradient is not finite or no clip is annotated.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        raise UsageError("UNISAL trains on fixations, but no training clip is annotated; train on an annotated corpus")
    domains = dict(text.partition("=")[::2] for text in config.domains)
    tracked = context.narrator.track(annotated, "frames for unisal", len(annotated))
    cached = [cache(frames, clip, domain_of(clip, domains)) for clip in tracked]
    torch.manual_seed(context.seed)
    net = UnisalNet()
    with usage_errors():
        if start:
            load_state_dict_exact(net, read_weights(start), source=str(start))
        elif trunk:
            unisal.load_trunk(net, trunk)
    net = net.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = UnisalTask(cached, config, net, bool(start or trunk), context)
    fit(task)
    weights = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}
    checkpoint.save(context.folder / "unisal.pt", weights)
    task.resume_path.unlink(missing_ok=True)
    return Unisal(net.eval(), device=context.device)


@dataclass
class Batch:
    """A window of each of some clips of one kind; of an image one frame."""

    frames_BTHWC: Tensor  # uint8
    truth_BT2HW: Tensor  # uint8, density and fixations
    seen_N: Tensor  # numbers of the frames that have both, of all B T
    places: list[Place]
    domain: str
    static: bool


@dataclass
class UnisalTask(Task):
    """UNISAL's training, for `fit`."""

    clips: Sequence[DomainClip]
    config: UnisalConfig
    net: UnisalNet
    trained_trunk: bool
    context: TrainingContext

    name, lr_key, resume_file, checkpoint_every, max_norm = "unisal", "unisal.lr", "unisal_last.pt", 50, MAX_NORM

    def __post_init__(self) -> None:
        self.modules = {"unisal": self.net}
        self.epoch_steps = len(plan(self.clips, self.config, self.context.seed, 0))
        self.phase_steps = (self.config.epochs * self.epoch_steps,)

    def enter(self, phase: int) -> torch.optim.Optimizer:
        self.net.train()
        self.net.cnn.train(not self.trained_trunk)  # a trained trunk's norms have the statistics of many more images
        others = [parameter for name, parameter in self.net.named_parameters() if not name.startswith("cnn.")]
        groups = [
            {"params": others, "weight_decay": WEIGHT_DECAY},
            {"params": self.net.cnn.parameters(), "weight_decay": TRUNK_WEIGHT_DECAY},
        ]
        return torch.optim.SGD(groups, lr=self.config.lr, momentum=MOMENTUM)

    def learning_rates(self, at: Moment) -> list[float]:
        rate = self.config.lr * self.config.lr_decay ** (at.step // self.epoch_steps)
        return [rate, rate * (TRUNK_LR if self.trained_trunk else 1.0)]

    def draw(self, at: Moment) -> tuple[Batch, int]:
        """The step's batch, and the seed of its dropout."""
        epoch, number = divmod(at.step, self.epoch_steps)
        rng = np.random.default_rng([self.context.seed, 3, at.step])
        seed = int(rng.integers(2**62))
        indices = plan(self.clips, self.config, self.context.seed, epoch)[number]
        return windows([self.clips[i] for i in indices], self.config.frames, rng), seed

    def batch(self, drawn: tuple[Batch, int], at: Moment) -> Batch:
        batch, seed = drawn
        torch.manual_seed(seed)
        return batch

    def backward(self, batch: Batch, at: Moment) -> Losses:
        self.net.cnn.requires_grad_(not self.trained_trunk or at.step >= FROZEN_EPOCHS * self.epoch_steps)
        frames_BTHWC, truth_BT2HW, seen_N = (
            x.to(self.context.device, non_blocking=True) for x in (batch.frames_BTHWC, batch.truth_BT2HW, batch.seen_N)
        )
        density_BTHW, _ = self.net(normalise(frames_BTHWC), batch.domain, static=batch.static)
        truth_N2HW = truth_BT2HW.flatten(0, 1)[seen_N].float()
        losses_N = density_losses(density_BTHW.flatten(0, 1)[seen_N], truth_N2HW[:, 0], truth_N2HW[:, 1])
        loss = (IMAGE_WEIGHT if batch.static else 1.0) * losses_N.sum() / max(1, len(seen_N))
        loss.backward()
        return Losses({"loss": loss}, batch.places)


def density_losses(log_density_NHW: Tensor, truth_NHW: Tensor, fixations_NHW: Tensor) -> Tensor:
    """KL(truth || prediction) - 0.1 NSS - 0.1 CC of each frame `[N]`; definitions as in Bylinskii et al., 2019.

    log_density: its exp sums to 1 over a frame. truth: non-negative, any scale. fixations: 1 where fixated, else 0.
    """
    log_p, truth, fixations = log_density_NHW.flatten(1), truth_NHW.flatten(1), fixations_NHW.flatten(1)
    q = truth / truth.sum(1, keepdim=True)
    kl = (torch.xlogy(q, q) - q * log_p).sum(1)
    # CC and NSS do not depend on the scale: with the largest value at 1 no square vanishes in float32.
    p = (log_p - log_p.detach().amax(1, keepdim=True)).exp()
    p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
    cc = (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + EPS)
    nss = (p / (p.std(1, keepdim=True) + EPS) * fixations).sum(1) / fixations.sum(1)
    return kl - NSS_WEIGHT * nss - CC_WEIGHT * cc


def plan(clips: Sequence[DomainClip], config: UnisalConfig, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, each a list of indices of `clips` of one kind; every epoch has the same number.

    Every video comes `config.windows` times, every image once. The last batch of a kind is filled up with the kind's first
    clips. Batches of all kinds are shuffled.
    """
    rng = np.random.default_rng([seed, 2, epoch])
    kinds: dict[tuple[str, int, int], list[int]] = {}
    for i, cached in enumerate(clips):
        kinds.setdefault(cached.kind, []).append(i)
    batches = []
    for members in kinds.values():
        static = clips[members[0]].clip.static
        size = min(config.images if static else config.batch, len(members))
        order = np.concatenate([rng.permutation(members) for _ in range(1 if static else config.windows)])
        count = -(-len(order) // size)
        batches += np.resize(order, (count, size)).tolist()
    return [batches[i] for i in rng.permutation(len(batches))]


def windows(clips: Sequence[DomainClip], length: int, rng: np.random.Generator) -> Batch:
    """A window of each clip, at a random start. A video that is shorter repeats its last frame."""
    frames, truths, places = [], [], []
    for cached in clips:
        total = len(cached.frames)
        start = int(rng.integers(max(1, total - length + 1)))
        index = np.minimum(start + np.arange(1 if cached.clip.static else length), total - 1)
        frames.append(torch.from_numpy(cached.frames[index]))
        truths.append(torch.from_numpy(cached.truth[index]))
        places.append(cached.place(index))
    truth_BT2HW = torch.stack(truths)
    seen_N = truth_BT2HW.flatten(3).amax(3).amin(2).flatten().nonzero()[:, 0]
    return Batch(torch.stack(frames), truth_BT2HW, seen_N, places, clips[0].domain, clips[0].clip.static)


def domain_of(clip: Clip, domains: Mapping[str, str]) -> str:
    """The domain that a clip trains: SALICON for images; for videos what `domains` has for their part of the corpus, else DHF1K."""
    if clip.static:
        return STATIC_DOMAIN
    domain = domains.get(clip.corpus, VIDEO_DOMAINS[0])
    if domain not in VIDEO_DOMAINS:
        raise UsageError(
            f"unisal.domains: the videos of '{clip.corpus}' cannot train {domain!r}, only {', '.join(VIDEO_DOMAINS)}"
        )
    return domain


def cache(folder: Path, clip: Clip, domain: str) -> DomainClip:
    """Decodes the annotated frames of a clip into the cache, unless they are there."""
    size = unisal.input_size(domain, clip.height, clip.width)
    stride = 1 if clip.static else unisal.stream_count(clip.fps)

    def convert(index: int, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _truth(clip, index, size)[None], scale(frame[None], size).numpy()

    truth, frames = files = array_files(folder, clip, ("truth", "frames"))
    fill(files, clip, range(0, clip.annotated_frames, stride), convert)
    return DomainClip(clip, stride, frames, domain, truth)


def _truth(clip: Clip, index: int, size: tuple[int, int]) -> np.ndarray:
    """Density and fixations of a frame, uint8 `[2,*size]`; zeros where it has none."""
    truth = np.zeros((2, *size), np.uint8)
    fixations = fixation_map(clip, index)
    if fixations is None or not fixations.any():
        return truth
    y, x = np.nonzero(fixations)
    truth[1, y * size[0] // clip.height, x * size[1] // clip.width] = 1
    density = torch.from_numpy(density_map(clip, index, fixations))[None, None]
    density = torch.nn.functional.interpolate(density, size=size, mode="bilinear", antialias=True)[0, 0]
    truth[0] = (255 * density / density.max().clamp(min=EPS)).round().byte().numpy()
    return truth
