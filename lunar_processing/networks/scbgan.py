"""Pictures out of numbers: StyleGAN2 (Karras et al. 2020) for grey images, its critic, and critics that look through
frozen eyes (Kumari et al. 2022), as in SCB-GAN for the surfaces of small bodies.

A latent becomes a style; the style says how strongly each convolution listens to each of its channels. Weights are kept
with a variance of 1 and scaled where they are used, so that all of them learn at one speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.errors import ParameterError

SLOPE = 0.2  # of the leaky rectifiers
GAIN = math.sqrt(2)  # … which take half of the variance
SMALLEST = 4  # px, where a picture begins and a critic ends
GROUP = 4  # pictures whose variety a critic is told
SLOWLY = 0.01  # share of the learning rate at which styles are learnt
REMEMBERED = 0.995  # of the mean style at each step
HEAD = 32  # channels of a critic on frozen features


class Generator(nn.Module):
    """(N, latent) normal numbers → (N, 1, size, size) pictures, about -1…1.

    Channels at a resolution of r pixels are `width` × 16384 / r, `most` at the most; published is a width of 1 and at
    most 512. `layers` of the network that makes styles of latents. Fresh noise in training, always the same after it,
    unless it is given.
    """

    average: Tensor

    def __init__(self, size: int = 64, width: float = 1.0, most: int = 512, latent: int = 512, layers: int = 8) -> None:
        super().__init__()
        sides = _sides(size)
        widths = [channels(side, width, most) for side in sides]
        self.size, self.width, self.most, self.latent = size, width, most, latent
        styling = [EqualLinear(latent, latent, rate=SLOWLY) for _ in range(layers)]
        self.styling = nn.Sequential(*(part for layer in styling for part in (layer, Rectifier())))
        self.register_buffer("average", torch.zeros(latent))
        self.begin = nn.Parameter(torch.randn(1, widths[0], SMALLEST, SMALLEST))
        befores = [widths[0], *widths[:-1]]
        self.first = nn.ModuleList(
            _Styled(before, after, latent, side, up=side > SMALLEST)
            for before, after, side in zip(befores, widths, sides)
        )
        self.second = nn.ModuleList(_Styled(after, after, latent, side) for after, side in zip(widths, sides))
        self.grey = nn.ModuleList(Modulated(after, 1, latent, kernel=1, demodulate=False) for after in widths)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, noise: Sequence[Tensor] | None = None, truncation: float = 1.0) -> Tensor:
        """`truncation` < 1 draws styles towards the mean one: less variety, fewer failures."""
        return self.paint(self.average.lerp(self.styles(z), truncation), noise)

    def styles(self, z: Tensor) -> Tensor:
        """(N, latent) → (N, latent); in training the mean style follows."""
        z = z * torch.rsqrt((z**2).mean(dim=1, keepdim=True) + 1e-8)
        styles = self.styling(z)
        if self.training:
            self.average.copy_(styles.detach().float().mean(dim=0).lerp(self.average, REMEMBERED))
        return styles

    def paint(self, styles: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures of styles: (N, latent), or (N, depth, latent) with one for each level of resolution."""
        if styles.dim() == 2:
            styles = styles[:, None].expand(-1, self.depth, -1)
        x = self.begin.expand(len(styles), -1, -1, -1)
        picture: Tensor = self.bias
        for level, (first, second, grey) in enumerate(zip(self.first, self.second, self.grey)):
            style = styles[:, level]
            one, other = (None, None) if noise is None else noise[2 * level : 2 * level + 2]
            x = second(first(x, style, one), style, other)
            picture = functional.interpolate(picture, scale_factor=2.0, mode="bilinear") if level else picture
            picture = picture + grey(x, style)
        return picture

    @property
    def depth(self) -> int:
        """Levels of resolution, each of which may be given a style of its own."""
        return len(self.first)

    def draw_noise(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Noise for `count` pictures, two fields a level."""
        sides = [side for side in _sides(self.size) for _ in range(2)]
        return [torch.randn(count, 1, side, side, generator=generator) for side in sides]


def made_of(net: Generator, seeds: Sequence[int], truncation: float = 1.0) -> Tensor:
    """Pictures (seeds, 1, size, size) in -1…1, latents and noise of each drawn from its seed, alike on all devices."""
    device = net.average.device
    each = [torch.Generator().manual_seed(seed) for seed in seeds]
    z = torch.stack([torch.randn(net.latent, generator=one) for one in each])
    noise = [torch.cat(fields).to(device) for fields in zip(*(net.draw_noise(1, one) for one in each))]
    return net(z.to(device), noise, truncation).float().clamp(-1, 1)


class Critic(nn.Module):
    """(N, 1, size, size) → (N, 1) logits: real or not. Residual, and told how unlike each other four pictures are."""

    def __init__(self, size: int = 64, width: float = 1.0, most: int = 512) -> None:
        super().__init__()
        widths = [channels(side, width, most) for side in reversed(_sides(size))]
        self.see = nn.Sequential(EqualConv(1, widths[0], kernel=1), Rectifier())
        self.blocks = nn.Sequential(*(_Halving(before, after) for before, after in zip(widths, widths[1:])))
        self.last = nn.Sequential(EqualConv(widths[-1] + 1, widths[-1]), Rectifier())
        self.judge = nn.Sequential(
            EqualLinear(widths[-1] * SMALLEST**2, widths[-1]), Rectifier(), EqualLinear(widths[-1], 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Above 0: more likely real than not."""
        x = self.blocks(self.see(x.contiguous(memory_format=torch.channels_last)))
        x = self.last(torch.cat([x, variety(x)], dim=1))
        return self.judge(x.flatten(1))


class Watcher(nn.Module):
    """Critics on frozen features: a list of (N, C, h, w) → (N, heads) logits.

    `channels` of each list; one head a level ("multilevel"), or one on the last level alone.
    """

    def __init__(self, channels: Sequence[int], multilevel: bool = True) -> None:
        super().__init__()
        self.levels = len(channels) if multilevel else 1
        self.heads = nn.ModuleList(_head(count) for count in channels[-self.levels :])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Each head's word."""
        return torch.cat([head(x) for head, x in zip(self.heads, features[-self.levels :])], dim=1)


def channels(side: int, width: float, most: int) -> int:
    """Of the features at a resolution of so many pixels."""
    return max(4, min(most, round(16384 * width / side)))


def variety(x: Tensor) -> Tensor:
    """Standard deviation over a few neighbours in the batch, mean over all else, as a channel (N, 1, H, W)."""
    count, _, height, width = x.shape
    group = max(n for n in range(1, GROUP + 1) if count % n == 0)
    apart = x.unflatten(0, (group, -1))
    spread = ((apart - apart.mean(dim=0)) ** 2).mean(dim=0).add(1e-8).sqrt().mean(dim=(1, 2, 3))
    return spread.repeat(group).view(-1, 1, 1, 1).expand(-1, 1, height, width)


# ---- layers of one learning speed --------------------------------------------------------------------------------


class Rectifier(nn.Module):
    """Leaky, and leaves the variance as it was."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return functional.leaky_relu(x, SLOPE) * GAIN


class EqualLinear(nn.Module):
    """A linear layer; with `rate` < 1 it learns slower."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        return functional.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(nn.Module):
    """A convolution; with `down` at half the resolution, blurred before."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.down, self.padding = 1 / math.sqrt(inputs * kernel**2), down, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H, W), or half of that."""
        weight = self.weight * self.scale
        if not self.down:
            return functional.conv2d(x, weight, self.bias, padding=self.padding)
        if weight.shape[-1] == 1:
            return functional.conv2d(blur(x, padding=1, stride=2), weight, self.bias)
        return functional.conv2d(blur(x, padding=2), weight, self.bias, stride=2)


class Modulated(nn.Module):
    """A convolution whose style says how strongly it listens to each channel; with `up`, at twice the resolution.

    Demodulated, its output has a variance of 1 if its input has, whatever the style. That the input is scaled before
    and the output after is the same as scaling the weights for each picture, and much faster on a processor.
    """

    def __init__(
        self, inputs: int, outputs: int, latent: int, kernel: int = 3, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.listen = EqualLinear(latent, inputs, bias=1.0)
        self.scale, self.demodulate, self.up = 1 / math.sqrt(inputs * kernel**2), demodulate, up

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(N, inputs, H, W) and styles (N, latent) → (N, outputs, H, W), or twice that."""
        strength, weight = self.listen(style), self.weight * self.scale
        x = (x * strength[..., None, None]).contiguous(memory_format=torch.channels_last)
        if self.up:
            x = blur(functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4.0)
        else:
            x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return x
        loudness = strength**2 @ (weight**2).sum(dim=(2, 3)).T
        return x * torch.rsqrt(loudness + 1e-8)[..., None, None]


def blur(x: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    """By (1, 3, 3, 1) in both directions: what comes up or goes down in resolution shows no squares."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    kernel = (gain * line[:, None] * line).expand(x.shape[1], 1, 4, 4)
    return functional.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


class _Styled(nn.Module):
    """A modulated convolution, noise as strong as was learnt, a rectifier."""

    fixed: Tensor

    def __init__(self, inputs: int, outputs: int, latent: int, side: int, up: bool = False) -> None:
        super().__init__()
        self.convolution = Modulated(inputs, outputs, latent, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.loudness = nn.Parameter(torch.zeros(()))
        self.side = side
        always = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
        self.register_buffer("fixed", always, persistent=False)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        x = self.convolution(x, style)
        if noise is None:
            noise = torch.randn(len(x), 1, self.side, self.side, device=x.device) if self.training else self.fixed
        return functional.leaky_relu(x + self.loudness * noise + self.bias, SLOPE) * GAIN


class _Halving(nn.Module):
    """Two convolutions and what they add to, at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            EqualConv(inputs, inputs), Rectifier(), EqualConv(inputs, outputs, down=True), Rectifier()
        )
        self.beside = EqualConv(inputs, outputs, kernel=1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.beside(x)) / GAIN


def _head(inputs: int) -> nn.Sequential:
    """Features of one level → (N, 1)."""
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(SMALLEST),
        norm(nn.Conv2d(inputs, HEAD, 3, padding=1)),
        nn.LeakyReLU(SLOPE),
        nn.Flatten(),
        norm(nn.Linear(HEAD * SMALLEST**2, 1)),
    )


def _sides(size: int) -> list[int]:
    """Resolutions from the smallest to the picture's, px."""
    if size < 2 * SMALLEST or size & (size - 1):
        near = [2 ** round(math.log2(max(size, 16)) + step) for step in (-1, 0, 1)]
        raise ParameterError(
            f"Pictures of {size} px cannot be made: the side has to be a power of two.",
            f"give for example --size {min(near, key=lambda n: abs(n - size))}, and patches of that side.",
        )
    return [2**power for power in range(2, size.bit_length())]
