"""TinyU-Net: an encoder-decoder of about 200 K parameters with one recurrent state at its bottleneck.

The way of a frame, at a working resolution of 128x224 (recipes have 96x160):

    frame [3,H,W] -> entry: anti-aliased down-scaling to [3,128,224], whatever H and W
      -> encoder: 1/2, 1/4 (skip), 1/8 (skip), 1/16, with a 1/32 context branch and a learned place embedding
      -> memory at 1/16: reads the state, adds what history says, writes the state
      -> decoder: back to 1/4 over the skips, plus a learned centre prior -> logits [1,32,56]
      -> onset: where gaze is while a picture is new
      -> motion at 1/4: adds what changed in the picture, holds on to the last logits where nothing did
    exit: sigmoid, linear up-scaling to [1,H,W]

One set of weights serves frames and clips: the encoder and the decoder see all frames of a clip as one batch, and only
running averages walk through time. State is an argument and a return value, never kept on the module.

There is one state, at 1/16, `[1,C,h,w]`: the memory's channels, then three maps of 1/4 folded into 16 channels each (two
averages of luma and one of logits), then onset, which is 1 at the first frame and falls from there, then one channel that
is 1 where there is history. All are exponential averages with learned time constants tau, in seconds: a step of `dt`
seconds updates with a = 1 - exp(-dt / tau), so one set of weights serves any frame rate, in training and at export.
Everything that history adds is multiplied by the last channel, so a zero state means "no history" exactly: the first
frame's map equals the image-mode map.

The network without its temporal part (memory, onset and motion) is the image student; training fits it first, on single
frames, and the temporal part after it, on clips, with the rest frozen.

Legend: B batch · T time · C channels · H, W pixels · h, w working pixels or cells.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students import STATE_MAPS, TinyUNetConfig

# Pooling kernels of the entry, largest first: a frame is pooled by the largest k that leaves it at least twice the
# working resolution, then scaled to exactly twice (a factor below 2, where two linear taps do not alias), then pooled by 2.
ENTRY_KERNELS = (8, 4, 2)


def fit_to_working_size(frames_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Down-scale frames of any size to the working resolution without aliasing; the entry of the shipped graph.

    frames_BCHW: float `[B,C,H,W]`, any range. Returns float `[B,C,height,width]`.
    The same arithmetic stands in `distill.export.graph` in ONNX operators; parity holds the two together.
    """
    return F.avg_pool2d(fit_to_twice(frames_BCHW, height, width), 2)


def fit_to_twice(frames_BCHW: Tensor, height: int, width: int) -> Tensor:
    """The entry up to its last pooling, float `[B,C,2 height,2 width]`; training crops from this."""
    fits = min(frames_BCHW.shape[-2] // (2 * height), frames_BCHW.shape[-1] // (2 * width))
    for kernel in ENTRY_KERNELS:
        if fits >= kernel:
            frames_BCHW = F.avg_pool2d(frames_BCHW, kernel)
            break
    return resize_linear(frames_BCHW, 2 * height, 2 * width)


def resize_linear(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Linear scaling to `[B,C,height,width]`, taps and weights computed in float32 as ONNX's Resize defines them.

    `F.interpolate` rounds the taps' places otherwise. On a white-noise frame the difference, some 1e-5 pixels, reaches
    the saliency map, and parity could not tell it from an error.
    """
    for axis, size in ((-2, height), (-1, width)):
        length = x_BCHW.shape[axis]
        scale = torch.tensor(size, dtype=torch.float32) / torch.tensor(length, dtype=torch.float32)
        place = ((torch.arange(size, dtype=torch.float32) + 0.5) / scale - 0.5).clamp(0, length - 1).to(x_BCHW.device)
        lower = place.long()
        upper = (lower + 1).clamp(max=length - 1)
        share = (place - lower).to(x_BCHW.dtype)
        share = share[:, None] if axis == -2 else share
        x_BCHW = x_BCHW.index_select(axis, lower) * (1 - share) + x_BCHW.index_select(axis, upper) * share
    return x_BCHW


def conv_bn(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2, Sandler et al. 2018); adds its input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        hidden = inputs * expand
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            conv_bn(inputs, hidden),
            conv_bn(hidden, hidden, kernel, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            (last := nn.BatchNorm2d(outputs)),
        )
        if self.adds:
            nn.init.zeros_(last.weight)  # a residual block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class Context(nn.Module):
    """What the whole frame says: a branch at half the resolution and a global average, added back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(
            conv_bn(channels, channels, 3, stride=2, groups=channels, act=False),
            InvertedResidual(channels, channels, expand=2),
        )
        self.everywhere = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.interpolate(self.coarse(x), scale_factor=2, mode="bilinear", align_corners=False)
        return x + coarse + self.everywhere(F.adaptive_avg_pool2d(x, 1))


class Memory(nn.Module):
    """What was seen before, at the bottleneck: a running average of projected features, and what it adds to a frame."""

    def __init__(self, channels: int, memory: int) -> None:
        super().__init__()
        self.channels = memory
        self.write = nn.Conv2d(channels, memory, 1)
        self.read = nn.Sequential(
            nn.Conv2d(channels + 2 * memory, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(inplace=True),
        )
        self.add = nn.Conv2d(channels, channels, 1)
        # From one frame at 20 fps to two seconds: human gaze dwells for a quarter to half a second.
        self.log_tau = nn.Parameter(torch.linspace(math.log(0.05), math.log(2.0), memory))

    def step(self, x_BCHW: Tensor, mean: Tensor, seen: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """One frame's bottleneck and the average of what was written -> the bottleneck with history, the new average."""
        written = self.write(x_BCHW)
        added = self.add(self.read(torch.cat([x_BCHW, mean, written - mean], 1)))
        return x_BCHW + seen * added, average(mean, seen, written, keep)

    def forward(self, x_BTCHW: Tensor, mean: Tensor, seen: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """`step` over a clip; only the average walks through time, the rest sees all frames as one batch."""
        B, T = x_BTCHW.shape[:2]
        written_BTCHW = self.write(x_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        means_BTCHW, mean = averages(mean, seen, written_BTCHW, keep)
        context = torch.cat([x_BTCHW, means_BTCHW, written_BTCHW - means_BTCHW], 2)
        added = self.add(self.read(context.flatten(0, 1))).unflatten(0, (B, T))
        return x_BTCHW + since(seen, T) * added, mean


class Onset(nn.Module):
    """Where gaze is while a picture is new, added to the logits and fading.

    When a picture appears, at the start of a video or at a cut, gaze goes to its middle first, whatever it shows, and
    leaves it within a second (Tseng et al., Journal of Vision 9(7):4, 2009).
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.zeros(1, 1, rows, columns))
        self.log_tau = nn.Parameter(torch.tensor([0.4]).log())

    def step(self, fresh: Tensor, seen: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """How new the picture was, `[B,1,h,w]` in [0, 1] -> what is added to the logits `[B,1,4h,4w]`, how new it is."""
        fresh = average(fresh, seen, 1 - seen, keep)
        added = F.interpolate(seen * fresh * self.where, scale_factor=4, mode="bilinear", align_corners=False)
        return added, fresh

    def forward(self, fresh: Tensor, seen: Tensor, keep: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """`step` over a clip: what is added, `[B,T,1,4h,4w]`."""
        added = []
        for _ in range(frames):
            one, fresh = self.step(fresh, seen, keep)
            added.append(one)
            seen = torch.ones_like(seen)
        return torch.stack(added, 1), fresh


class Motion(nn.Module):
    """What changed in the picture, at the resolution of the logits.

    Gaze goes where something moves, and stays where nothing happens. Change is the distance of a frame's luma to a fast
    and to a slow average of it, plain and relative to the whole frame's (a moving camera changes everything). It adds to
    the logits, and says how far they hold on to what they were.
    """

    luma: Tensor

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.local = nn.Conv2d(4, hidden, 5, padding=2)
        self.overall = nn.Conv2d(2, hidden, 1)
        self.say = nn.Conv2d(hidden, 2, 1)
        # Fast is a few frames of training's 8 per second: shorter, and the change it sees would depend on the frame rate.
        self.log_tau = nn.Parameter(torch.tensor([0.15, 0.6, 0.25]).log())
        # BT.601 luma of ImageNet-normalised RGB (deviations .229, .224, .225), averaged over 4x4 pixels.
        weights = torch.tensor([0.299 * 0.229, 0.587 * 0.224, 0.114 * 0.225])
        self.register_buffer("luma", (weights[:, None, None] / 16).expand(1, 3, 4, 4).clone(), persistent=False)

    def look(self, frames_BCHW: Tensor) -> Tensor:
        """Normalised frames `[B,3,height,width]` -> their luma `[B,1,height/4,width/4]`, once for either average."""
        luma = F.conv2d(frames_BCHW, self.luma, stride=4)
        return torch.cat([luma, luma], 1)

    def judge(self, luma: Tensor, mean: Tensor) -> Tensor:
        """Luma of a frame and its averages, `[B,2,h,w]` -> what is added to the logits, and how far they hold, `[B,2,h,w]`."""
        change = (luma - mean).abs()
        overall = F.adaptive_avg_pool2d(change, 1)
        local = torch.cat([change * 10, change / (overall + 0.01)], 1)
        said: Tensor = self.say(F.relu(self.local(local) + self.overall(overall * 10)))
        return said

    def step(
        self, frame_BCHW: Tensor, logits: Tensor, maps: Tensor, seen: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A frame, its logits `[B,1,h,w]` and the maps of the state `[B,3,h,w]` -> its logits with history, the new maps."""
        luma, mean = self.look(frame_BCHW), maps[:, :2]
        said = self.judge(luma, mean)
        logits = logits + seen * said[:, :1]
        hold = keep[:, 2:] * torch.sigmoid(said[:, 1:])
        logits = average(maps[:, 2:], seen, logits, hold)
        return logits, torch.cat([average(mean, seen, luma, keep[:, :2]), logits], 1)

    def forward(
        self, frames_BTCHW: Tensor, logits_BTCHW: Tensor, maps: Tensor, seen: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`step` over a clip."""
        B, T = frames_BTCHW.shape[:2]
        luma_BTCHW = self.look(frames_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        means_BTCHW, mean = averages(maps[:, :2], seen, luma_BTCHW, keep[:, :2])
        said_BTCHW = self.judge(luma_BTCHW.flatten(0, 1), means_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        logits_BTCHW = logits_BTCHW + since(seen, T) * said_BTCHW[:, :, :1]
        hold_BTCHW = keep[:, None, 2:] * torch.sigmoid(said_BTCHW[:, :, 1:])
        held, last = [], maps[:, 2:]
        for t in range(T):
            last = average(last, seen, logits_BTCHW[:, t], hold_BTCHW[:, t])
            held.append(last)
            seen = torch.ones_like(seen)
        return torch.stack(held, 1), torch.cat([mean, last], 1)


def average(mean: Tensor, seen: Tensor, present: Tensor, keep: Tensor) -> Tensor:
    """A running average one frame on. Where nothing was seen (seen = 0) it starts at the present.

    Multiply and add only: `Where` is not an operator that the downstream accepts.
    """
    return present + keep * seen * (mean - present)


def averages(mean: Tensor, seen: Tensor, present_BTCHW: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """A running average over a clip: what it was before each frame `[B,T,C,H,W]`, and what it is in the end."""
    before = []
    for present in present_BTCHW.unbind(1):
        before.append(mean)
        mean = average(mean, seen, present, keep)
        seen = torch.ones_like(seen)
    return torch.stack(before, 1), mean


def since(seen: Tensor, frames: int) -> Tensor:
    """Whether there is history at each frame of a clip, `[B,T,1,H,W]`: after the first there is."""
    return torch.stack([seen, *[torch.ones_like(seen)] * (frames - 1)], 1)


def kept(log_tau: Tensor, dt: Tensor) -> Tensor:
    """Share of an average that a frame leaves: seconds between frames `[B]` -> `[B,C,1,1]` in (0, 1)."""
    return torch.exp(-dt[:, None] / log_tau.exp())[:, :, None, None]


class TinyUNet(nn.Module):
    """The student. `step` is what ships frame by frame, `forward` is the same over clips."""

    fold: Tensor
    spread: Tensor

    def __init__(self, config: TinyUNetConfig) -> None:
        super().__init__()
        self.config = config
        c2, c4, c8, c16 = config.widths
        self.stem = conv_bn(3, c2, 3, stride=2)
        self.to_4 = nn.Sequential(InvertedResidual(c2, c4, 3, stride=2), InvertedResidual(c4, c4, 3))
        self.to_8 = nn.Sequential(
            InvertedResidual(c4, c8, 4, stride=2), InvertedResidual(c8, c8, 4), InvertedResidual(c8, c8, 4)
        )
        self.to_16 = nn.Sequential(
            InvertedResidual(c8, c16, 4, kernel=5, stride=2),
            InvertedResidual(c16, c16, 4, kernel=5),
            InvertedResidual(c16, c16, 4, kernel=5),
        )
        # Convolutions cannot tell where they are; gaze depends on it.
        self.place = nn.Parameter(torch.zeros(1, c16, config.height // 16, config.width // 16))
        self.context = Context(c16)
        self.memory = Memory(c16, config.state_channels)
        self.onset = Onset(config.height // 16, config.width // 16)
        self.motion = Motion()
        # A map of 1/4 is folded into 16 channels of 1/16, and unfolded, by convolutions with kernels of one 1 each.
        fold = torch.eye(16).reshape(16, 1, 4, 4).repeat(STATE_MAPS, 1, 1, 1)
        self.register_buffer("fold", fold, persistent=False)
        self.register_buffer("spread", torch.ones(1, 1, 4, 4), persistent=False)
        self.up_8 = conv_bn(c16, c8, act=False)
        self.at_8 = InvertedResidual(c8, c8, 2)
        self.up_4 = conv_bn(c8, c4, act=False)
        self.at_4 = InvertedResidual(c4, c4, 2)
        self.head = nn.Conv2d(c4, 1, 1)
        self.prior = nn.Parameter(centre_prior(config.height // 16, config.width // 16))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Start as the image-mode network with a faint, centred map: what history adds is learned.
        nn.init.zeros_(self.memory.add.weight)
        nn.init.zeros_(self.motion.say.weight)
        with torch.no_grad():
            self.motion.say.bias.copy_(torch.tensor([0.0, 2.0]))  # type: ignore[union-attr]  # this one has a bias
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.constant_(self.head.bias, -2.0)  # type: ignore[arg-type]  # this one has a bias

    def zero_state(self, batch: int = 1) -> Tensor:
        """The state that means "no history": zeros `[batch,C,h,w]`."""
        return torch.zeros(batch, *self.config.state_shape[1:], device=self.place.device)

    def encode(self, frames_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at_4 = self.to_4(self.stem(frames_BCHW))
        at_8 = self.to_8(at_4)
        return self.context(self.to_16(at_8) + self.place), at_8, at_4

    def decode(self, bottleneck: Tensor, at_8: Tensor, at_4: Tensor) -> Tensor:
        x = F.interpolate(self.up_8(bottleneck), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.at_8(F.relu(x + at_8))
        x = F.interpolate(self.up_4(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.at_4(F.relu(x + at_4))
        prior = F.interpolate(self.prior, scale_factor=4, mode="bilinear", align_corners=False)
        return self.head(x) + prior

    def image(self, frames_BCHW: Tensor) -> Tensor:
        """Image mode: normalised frames `[B,3,height,width]` -> logits `[B,1,height/4,width/4]`, no state at all."""
        return self.decode(*self.encode(frames_BCHW))

    def keep(self, dt: Tensor) -> Tensor:
        """Share of every running average that a frame leaves: seconds between frames `[B]` -> `[B,C,1,1]` in (0, 1)."""
        return torch.cat([kept(part.log_tau, dt) for part in self.temporal()], 1)

    def time_constants(self) -> Tensor:
        """Of every running average, in seconds: the memory's channels, then onset, fast luma, slow luma and logits."""
        return torch.cat([part.log_tau for part in self.temporal()]).detach().exp()

    def temporal(self) -> tuple[Memory, Onset, Motion]:
        """The parts that only clips train; the rest is the image student."""
        return self.memory, self.onset, self.motion

    def _read(self, state_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The state's parts: the memory's average, onset, whether there is history; the maps and the same at 1/4."""
        memory, folded = self.config.state_channels, 16 * STATE_MAPS
        mean, fresh, seen = state_BCHW[:, :memory], state_BCHW[:, memory + folded : -1], state_BCHW[:, -1:]
        maps = F.conv_transpose2d(state_BCHW[:, memory : memory + folded], self.fold, stride=4, groups=STATE_MAPS)
        return mean, fresh, seen, maps, F.conv_transpose2d(seen, self.spread, stride=4)

    def _write(self, mean: Tensor, maps: Tensor, fresh: Tensor) -> Tensor:
        folded = F.conv2d(maps, self.fold, stride=4, groups=STATE_MAPS)
        return torch.cat([mean, folded, fresh, torch.ones_like(fresh)], 1)

    @torch.no_grad()
    def history(self, frames_BCHW: Tensor, begins_B: Tensor, dt: Tensor) -> Tensor:
        """The state of streams before these frames `[B,3,height,width]`: none where the frame begins its video, else one
        that has seen the frame itself, long after the onset. For training, which enters clips anywhere."""
        _, state_BCHW = self(frames_BCHW[:, None], None, dt)
        state_BCHW[:, -2] = 0
        return state_BCHW * ~begins_B[:, None, None, None]

    def forward(self, clip_BTCHW: Tensor, state_BCHW: Tensor | None, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Clip mode: normalised frames `[B,T,3,height,width]`, state or None, seconds between frames `[B]`.

        Returns logits `[B,T,1,height/4,width/4]` and the state after the last frame.
        """
        B, T = clip_BTCHW.shape[:2]
        state_BCHW = self.zero_state(B) if state_BCHW is None else state_BCHW
        mean, fresh, seen, maps, seen_at_4 = self._read(state_BCHW)
        memory, onset, motion = (kept(part.log_tau, dt) for part in self.temporal())
        bottleneck, at_8, at_4 = self.encode(clip_BTCHW.flatten(0, 1))
        fused, mean = self.memory(bottleneck.unflatten(0, (B, T)), mean, seen, memory)
        logits = self.decode(fused.flatten(0, 1), at_8, at_4).unflatten(0, (B, T))
        added, fresh = self.onset(fresh, seen, onset, T)
        logits, maps = self.motion(clip_BTCHW, logits + added, maps, seen_at_4, motion)
        return logits, self._write(mean, maps, fresh)

    def step(self, frame_BCHW: Tensor, state_BCHW: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """One normalised frame `[B,3,height,width]`, the state, `keep(dt)` -> logits `[B,1,height/4,width/4]`, state."""
        mean, fresh, seen, maps, seen_at_4 = self._read(state_BCHW)
        bottleneck, at_8, at_4 = self.encode(frame_BCHW)
        channels = self.config.state_channels
        fused, mean = self.memory.step(bottleneck, mean, seen, keep[:, :channels])
        logits = self.decode(fused, at_8, at_4)
        added, fresh = self.onset.step(fresh, seen, keep[:, channels : channels + 1])
        logits, maps = self.motion.step(frame_BCHW, logits + added, maps, seen_at_4, keep[:, channels + 1 :])
        return logits, self._write(mean, maps, fresh)


def centre_prior(rows: int, columns: int, sigma: float = 0.22) -> Tensor:
    """Logits `[1,1,rows,columns]` of a centred Gaussian: 0 in the middle; sigma is a share of each side."""
    y = (torch.arange(rows) + 0.5) / rows - 0.5
    x = (torch.arange(columns) + 0.5) / columns - 0.5
    return -(y[:, None] ** 2 + x[None, :] ** 2)[None, None] / (2 * sigma**2)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
