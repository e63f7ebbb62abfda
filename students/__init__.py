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
    widths: channels of the encoder's stages: at 1/2, 1/4, 1/8 and 1/16 of the working resolution, and of the deep one at 1/16.
    blocks, expand: of the stages from 1/4 on, the number of blocks, and their hidden channels as a multiple of the width.
    state_channels: memory channels of the recurrent state, which also has three folded maps, onset and the history mask.
    """

    height: int = 128
    width: int = 224
    widths: tuple[int, int, int, int, int] = (16, 24, 32, 64, 96)
    blocks: tuple[int, int, int, int] = (2, 3, 4, 3)
    expand: tuple[float, float, float, float] = (6.0, 4.0, 1.75, 1.25)
    state_channels: int = 48

    def __post_init__(self) -> None:
        for side, pixels in (("height", self.height), ("width", self.width)):
            if pixels % 32 or not 32 <= pixels <= 1024:
                raise ValueError(f"student.{side} must be a multiple of 32 from 32 to 1024, got {pixels}")
        if len(self.widths) != 5 or min(self.widths) < 4:
            raise ValueError(f"student.widths must be five channel counts of at least 4, got {list(self.widths)}")
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ValueError(f"student.blocks must be four counts of at least 1, got {list(self.blocks)}")
        if len(self.expand) != 4 or not 0.5 <= min(self.expand) <= max(self.expand) <= 6:
            raise ValueError(f"student.expand must be four numbers from 0.5 to 6, got {list(self.expand)}")
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
