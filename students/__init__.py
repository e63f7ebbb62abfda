"""Students: tiny recurrent saliency networks.

This module has the student's configuration, which recipes and the command line read without torch; `tiny_unet` the network.
"""

from dataclasses import dataclass

STATE_MAPS = 3
"""Maps of a quarter of the working resolution in the state, each folded into 16 channels: fast luma, slow luma, logits."""


@dataclass(frozen=True, slots=True)
class TinyUNetConfig:
    """The shape of a TinyU-Net.

    height, width: the working resolution in pixels, multiples of 32. The graph scales every frame to it, so cost and state
        do not depend on the frame's size.
    widths: channels at 1/2, 1/4, 1/8 and 1/16 of the working resolution.
    state_channels: memory channels of the recurrent state, which also has three folded maps, onset and the history mask.
    """

    height: int = 128
    width: int = 224
    widths: tuple[int, int, int, int] = (16, 24, 40, 72)
    state_channels: int = 48

    def __post_init__(self) -> None:
        for side, pixels in (("height", self.height), ("width", self.width)):
            if pixels % 32 or not 32 <= pixels <= 1024:
                raise ValueError(f"student.{side} must be a multiple of 32 from 32 to 1024, got {pixels}")
        if len(self.widths) != 4 or min(self.widths) < 4:
            raise ValueError(f"student.widths must be four channel counts of at least 4, got {list(self.widths)}")
        if self.state_channels < 1:
            raise ValueError(f"student.state_channels must be at least 1, got {self.state_channels}")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the logits: a quarter of the working resolution."""
        return self.height // 4, self.width // 4

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of one stream's state, `[1, C, h, w]`: memory, folded maps, onset, history mask; h, w at 1/16."""
        return 1, self.state_channels + 16 * STATE_MAPS + 2, self.height // 16, self.width // 16
