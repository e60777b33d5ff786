"""The published way to see into shadow: a generator that paints what a dark image would look like in the sun, and the
critics it is trained against. What it makes is an illustration, never a measurement.

Three of its layers depend on the whole picture: instance normalisation, channel attention and self-attention. A tile
is no picture of its own, so before a large image is done in tiles, `look` shows the generator samples from all over
it; from then on these layers hold to what they saw, everything is local, and there is no seam.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.networks.shadow import averages

SLOPE = 0.2  # of the leaky rectifiers
SKIP = 0.1  # share of what a residual block adds
REDUCED = 8  # channels of attention: one for so many
SEEN = 7  # channels that a generator is given of a picture
SMOOTH_PX = 4.0  # Gaussian that noise is averaged by before the range of a picture is taken …
MARGIN = 0.25  # … and what is added to it on either side for what is brighter or darker than its surroundings
TOKENS = 1024  # places of the picture, evenly chosen, that every place may look at


class Generator(nn.Module):
    """(N, 1, H, W) → (N, 1, H, W), both 0…1 or a little beyond, any size: a U-Net of DnCNN blocks.

    What it paints is a mixture of the pixel and three averages around it (1.5, 3 and 8 px), chosen for each place, and
    a correction: so it begins by averaging, and soon knows how much noise calls for how much of that. Squares of 2 × 2
    pixels become channels first, and pixels again at the end: a processor needs a third of the time. Widths are `width`
    and twice that at 1/2 and 1/4 of the resolution, and `deepest` at 1/8, where every place looks at all others.
    `attention` False leaves out both kinds of it.
    """

    def __init__(self, width: int = 32, deepest: int = 64, residuals: int = 3, attention: bool = True) -> None:
        super().__init__()
        widths = (width, 2 * width)
        self.down = nn.ModuleList(_level(before, w, attention) for before, w in zip((SEEN, *widths), widths))
        self.narrow = nn.ModuleList(nn.Conv2d(w, w, 2, stride=2, bias=False) for w in widths)
        inner: list[nn.Module] = [*dncnn(widths[-1], deepest), *(_Residual(deepest) for _ in range(residuals))]
        self.bottleneck = nn.Sequential(*inner, *([_SelfAttention(deepest)] if attention else []))
        wider = (*widths[1:], deepest)
        self.widen = nn.ModuleList(nn.Conv2d(above, w, 1, bias=False) for above, w in zip(wider, widths))
        self.up = nn.ModuleList(_level(2 * w, w, attention) for w in widths)
        self.head = nn.Conv2d(width + SEEN, 8, 3, padding=1)
        for weight in self.head.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Sizes that 8 does not divide are filled up by their own edge, and cut again."""
        height, width = x.shape[-2:]
        given = functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        bases = (pixels := functional.pixel_unshuffle(given, 2), *averages(pixels))
        y = before = _seen(*bases)
        seen = []
        for level, narrow in zip(self.down, self.narrow):
            seen.append(level(y))
            y = narrow(seen[-1])
        y = self.bottleneck(y)
        for level, widen, beside in reversed(list(zip(self.up, self.widen, seen))):
            y = level(torch.cat([functional.interpolate(widen(y), scale_factor=2.0), beside], dim=1))
        # Normalisation has taken from the features how strong the noise is: the head is told again.
        shares, correction = self.head(torch.cat([y, before], dim=1)).split(4, dim=1)
        mixed = sum(share * base for share, base in zip(shares.softmax(dim=1).split(1, dim=1), bases))
        return functional.pixel_shuffle(mixed + correction, 2)[..., :height, :width]

    @torch.no_grad()
    def look(self, samples: Tensor) -> None:
        """See parts (N, 1, H, W) of a large picture as one, and hold to that for all that follows."""
        wholes = [part for part in self.modules() if isinstance(part, _Whole)]
        for whole in wholes:
            whole.kept, whole.looking = None, True
        self(samples)
        for whole in wholes:
            whole.looking = False


def _seen(pixels: Tensor, near: Tensor, middle: Tensor, far: Tensor) -> Tensor:
    """What the network is given (N, SEEN, H/2, W/2): differences of averages, and how much finest detail there is to
    larger: noise has more of it than ground.
    """
    fine, large = (averages(part**2)[1] for part in (pixels - near, near - far))
    share = torch.log((fine + 1e-6) / (large + 1e-6))
    return torch.cat([pixels - far, near - far, middle - far, share / 4], dim=1)


class Critic(nn.Sequential):
    """(N, 1, H, W) → logits (N, 1, h, w), real or not, each of a patch of 70 × 70 px (Isola et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [nn.Conv2d(before * width, after * width, 4, stride=stride, padding=1, bias=False)]
            layers += [InstanceNorm(after * width), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


def dncnn(inputs: int, outputs: int) -> list[nn.Module]:
    """Convolution, instance normalisation, leaky rectifier, twice."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), InstanceNorm(outputs), nn.LeakyReLU(SLOPE)]
    return layers


def _level(inputs: int, outputs: int, attention: bool) -> nn.Sequential:
    return nn.Sequential(*dncnn(inputs, outputs), *([_ChannelAttention(outputs)] if attention else []))


# ---- what depends on the whole picture ---------------------------------------------------------------------------


class _Whole(nn.Module):
    """What `measure` says of each picture of (N, C, H, W), or of the samples that were looked at as one picture."""

    kept: Tensor | None

    def __init__(self, measure: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.measure, self.looking = measure, False
        self.register_buffer("kept", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.looking:
            self.kept = self.measure(x.transpose(0, 1).flatten(1, 2)[None])  # one tall picture
        return self.measure(x) if self.kept is None else self.kept


class InstanceNorm(nn.Module):
    """Every channel of a picture to mean 0 and variance 1, then to a mean and a spread that are learnt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.whole = _Whole(_moments)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        own = self.whole.kept is None and not self.whole.looking
        if own and x[0, 0].numel() > 1:  # the same, faster
            return functional.instance_norm(x, weight=self.scale, bias=self.shift)
        mean, variance = self.whole(x)
        factor = self.scale.view(-1, 1, 1) * torch.rsqrt(variance + 1e-5)
        return x * factor + (self.shift.view(-1, 1, 1) - mean * factor)


class _ChannelAttention(nn.Module):
    """How much each channel counts in this picture: means over it, reduced, expanded, 0…1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(1, channels // REDUCED)
        self.whole = _Whole(lambda x: x.mean(dim=(2, 3), keepdim=True))
        self.weigh = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(reduced, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(self.whole(x))


class _SelfAttention(nn.Module):
    """Every place takes from all places that are like it, as much as was learnt (Zhang et al. 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // REDUCED, 1, bias=False)
        self.key = nn.Conv2d(channels, channels // REDUCED, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.share = nn.Parameter(torch.zeros(()))
        self.whole = _Whole(_tokens)

    def forward(self, x: Tensor) -> Tensor:
        there = self.whole(x).expand(len(x), -1, -1)[..., None]  # (N, C, places, 1)
        keys, values = (part(there).flatten(2).transpose(1, 2) for part in (self.key, self.value))
        taken = functional.scaled_dot_product_attention(self.query(x).flatten(2).transpose(1, 2), keys, values)
        return x + self.share * taken.transpose(1, 2).reshape(x.shape)


class _Residual(nn.Module):
    """Two convolutions whose word is scaled down before it is added: training stays calm (Lim et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*dncnn(channels, channels)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + SKIP * self.body(x)


def _moments(x: Tensor) -> Tensor:
    """Mean and variance of each channel (2, N, C, 1, 1)."""
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return torch.stack([mean, variance])


def _tokens(x: Tensor) -> Tensor:
    """Features (N, C, places) of at most TOKENS places, evenly chosen."""
    places = x.flatten(2)
    return places[..., :: -(-places.shape[-1] // TOKENS)]
