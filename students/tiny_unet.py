"""TinyU-Net: an encoder-decoder of about 200 K parameters with one recurrent state at its bottleneck.

Data flow of a frame at the default working resolution of 128x224 (recipes use 96x160):

    frame [3,H,W] -> entry: anti-aliased down-scaling to [3,128,224], for any H and W
      -> encoder: 1/2, 1/4 (skip), 1/8 (skip), 1/16, with a 1/32 context branch and a learned position embedding
      -> memory at 1/16: reads the state, adds what history contributes, updates the state
      -> decoder: back to 1/4 over the skips, plus a learned centre prior -> logits [1,32,56]
      -> onset: a learned prior for the first second after a picture appears
      -> motion at 1/4: adds the response to changes in luma, holds the previous logits where nothing changed
    exit: sigmoid, linear up-scaling to [1,H,W]

One set of weights serves frames and clips: encoder and decoder process all frames of a clip as one batch, and only
exponential averages are updated frame by frame. The state is an argument and a return value, never kept on the module.

There is one state, at 1/16, `[1,C,h,w]`. Its channels are the memory, then three maps of 1/4 folded into 16 channels each
(fast and slow average of luma, average of logits), then onset, which is 1 at the first frame and decays, then the history
mask, 1 where there is history. All but the mask are exponential averages with learned time constants tau, in seconds: a
step of `dt` seconds updates with a = 1 - exp(-dt / tau), so the weights serve any frame rate. Everything that history adds
is multiplied by the history mask, so a zero state means "no history" exactly: the first map equals the image-mode map.

Without its temporal part (memory, onset and motion) the network is the image student. Training fits that first, on single
frames, and then the temporal part on clips, with the rest frozen.

Legend: B batch · T time · C channels · H, W pixels · h, w working pixels or cells.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.students import STATE_MAPS, TinyUNetConfig
from distill.students.encoder import Encoder, InvertedResidual, conv_bn

# Pooling kernels of the entry, largest first: a frame is pooled by the largest k that leaves at least twice the working
# resolution, scaled to exactly twice (by a factor below 2, where two linear taps do not alias), then pooled by 2.
ENTRY_KERNELS = (8, 4, 2)


def fit_to_working_size(frames_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Down-scale frames of any size to the working resolution without aliasing; the entry of the shipped graph.

    Float `[B,C,H,W]`, any range -> `[B,C,height,width]`; the parity check compares it with `distill.export.resolution`.
    """
    return F.avg_pool2d(fit_to_twice(frames_BCHW, height, width), 2)


def fit_to_twice(frames_BCHW: Tensor, height: int, width: int) -> Tensor:
    """The entry without its last pooling: float `[B,C,H,W]` -> `[B,C,2 height,2 width]`; training crops from this."""
    fits = min(frames_BCHW.shape[-2] // (2 * height), frames_BCHW.shape[-1] // (2 * width))
    if kernel := next((kernel for kernel in ENTRY_KERNELS if kernel <= fits), 0):
        frames_BCHW = F.avg_pool2d(frames_BCHW, kernel)
    return resize_linear(frames_BCHW, 2 * height, 2 * width)


def resize_linear(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Linear scaling to `[B,C,height,width]`, taps and weights computed in float32 as ONNX's Resize defines them.

    `F.interpolate` rounds sample positions differently. On a white-noise frame that difference, about 1e-5 pixels, reaches
    the saliency map, where the parity check could not distinguish it from an error.
    """
    for axis, size in ((-2, height), (-1, width)):
        length = x_BCHW.shape[axis]
        scale = torch.tensor(size, dtype=torch.float32) / torch.tensor(length, dtype=torch.float32)
        centre = (torch.arange(size, dtype=torch.float32) + 0.5) / scale - 0.5
        position = centre.clamp(0, length - 1).to(x_BCHW.device)
        lower = position.long()
        upper = (lower + 1).clamp(max=length - 1)
        weight = (position - lower).to(x_BCHW.dtype)
        weight = weight[:, None] if axis == -2 else weight
        x_BCHW = x_BCHW.index_select(axis, lower) * (1 - weight) + x_BCHW.index_select(axis, upper) * weight
    return x_BCHW


class Context(nn.Module):
    """Context of the whole frame: a branch at half the resolution and a global average, added to the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(
            conv_bn(channels, channels, 3, stride=2, groups=channels, act=None),
            InvertedResidual(channels, channels, 2 * channels),
        )
        self.everywhere = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.interpolate(self.coarse(x), scale_factor=2, mode="bilinear", align_corners=False)
        return x + coarse + self.everywhere(F.adaptive_avg_pool2d(x, 1))


class Memory(nn.Module):
    """Recurrence at the bottleneck: an exponential average of projected features, and its contribution to a frame's features."""

    def __init__(self, channels: int, memory: int) -> None:
        super().__init__()
        self.write = nn.Conv2d(channels, memory, 1)
        self.read = nn.Sequential(
            nn.Conv2d(channels + 2 * memory, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(inplace=True),
        )
        self.add = nn.Conv2d(channels, channels, 1)
        # From one frame at 20 fps to two seconds; human fixations last a quarter to half a second.
        self.log_tau = nn.Parameter(torch.linspace(math.log(0.05), math.log(2.0), memory))

    def step(self, x_BCHW: Tensor, mean: Tensor, mask: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """One frame's bottleneck and the average so far -> the bottleneck with history, the new average."""
        written = self.write(x_BCHW)
        added = self.add(self.read(torch.cat([x_BCHW, mean, written - mean], 1)))
        return x_BCHW + mask * added, average(mean, mask, written, decay)

    def forward(self, x_BTCHW: Tensor, mean: Tensor, mask: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """`step` over a clip; only the average is updated frame by frame, the rest processes all frames as one batch."""
        B, T = x_BTCHW.shape[:2]
        written_BTCHW = self.write(x_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        means_BTCHW, mean = averages(mean, mask, written_BTCHW, decay)
        context = torch.cat([x_BTCHW, means_BTCHW, written_BTCHW - means_BTCHW], 2)
        added = self.add(self.read(context.flatten(0, 1))).unflatten(0, (B, T))
        return x_BTCHW + history_mask(mask, T) * added, mean


class Onset(nn.Module):
    """A learned prior on where people look right after a picture appears, added to the logits and decaying.

    When a picture appears, at the start of a video or at a cut, gaze goes to its centre first, whatever it shows, and
    leaves it within a second (Tseng et al., Journal of Vision 9(7):4, 2009).
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.zeros(1, 1, rows, columns))
        self.log_tau = nn.Parameter(torch.tensor([0.4]).log())

    def step(self, level: Tensor, mask: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Onset before the frame, `[B,1,h,w]` in [0, 1] -> its addition to the logits `[B,1,4h,4w]`, onset after the frame."""
        level = average(level, mask, 1 - mask, decay)
        added = F.interpolate(mask * level * self.where, scale_factor=4, mode="bilinear", align_corners=False)
        return added, level

    def forward(self, level: Tensor, mask: Tensor, decay: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """`step` over a clip: the additions `[B,T,1,4h,4w]`, onset after the last frame."""
        added = []
        for _ in range(frames):
            added_at_t, level = self.step(level, mask, decay)
            added.append(added_at_t)
            mask = torch.ones_like(mask)
        return torch.stack(added, 1), level


class Motion(nn.Module):
    """Response to changes of luma, at the resolution of the logits.

    Gaze follows motion and stays where nothing happens. Change is the absolute difference between a frame's luma and a
    fast and a slow average of it, plain and relative to its mean over the frame (a moving camera changes everything). The
    response adds to the logits and decides how far they hold their previous values.
    """

    luma: Tensor

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.local = nn.Conv2d(4, hidden, 5, padding=2)
        self.overall = nn.Conv2d(2, hidden, 1)
        self.say = nn.Conv2d(hidden, 2, 1)
        # Fast is a few frames of training's 8 per second; if it were shorter, the change would depend on the frame rate.
        self.log_tau = nn.Parameter(torch.tensor([0.15, 0.6, 0.25]).log())
        # BT.601 luma of ImageNet-normalised RGB (deviations .229, .224, .225), averaged over 4x4 pixels.
        weights = torch.tensor([0.299 * 0.229, 0.587 * 0.224, 0.114 * 0.225])
        self.register_buffer("luma", (weights[:, None, None] / 16).expand(1, 3, 4, 4).clone(), persistent=False)

    def luma_of(self, frames_BCHW: Tensor) -> Tensor:
        """Normalised frames `[B,3,height,width]` -> their luma `[B,2,height/4,width/4]`, one channel for each average."""
        luma = F.conv2d(frames_BCHW, self.luma, stride=4)
        return torch.cat([luma, luma], 1)

    def response(self, luma: Tensor, mean: Tensor) -> Tensor:
        """Luma of a frame and its averages, `[B,2,h,w]` -> the addition to the logits and the hold gate's logit, `[B,2,h,w]`."""
        change = (luma - mean).abs()
        overall = F.adaptive_avg_pool2d(change, 1)
        local = torch.cat([change * 10, change / (overall + 0.01)], 1)
        return self.say(F.relu(self.local(local) + self.overall(overall * 10)))

    def step(self, frame_BCHW: Tensor, logits: Tensor, maps: Tensor, mask: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """A frame, its logits `[B,1,h,w]` and the maps of the state `[B,3,h,w]` -> its logits with history, the new maps."""
        luma, mean = self.luma_of(frame_BCHW), maps[:, :2]
        response = self.response(luma, mean)
        logits = logits + mask * response[:, :1]
        hold = decay[:, 2:] * torch.sigmoid(response[:, 1:])
        logits = average(maps[:, 2:], mask, logits, hold)
        return logits, torch.cat([average(mean, mask, luma, decay[:, :2]), logits], 1)

    def forward(self, clip_BTCHW: Tensor, logits: Tensor, maps: Tensor, mask: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """`step` over a clip; `logits` are `[B,T,1,h,w]`."""
        B, T = clip_BTCHW.shape[:2]
        luma_BTCHW = self.luma_of(clip_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        means_BTCHW, mean = averages(maps[:, :2], mask, luma_BTCHW, decay[:, :2])
        response_BTCHW = self.response(luma_BTCHW.flatten(0, 1), means_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
        logits_BTCHW = logits + history_mask(mask, T) * response_BTCHW[:, :, :1]
        hold_BTCHW = decay[:, None, 2:] * torch.sigmoid(response_BTCHW[:, :, 1:])
        averaged, last = [], maps[:, 2:]
        for t in range(T):
            last = average(last, mask, logits_BTCHW[:, t], hold_BTCHW[:, t])
            averaged.append(last)
            mask = torch.ones_like(mask)
        return torch.stack(averaged, 1), torch.cat([mean, last], 1)


def average(mean: Tensor, mask: Tensor, present: Tensor, decay: Tensor) -> Tensor:
    """An exponential average after one more frame. Without history (mask 0) it starts at the frame's value.

    Multiplies and adds only: the downstream does not accept the operator `Where`.
    """
    return present + decay * mask * (mean - present)


def averages(mean: Tensor, mask: Tensor, present_BTCHW: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """An exponential average over a clip: its values before each frame `[B,T,C,H,W]`, and after the last."""
    before = []
    for present in present_BTCHW.unbind(1):
        before.append(mean)
        mean = average(mean, mask, present, decay)
        mask = torch.ones_like(mask)
    return torch.stack(before, 1), mean


def history_mask(mask: Tensor, frames: int) -> Tensor:
    """The history mask at each frame of a clip, `[B,T,1,H,W]`, from that at the first: 1 at all later frames."""
    return torch.stack([mask, *[torch.ones_like(mask)] * (frames - 1)], 1)


class TinyUNet(nn.Module):
    """The student. `step` processes one frame, as the shipped streaming file does; `forward` is the same over clips."""

    fold: Tensor
    spread: Tensor

    def __init__(self, config: TinyUNetConfig) -> None:
        super().__init__()
        self.config = config
        _, c4, c8, c16, deep = config.widths
        self.encoder = Encoder(config)
        self.neck = conv_bn(deep, c16, act=None)
        # A position embedding: gaze depends on where in the frame something is, convolutions do not.
        self.row = nn.Parameter(torch.zeros(1, c16, config.height // 16, 1))
        self.column = nn.Parameter(torch.zeros(1, c16, 1, config.width // 16))
        self.context = Context(c16)
        self.memory = Memory(c16, config.state_channels)
        self.onset = Onset(config.height // 16, config.width // 16)
        self.motion = Motion()
        # Maps of 1/4 are folded into 16 channels of 1/16, and unfolded, by convolutions with one-hot kernels.
        fold = torch.eye(16).reshape(16, 1, 4, 4).repeat(STATE_MAPS, 1, 1, 1)
        self.register_buffer("fold", fold, persistent=False)
        self.register_buffer("spread", torch.ones(1, 1, 4, 4), persistent=False)
        self.up_8 = conv_bn(c16, c8, act=None)
        self.at_8 = InvertedResidual(c8, c8, 2 * c8)
        self.up_4 = conv_bn(c8, c4, act=None)
        self.at_4 = InvertedResidual(c4, c4, 2 * c4)
        self.head = nn.Conv2d(c4, 1, 1)
        self.prior = nn.Parameter(centre_prior(config.height // 16, config.width // 16))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Start as the image-mode network with a faint, centred map, and with no contribution of history.
        nn.init.zeros_(self.memory.add.weight)
        nn.init.zeros_(self.motion.say.weight)
        nn.init.constant_(self.motion.say.bias[1:], 2.0)  # type: ignore[index]  # this one has a bias
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.constant_(self.head.bias, -2.0)  # type: ignore[arg-type]  # this one has a bias

    def zero_state(self, batch: int = 1) -> Tensor:
        """The state that means "no history": zeros `[batch,C,h,w]`."""
        return torch.zeros(batch, *self.config.state_shape[1:], device=self.prior.device)

    def encode(self, frames_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised frames `[B,3,height,width]` -> features at 1/16, 1/8 and 1/4 of the working resolution."""
        deep, at_8, at_4 = self.encoder(frames_BCHW)
        return self.bottleneck(deep), at_8, at_4

    def bottleneck(self, deep_BCHW: Tensor) -> Tensor:
        """The encoder's deep features at 1/16 -> with the place in the frame and the context of the whole frame."""
        return self.context(self.neck(deep_BCHW) + (self.row + self.column))

    def decode(self, bottleneck: Tensor, at_8: Tensor, at_4: Tensor) -> Tensor:
        """Features at 1/16, 1/8 and 1/4 -> logits `[B,1,height/4,width/4]`."""
        x = F.interpolate(self.up_8(bottleneck), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.at_8(F.relu(x + at_8))
        x = F.interpolate(self.up_4(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.at_4(F.relu(x + at_4))
        prior = F.interpolate(self.prior, scale_factor=4, mode="bilinear", align_corners=False)
        return self.head(x) + prior

    def image(self, frames_BCHW: Tensor) -> Tensor:
        """Image mode: normalised frames `[B,3,height,width]` -> logits `[B,1,height/4,width/4]`, no state at all."""
        return self.decode(*self.encode(frames_BCHW))

    def decay(self, dt: Tensor) -> Tensor:
        """Share of every average that one frame leaves, exp(-dt / tau): seconds between frames `[B]` -> `[B,C,1,1]` in (0, 1)."""
        log_tau = torch.cat([part.log_tau for part in self.temporal()])
        return torch.exp(-dt[:, None] / log_tau.exp())[:, :, None, None]

    def time_constants(self) -> Tensor:
        """Tau of every exponential average, seconds: the memory's channels, then onset, fast luma, slow luma and logits."""
        return torch.cat([part.log_tau for part in self.temporal()]).detach().exp()

    def temporal(self) -> tuple[Memory, Onset, Motion]:
        """The parts that are trained on clips only; the rest is the image student."""
        return self.memory, self.onset, self.motion

    def read_state(self, state_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The state's parts: the memory's average, onset and history mask at 1/16; the three maps and the mask at 1/4."""
        memory, folded = self.config.state_channels, 16 * STATE_MAPS
        mean, level, mask = state_BCHW[:, :memory], state_BCHW[:, memory + folded : -1], state_BCHW[:, -1:]
        maps = F.conv_transpose2d(state_BCHW[:, memory : memory + folded], self.fold, stride=4, groups=STATE_MAPS)
        return mean, level, mask, maps, F.conv_transpose2d(mask, self.spread, stride=4)

    def write_state(self, mean: Tensor, maps: Tensor, level: Tensor) -> Tensor:
        """The state `[B,C,h,w]` of the memory's average, the three maps at 1/4 and onset, its history mask all 1."""
        folded = F.conv2d(maps, self.fold, stride=4, groups=STATE_MAPS)
        return torch.cat([mean, folded, level, torch.ones_like(level)], 1)

    @torch.no_grad()
    def history(self, frames_BCHW: Tensor, begins_B: Tensor, dt: Tensor) -> Tensor:
        """The state of B streams before these frames `[B,3,height,width]`, for training windows that start inside a clip.

        Zero where the frame is its video's first (`begins_B`), else the state after the frame itself, onset fully decayed.
        """
        _, state_BCHW = self(frames_BCHW[:, None], None, dt)
        state_BCHW[:, -2] = 0
        return state_BCHW * ~begins_B[:, None, None, None]

    def forward(self, clip_BTCHW: Tensor, state_BCHW: Tensor | None, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Clip mode: normalised frames `[B,T,3,height,width]`, state or None, seconds between frames `[B]`.

        Returns logits `[B,T,1,height/4,width/4]` and the state after the last frame.
        """
        B, T = clip_BTCHW.shape[:2]
        state_BCHW = self.zero_state(B) if state_BCHW is None else state_BCHW
        mean, level, mask, maps, mask_at_4 = self.read_state(state_BCHW)
        memory, onset, motion = self.decay(dt).split((self.config.state_channels, 1, STATE_MAPS), 1)
        bottleneck, at_8, at_4 = self.encode(clip_BTCHW.flatten(0, 1))
        fused, mean = self.memory(bottleneck.unflatten(0, (B, T)), mean, mask, memory)
        logits = self.decode(fused.flatten(0, 1), at_8, at_4).unflatten(0, (B, T))
        added, level = self.onset(level, mask, onset, T)
        logits, maps = self.motion(clip_BTCHW, logits + added, maps, mask_at_4, motion)
        return logits, self.write_state(mean, maps, level)

    def step(self, frame_BCHW: Tensor, state_BCHW: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """One normalised frame `[B,3,height,width]`, the state, `decay(dt)` -> logits `[B,1,height/4,width/4]`, state."""
        mean, level, mask, maps, mask_at_4 = self.read_state(state_BCHW)
        bottleneck, at_8, at_4 = self.encode(frame_BCHW)
        channels = self.config.state_channels
        fused, mean = self.memory.step(bottleneck, mean, mask, decay[:, :channels])
        logits = self.decode(fused, at_8, at_4)
        added, level = self.onset.step(level, mask, decay[:, channels : channels + 1])
        logits, maps = self.motion.step(frame_BCHW, logits + added, maps, mask_at_4, decay[:, channels + 1 :])
        return logits, self.write_state(mean, maps, level)


def centre_prior(rows: int, columns: int, sigma: float = 0.22) -> Tensor:
    """Logits `[1,1,rows,columns]` of a centred Gaussian: 0 at the centre; sigma is a share of each side."""
    y = (torch.arange(rows) + 0.5) / rows - 0.5
    x = (torch.arange(columns) + 0.5) / columns - 0.5
    return -(y[:, None] ** 2 + x[None, :] ** 2)[None, None] / (2 * sigma**2)


def parameter_count(module: nn.Module) -> int:
    """The number of parameters, buffers not included."""
    return sum(p.numel() for p in module.parameters())
