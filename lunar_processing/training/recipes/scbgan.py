"""SCB-GAN: believable surfaces of small bodies out of few real images (IEEE 10196052).

StyleGAN2, whose critic is kept from learning the few images by heart in three ways: it sees them varied as often as it
must (ADA), further critics see them through frozen eyes (vision-aided), and the real images are multiplied by the
variations that suit them, which were mined (MineAug). Each of these can be left out, to see what it is good for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lunar_processing.errors import ModelError, ParameterError
from lunar_processing.modelpack import SYNTHESIS, Card, Normalisation
from lunar_processing.networks.scbgan import Critic, Generator, Watcher, made_of
from lunar_processing.training import augment
from lunar_processing.training.ada import Adaptive
from lunar_processing.training.data import Batch, Sampler, dice, mix
from lunar_processing.training.features import FEATURES, Features, features, pooled
from lunar_processing.training.loop import Networks, State, Task
from lunar_processing.training.losses import adversarial, energy_distance, path_lengths, r1
from lunar_processing.training.recipes.recipe import Lesson, Recipe

FEWEST = 64  # images to learn from: fewer would be learnt by heart
R1_EVERY, PATHS_EVERY = 16, 4  # steps
PATHS_SHRINK = 2  # of the batch, for the lengths of paths
PATHS_FOLLOW = 0.01
MIXED = 0.9  # share of the batches whose coarse and fine styles are those of two latents
BETAS = (0.0, 0.99)
MINED = ("gamma", "brightness", "shear")  # what suits the shipped model's patches best, by `lunar mine-augmentations`
SURE = 0.9  # accuracy of a linear probe from which on the answers are smoothed …
SMOOTH = 0.8  # … so much is a real image real then
PROBED = 256  # images of either kind for a probe
JUDGED = 512  # images of either kind for a validation …
JUDGED_AT_ONCE = 32  # … so many at a time
ELSEWHERE = 1 << 40  # steps from which real images for a probe come
# Further critics begin at these shares of the training: 500, 4500 and 6500 of 8500 thousand images are published.
BEGIN = (0.06, 0.53, 0.76)
MULTILEVEL = {"vgg16": False}  # as published; all others look at each level


@dataclass(frozen=True)
class Wanted:
    """What a training is made of; each can be changed with --set.

    `ada`: the sureness that is aimed at, or 0 for none; `ada_vision` that of the critics on features; `ada_thousands`
    of images until it could have gone from 0 to 1. `num` of the frozen networks in `features` are used, the next one
    is chosen when its time has come; they look at one image of `watched`. `gamma` weighs R1, `paths` the lengths of
    paths. `augmentations` multiply the real images: each is shown as often as the image itself.
    """

    ada: float = 0.6
    ada_vision: float = 0.3
    ada_thousands: float = 500.0
    features: Sequence[str] = ("efficientnet-lite0",)
    num: int = 1
    watched: int = 1
    augmentations: Sequence[str] = ()
    gamma: float = 1.0
    paths: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.num <= min(len(self.features), len(BEGIN)):
            raise ParameterError(
                f"num={self.num} is not possible with the features {', '.join(self.features)}.",
                f"give 0 to {min(len(self.features), len(BEGIN))}.",
            )
        for what, names, known in (
            ("are no features", self.features, tuple(FEATURES)),
            ("is no augmentation", self.augmentations, tuple(augment.CANDIDATES)),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ParameterError(f"There {what} {unknown[0]!r}.", f"choose of {', '.join(known)}.")


# ---- what is remembered --------------------------------------------------------------------------------------------


class Notes(nn.Module):
    """What a training has to remember besides its networks: mean length of paths, images shown, which eyes it has."""

    mean_path: Tensor
    shown: Tensor
    chosen: Tensor
    smooth: Tensor

    def __init__(self, num: int) -> None:
        super().__init__()
        self.register_buffer("mean_path", torch.zeros(()))
        self.register_buffer("shown", torch.zeros((), dtype=torch.long))
        self.register_buffer("chosen", torch.full((num,), -1))  # numbers of features, in the order they came
        self.register_buffer("smooth", torch.zeros(num, dtype=torch.bool))

    def eyes_wanted(self, done: float) -> bool:
        """Whether it is time for one more, by the share of the training that is over."""
        return sum(done >= begin for begin in BEGIN[: len(self.chosen)]) > len(self.eyes())

    def eyes(self) -> list[tuple[int, float]]:
        """(number of the features, what a real image is told to be) of those in use."""
        return [(n, SMOOTH if s else 1.0) for n, s in zip(self.chosen.tolist(), self.smooth.tolist()) if n >= 0]


# ---- the task ------------------------------------------------------------------------------------------------------


def task(lesson: Lesson, look: Callable[[str], Features] = features) -> Task:
    """A generator, its critic, critics on features; `look` finds features by their name."""
    net, wanted = lesson.network, Wanted(**lesson.options)
    if not isinstance(net, Generator):
        raise ModelError(
            f"The recipe {lesson.recipe.name} trains networks of the family 'scbgan' alone.",
            "begin without --from, or with another.",
        )
    eyes = {name: look(name) for name in wanted.features} if wanted.num else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(lesson.seed, 5))
        networks: dict[str, nn.Module] = {
            "net": net,
            "critic": Critic(net.size, net.width, net.most),
            "ada": Adaptive(wanted.ada, wanted.ada_thousands),
            "notes": Notes(wanted.num),
        }
        for name, eye in eyes.items():
            networks[f"watcher_{name}"] = Watcher(eye.widths, MULTILEVEL.get(name, True))
            networks[f"ada_{name}"] = Adaptive(wanted.ada_vision, wanted.ada_thousands)
    learning = {name: part for name, part in networks.items() if name in ("net", "critic") or "watcher" in name}
    return Task(
        networks,
        {name: _adam(part, lesson.rate) for name, part in learning.items()},
        multiplied(lesson.batch, wanted.augmentations, lesson.seed),
        _Training(networks, wanted, eyes, lesson.batch).step,
        validation(lesson, next(iter(eyes.values()), None)),
        ("thousands", "high"),  # the last: by features that critics look through, the best is not the best
        lesson.about,
    )


def _adam(part: nn.Module, rate: float) -> torch.optim.Adam:
    """What is regularised only now and then learns as if it were each time (Karras et al. 2020)."""
    every = R1_EVERY if isinstance(part, Critic) else PATHS_EVERY if isinstance(part, Generator) else 0
    share = every / (every + 1) if every else 1.0
    return torch.optim.Adam(part.parameters(), rate * share, betas=(BETAS[0] ** share, BETAS[1] ** share))


@dataclass(frozen=True)
class _Training:
    """What a step needs: networks, wishes, eyes by their names, and real images for a probe."""

    networks: Networks
    wanted: Wanted
    eyes: Mapping[str, Features]
    real: Sampler

    def step(self, batch: Batch, state: State) -> dict[str, Tensor]:
        """Generator, critics, and now and then what keeps both smooth."""
        real, step = 2 * batch["image"] - 1, state.step
        notes: Notes = self.networks["notes"]  # type: ignore[assignment]
        for eye in self.eyes.values():
            eye.to(state.device)
        if notes.eyes_wanted(state.done):
            self._open_an_eye(notes, state)
        watching = [(list(self.eyes)[number], sure) for number, sure in notes.eyes()]
        fake, losses = self._fool(len(real), watching, state)
        losses |= self._tell(real, fake, watching, state)
        if self.wanted.gamma and step % R1_EVERY == 0:
            losses["r1"] = self._soften(real, state)
        if self.wanted.paths and step % PATHS_EVERY == 0:
            losses["paths"] = self._even_out(len(real) // PATHS_SHRINK, notes, state)
        notes.shown += len(real)
        return losses

    def _fool(
        self, count: int, watching: Sequence[tuple[str, float]], state: State
    ) -> tuple[Tensor, dict[str, Tensor]]:
        net = self.networks["net"]
        self.networks["critic"].requires_grad_(False)
        with state.precision():
            fake = net.paint(mixed(net, count, state.device))  # type: ignore[operator, arg-type]
            words = {"fooled": self._judge("critic", fake)}
            for name, _ in watching:
                self.networks[f"watcher_{name}"].requires_grad_(False)
                words[f"fooled_{name}"] = self._judge(f"watcher_{name}", fake)
        losses = {name: adversarial(word, real=True) for name, word in words.items()}
        state.descend("net", torch.stack(list(losses.values())).sum())
        return fake.detach().float(), losses

    def _tell(
        self, real: Tensor, fake: Tensor, watching: Sequence[tuple[str, float]], state: State
    ) -> dict[str, Tensor]:
        losses = {}
        for name, sure in [("critic", 1.0), *((f"watcher_{eye}", sure) for eye, sure in watching)]:
            self.networks[name].requires_grad_(True)
            with state.precision():
                on_real, on_fake = self._judge(name, real), self._judge(name, fake)
            losses[name] = adversarial(on_real, real=True, smooth=sure) + adversarial(on_fake, real=False)
            state.descend(name, losses[name])
            ada: Adaptive = self.networks[_ada(name)]  # type: ignore[assignment]
            if self.wanted.ada:
                ada.hear(on_real.detach().float(), len(real), state.step)
            losses[f"{_ada(name)}_share"] = ada.share
        return losses

    def _judge(self, name: str, images: Tensor) -> Tensor:
        """The word of a critic on varied images: its own, or through its eye."""
        if name == "critic":
            return self.networks[name](self._varied("ada", images))
        varied = self._varied(_ada(name), images[:: self.wanted.watched])
        seen = self.eyes[name.removeprefix("watcher_")](varied.clamp(-1, 1))
        return self.networks[name](seen.maps)

    def _varied(self, ada: str, images: Tensor) -> Tensor:
        return self.networks[ada](images) if self.wanted.ada else images

    def _soften(self, real: Tensor, state: State) -> Tensor:
        """R1, at the images as the critic sees them."""
        seen = self._varied("ada", real).detach().requires_grad_(True)
        penalty = 0.5 * self.wanted.gamma * R1_EVERY * r1(seen, self.networks["critic"](seen))
        state.descend("critic", penalty)
        return penalty.detach()

    def _even_out(self, count: int, notes: Notes, state: State) -> Tensor:
        """Equal steps in style shall be equal steps in the picture."""
        net: Generator = self.networks["net"]  # type: ignore[assignment]
        styles = mixed(net, max(1, count), state.device)
        lengths = path_lengths(net.paint(styles), styles)
        notes.mean_path.lerp_(lengths.detach().mean(), PATHS_FOLLOW)
        penalty = self.wanted.paths * PATHS_EVERY * ((lengths - notes.mean_path) ** 2).mean()
        state.descend("net", penalty)
        return penalty.detach()

    @torch.no_grad()
    def _open_an_eye(self, notes: Notes, state: State) -> None:
        """The next eyes are those that tell real from made best; where they do so too well, critics are less sure."""
        used = [number for number, _ in notes.eyes()]
        net: Generator = self.networks["net"]  # type: ignore[assignment]
        real = real_images(self.real, PROBED)
        made = net(torch.randn(PROBED, net.latent, device=state.device)).float().clamp(-1, 1)
        found = {}
        for number, eye in enumerate(self.eyes.values()):
            if number not in used:
                found[number] = told_apart(*(pooled(eye, some, JUDGED_AT_ONCE) for some in (real, made)))
        best = max(found, key=lambda number: found[number])
        notes.chosen[len(used)], notes.smooth[len(used)] = best, found[best] > SURE


def _ada(critic: str) -> str:
    """The name of what varies the images of a critic."""
    return critic.replace("critic", "ada").replace("watcher", "ada")


def mixed(net: Generator, count: int, device: torch.device) -> Tensor:
    """Styles (N, depth, latent) of new latents; in most pictures the fine levels have that of another."""
    one, other = (net.styles(torch.randn(count, net.latent, device=device)) for _ in range(2))
    level = torch.arange(net.depth, device=device)
    from_here = torch.randint(1, net.depth, (count, 1), device=device)
    swapped = (level >= from_here) & (torch.rand(count, 1, device=device) < MIXED)
    return torch.where(swapped[..., None], other[:, None], one[:, None])


def told_apart(real: Tensor, made: Tensor) -> float:
    """Accuracy, 0…1, of a linear probe on features (N, F): fitted to one half of either, asked about the other."""
    half = len(real) // 2
    seen = torch.cat([real[:half], made[:half]]).double()
    mean, spread = seen.mean(dim=0), seen.std(dim=0) + 1e-6
    kind = torch.cat([torch.ones(half), -torch.ones(half)]).to(seen)
    seen = (seen - mean) / spread
    ridge = half * torch.eye(len(seen), dtype=seen.dtype, device=seen.device)  # more features than images
    weights = seen.T @ torch.linalg.solve(seen @ seen.T + ridge, kind)
    right = [((part[half:].double() - mean) / spread) @ (weights * sign) > 0 for part, sign in ((real, 1), (made, -1))]
    return float(torch.cat(right).double().mean())


def multiplied(real: Sampler, augmentations: Sequence[str], seed: int) -> Sampler:
    """Real images, each shown as often as it is and varied by each of the augmentations."""

    def draw(step: int) -> Batch:
        batch = real(step)
        return {**batch, "image": augment.multiplied(batch["image"], augmentations, dice(mix(seed, 12), step))}

    return draw


# ---- validation ----------------------------------------------------------------------------------------------------


def validation(lesson: Lesson, eye: Features | None) -> Callable[[Networks], dict[str, float]]:
    """How far made images are, as a set, from those that are learnt from, by frozen features, as is published.

    Images of other products would say how far their ground is from this one. It is told, and chooses nothing: by the
    features that the generator learns to please it may rise while by others it falls.
    """
    looks: list[Tensor] = []

    def validate(networks: Networks) -> dict[str, float]:
        notes: Notes = networks["notes"]  # type: ignore[assignment]
        numbers = {"thousands": float(notes.shown) / 1000, "ada_share": float(networks["ada"].share)}  # type: ignore[arg-type]
        if eye is None:
            return numbers
        net: Generator = networks["net"]  # type: ignore[assignment]
        device = net.average.device
        eye.to(device)
        if not looks:
            looks.append(pooled(eye, real_images(lesson.batch, JUDGED), JUDGED_AT_ONCE))
        made = [made_of(net, range(k, k + JUDGED_AT_ONCE)) for k in range(0, JUDGED, JUDGED_AT_ONCE)]
        numbers["distance"] = float(energy_distance(pooled(eye, torch.cat(made), JUDGED_AT_ONCE), looks[0]))
        return numbers

    return validate


def real_images(real: Sampler, count: int) -> Tensor:
    """So many images (count, 1, S, S) in -1…1 that no step has learnt from in this order."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        found.append(real(ELSEWHERE + len(found))["image"])
    return 2 * torch.cat(found)[:count] - 1


ABOUT = (
    "Made-up pictures of the surfaces of small bodies and the Moon, for training detectors and for illustration. They "
    "show no place; nothing may be measured on them."
)


def _recipe(name: str, title: str, **options: Any) -> Recipe:
    return Recipe(
        name=name,
        title=title,
        card=Card("", SYNTHESIS, "scbgan", description=ABOUT, settings=dict(SMALL),
                  normalisation=Normalisation("range", 0, 255)),
        task=task,
        policy="none",
        scenes="nac",
        patches=True,
        fewest=FEWEST,
        size=64,
        batch=16,
        rate=2e-3,
        steps=12_000,
        keep="float16",
        schedule="constant",
        clip=10.0,
        options={**asdict(Wanted()), **QUICK, **options},
    )  # fmt: skip


# Small enough for a processor at 64 px. Published, for a GPU: width 1, most 512, latent 512, layers 8.
SMALL = {"size": 64, "width": 0.046875, "most": 96, "latent": 128, "layers": 4}
# … and for a training of tens of thousands of images instead of millions; published are the defaults of `Wanted`.
QUICK: dict[str, Any] = {"ada_thousands": 20.0, "gamma": 0.1, "watched": 2}
NONE: dict[str, Any] = {"ada": 0.0, "num": 0, "augmentations": ()}
RECIPES = (
    _recipe("scb-gan", "Surfaces of small bodies, made up", augmentations=MINED),
    _recipe("scb-gan-unmined", "The same without mined augmentations"),
    _recipe("stylegan2-ada", "StyleGAN2 with adaptive augmentation", num=0),
    _recipe("stylegan2", "StyleGAN2", **NONE),
)
