"""Networks and pictures of which everything is known beforehand:
`vdiff.conformance` tries its theorems on them.
"""

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition


class KnowsPicture(nn.Module):
    """Answers with the same x whatever it sees: the perfect denoiser of one batch.

    x: [B, C, H, W].
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x: Tensor = x

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        """x, [B, C, H, W]."""
        return self.x


class Curved(nn.Module):
    """A smooth function of z and time with one weight.

    Each pixel depends on its mirror image in the row, so that a batch which is cut in the wrong
    place is seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight: nn.Parameter = nn.Parameter(torch.tensor(0.7))

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        """[B, C, H, W], as z.   time: [B]."""
        phase = time.to(z.dtype)[:, None, None, None] / 300
        return torch.tanh(1.3 * self.weight.to(z.dtype) * z + torch.sin(phase)) + 0.2 * z.flip(-1)


class Counted(nn.Module):
    """Another network, and how often it was called.   count: calls so far."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: nn.Module = inner
        self.count: int = 0

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        """What the other network says."""
        self.count += 1
        out: Tensor = self.inner(z, time, condition, keys)
        return out


def noise(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    """float32 [count, channels, size, size] from the normal distribution;
    the same for the same seed.
    """
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=rng)


def coloured_pictures(count: int, channels: int, seed: int) -> Tensor:
    """uint8 [count, channels, 8, 8]: each of one colour with some noise,
    the same for the same seed.
    """
    rng = torch.Generator().manual_seed(seed)
    colours = 64 + 128 * torch.rand(count, channels, 1, 1, generator=rng)
    pixels = colours + 25 * torch.randn(count, channels, 8, 8, generator=rng)
    return pixels.round().clamp(0, 255).to(torch.uint8)
