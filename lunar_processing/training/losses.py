"""What a network is told about its mistakes. Plain functions on tensors, computed in float32 whatever comes in.

Images are (B, C, H, W), logits (B, classes, H, W), labels (B, H, W) long with UNKNOWN where nobody has said, weights
and validity broadcast to the images. Every function returns one number, the mean unless it says otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.errors import ModelError
from lunar_processing.training.data import UNKNOWN

# ---- images ------------------------------------------------------------------------------------------------------


def l1(guess: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference, over the weight where there is one."""
    return _mean((guess.float() - truth.float()).abs(), weight)


def l2(guess: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference, over the weight where there is one."""
    return _mean((guess.float() - truth.float()) ** 2, weight)


def likelihood(guess: Tensor, log_sigma: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log p of the truth under a normal distribution, without its constant: teaches a network its own error."""
    log_sigma = log_sigma.float().clamp(-7.0, 7.0)
    return _mean(log_sigma + 0.5 * ((truth.float() - guess.float()) * torch.exp(-log_sigma)) ** 2, weight)


def ssim(a: Tensor, b: Tensor, data_range: float = 1.0, sigma: float = 1.5) -> Tensor:
    """Mean structural similarity (Wang et al. 2004), 1 for equal images; Gaussian window of 3.5 σ on each side.

    Windows that reach over the edge are left out. `1 - ssim(a, b)` is the loss.
    """
    a, b = a.float(), b.float()
    radius = int(3.5 * sigma + 0.5)
    if min(a.shape[-2:]) <= 2 * radius:
        raise ValueError(f"images of {tuple(a.shape[-2:])} px are smaller than the window of {2 * radius + 1} px")
    offsets = torch.arange(-radius, radius + 1, device=a.device, dtype=a.dtype)
    bell = torch.exp(-0.5 * (offsets / sigma) ** 2)
    bell = bell / bell.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]
        return functional.conv2d(functional.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


# ---- distributions -----------------------------------------------------------------------------------------------


def adversarial(logits: Tensor, real: bool, smooth: float = 1.0) -> Tensor:
    """Binary cross entropy with logits of a critic, told that all of it is real or not; real may mean `smooth` < 1."""
    logits = logits.float()
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, smooth if real else 0.0))


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback–Leibler divergence of N(mean, variance) from N(0, 1): sum over a sample's latents, mean over samples."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1).mean()


def r1(images: Tensor, logits: Tensor) -> Tensor:
    """How steep a critic is at real images: squared gradient of its logits, per image (Mescheder et al. 2018).

    `images` must have asked for their gradient before the critic saw them.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return (slope**2).flatten(1).sum(dim=1).mean()


def path_lengths(pictures: Tensor, styles: Tensor) -> Tensor:
    """How far pictures move with their styles (N, levels, latent), one number each (Karras et al. 2020).

    In a random direction of the picture, whose length is that of one pixel. How much they differ is the loss.
    """
    direction = torch.randn_like(pictures) / (pictures.shape[-1] * pictures.shape[-2]) ** 0.5
    (slope,) = torch.autograd.grad((pictures * direction).sum(), styles, create_graph=True)
    return (slope**2).sum(dim=2).mean(dim=1).sqrt()


# ---- classes -----------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy over the labelled pixels; 0 where none is."""
    loss = functional.cross_entropy(logits.float(), labels, weights, ignore_index=UNKNOWN)
    return loss if bool((labels != UNKNOWN).any()) else logits.float().sum() * 0.0


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross entropy that forgets what is easy (Lin et al. 2017): Σ -(1 - p)^γ log p over the labelled pixels."""
    log_p = functional.log_softmax(logits.float(), dim=1)
    known = labels != UNKNOWN
    log_p = log_p.gather(1, labels.masked_fill(~known, 0)[:, None])[:, 0]
    return _mean(-((1 - log_p.exp()) ** gamma) * log_p, known)


def dice(logits: Tensor, labels: Tensor, background: bool = False) -> Tensor:
    """1 - Dice's overlap of the batch, mean over the classes (without class 0 unless `background`)."""
    known = (labels != UNKNOWN)[:, None]
    p = logits.float().softmax(dim=1) * known
    truth = _one_hot(labels, logits.shape[1])
    both, either = (p * truth).sum(dim=(0, 2, 3)), (p + truth).sum(dim=(0, 2, 3))
    overlap = (2 * both + 1) / (either + 1)  # a class that is not there and not seen is right
    return 1 - (overlap if background else overlap[1:]).mean()


def boundary(logits: Tensor, labels: Tensor, reach: int = 16) -> Tensor:
    """Probability times signed distance to the true outline (Kervadec et al. 2019), without class 0.

    Distances are in pixels, positive outside, and end at `reach`, so that one wild pixel does not outweigh a rock.
    Negative for a good mask; meant as an addition to Dice or cross entropy.
    """
    known = (labels != UNKNOWN)[:, None]
    truth = _one_hot(labels, logits.shape[1])[:, 1:] > 0
    with torch.no_grad():
        signed = distance(truth, reach) - distance(~truth, reach)
    return _mean(logits.float().softmax(dim=1)[:, 1:] * signed / reach, known)


def distance(there: Tensor, reach: int = 16) -> Tensor:
    """Euclidean distance in pixels from each pixel (B, C, H, W) to the nearest that is true, `reach` at most; exact."""
    far = float(reach)
    down = torch.full(there.shape, far, device=there.device).masked_fill(there, 0.0)
    for shift in range(1, reach):  # nearest in the column …
        near = functional.max_pool2d(there.float(), (2 * shift + 1, 1), 1, (shift, 0)) > 0
        down = torch.where(near, down.clamp_max(shift), down)
    squares = functional.pad(down**2, (reach, reach, 0, 0), value=far**2)
    best = down**2
    width = there.shape[-1]
    for shift in range(-reach, reach + 1):  # … and from there along the row
        best = torch.minimum(best, squares[..., reach + shift : reach + shift + width] + shift**2)
    return best.sqrt().clamp_max(far)


# ---- features ----------------------------------------------------------------------------------------------------

FEATURES = "vgg16-lpips.safetensors"
# SHA-256 over the sorted names and the bytes of the tensors, so that it does not depend on how the file is laid out.
FEATURES_SHA256 = "4bce89f89e105d403e558b60b9711a7a9a7d876cdcaa442af4c27f983ce1afc4"
_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Perceptual(nn.Module):
    """How unlike two images look: the distance LPIPS of Zhang et al. (2018) on fixed features of VGG16.

    Takes images (B, 1 or 3, H, W) in 0…1, 16 px or more on a side. After each of the five stages the features of a
    pixel are scaled to length 1; their squared differences are weighted and averaged over the image. Its weights are
    read from a file and never trained.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        weights = load_features() if weights is None else weights
        channels = 3
        self.stages = nn.ModuleList()
        for stage, widths in enumerate(_VGG):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if stage else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*layers))
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        for number, layer in enumerate(convolutions):
            layer.weight.data.copy_(weights[f"conv{number}.weight"])
            layer.bias.data.copy_(weights[f"conv{number}.bias"])  # type: ignore[union-attr]
        for stage in range(len(_VGG)):
            self.register_buffer(f"head{stage}", weights[f"head{stage}"].view(1, -1, 1, 1).clone())
        self.register_buffer("centre", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """One number: 0 for equal images."""
        total = torch.zeros((), device=a.device)
        for seen, head in self.features(torch.cat([a, b])):
            one, other = seen.chunk(2)
            total = total + ((one - other) ** 2 * head).sum(dim=1).mean()
        return total

    def looks(self, images: Tensor) -> Tensor:
        """What images look like wherever it is (B, F): the same features, averaged over the image, weighted alike.

        The squared distance of two of them is the distance LPIPS of images that show the same textures elsewhere.
        """
        return torch.cat([(seen * head.sqrt()).mean(dim=(2, 3)) for seen, head in self.features(images)], dim=1)

    def features(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """After each stage: features of length 1 (B, C, h, w), and the weights of their channels."""
        x = (2 * images.float().expand(-1, 3, -1, -1) - 1 - self.centre) / self.spread
        for number, stage in enumerate(self.stages):
            x = stage(x)
            yield x / (x.norm(dim=1, keepdim=True) + 1e-10), getattr(self, f"head{number}")


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """How far two sets of points (N, F), (M, F) lie apart as sets, unbiased: about 0 for samples of one distribution.

    Twice the mean distance between the sets, less the mean distances inside them (Székely and Rizzo 2013).
    """
    inside = [torch.pdist(x.double()).mean() for x in (a, b)]
    return 2 * torch.cdist(a.double(), b.double()).mean() - inside[0] - inside[1]


def features_file() -> Path:
    """Where the fixed features lie: LUNAR_FEATURES, else the user's cache."""
    if named := os.environ.get("LUNAR_FEATURES"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lunar" / FEATURES


def load_features(path: Path | None = None) -> dict[str, Tensor]:
    """The weights of `Perceptual`, refused unless they are the known ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = path or features_file()
    cure = "get them with `lunar fetch-features`, or train without the perceptual loss."
    if not path.is_file():
        raise ModelError(f"The fixed features for the perceptual loss are not in {path}.", cure)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}).", cure) from error
    if digest(weights) != FEATURES_SHA256:
        raise ModelError(f"{path} does not hold the fixed features: its checksum is another.", cure)
    return weights


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted names and the float32 bytes of tensors."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()


# ---- shared ------------------------------------------------------------------------------------------------------


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1e-12)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, classes, H, W) float; nothing where the label is UNKNOWN."""
    known = labels != UNKNOWN
    hot = functional.one_hot(labels.masked_fill(~known, 0), classes).movedim(-1, 1)
    return (hot * known[:, None]).float()
