"""Rocks seen from the ground: ground, small rock, large rock and sky, a class for each pixel.

Four published networks, each as its authors' program trained it and repaired, and our own, `rocks-surface`. What the
published program does otherwise than its report says, and what is repaired here:

- the small U-Net ends in a softmax and is judged by a cross entropy that applies softmax once more: its loss can never
  fall below 0.744; repaired, it gives logits;
- flips happen to four images of five, instead of one;
- the ImageNet encoders are given grey levels 0…1, not those they were trained on.

Masks are always brought to another size by nearest neighbour; the authors' bilinear masks lose classes at their edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.modelpack import Card
from lunar_processing.networks.encoders import EncoderUNet
from lunar_processing.simulate import scenes
from lunar_processing.training import losses
from lunar_processing.training.data import UNKNOWN, Batch, Picture, Sampler, crops, dice, mix, percentiles
from lunar_processing.training.loop import Networks, State, Task
from lunar_processing.training.recipes.recipe import Lesson, Recipe

CLASSES = ("ground", "small rock", "large rock", "sky")
ROCKS = (1, 2)
SKY = 3
EITHER = 254  # in masks: a rock, of a size that nobody has said
WHOLE, CLOSE_UP, WEAKLY = "whole", "close-up", "weak"  # kinds of pictures; products of the latter two say so
REAL = "real"  # product of the real images that are validated on
MOST, VALIDATIONS = 14, 3  # pictures of a kind that are validated on, and how often: it takes of the time to learn
SIDE = 256  # px: what the published programs bring every image to
TITLE = "Rocks from the ground"

# ---- what is measured --------------------------------------------------------------------------------------------

Change = Callable[[Picture], Picture]


def judged(lesson: Lesson, shown: Change) -> Callable[[Networks], dict[str, float]]:
    """A validation: mean IoU of the classes and IoU of rocks of both sizes, over whole pictures as they are `shown`.

    Pictures of one kind, as renders or real images, count together, since a rock is in few of them. Their kind is
    their product. What is measured is the mean over the kinds; names with a / are those of single kinds.
    """
    kinds: dict[str, list[Picture]] = {}
    for one in lesson.validation:
        kinds.setdefault(one.product, []).append(shown(one))
    chosen = {kind: some[:: -(-len(some) // MOST)] for kind, some in kinds.items()}

    def validate(networks: Networks) -> dict[str, float]:
        network = networks["net"]
        device = next(network.parameters()).device
        numbers: dict[str, float] = {}
        for kind, some in chosen.items():
            counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
            for one in some:
                said = network(torch.from_numpy(one.image).to(device)[None, None]).argmax(dim=1)[0].cpu()
                counts += confusion(torch.from_numpy(one.mask).long(), said)
            numbers |= {f"{name}/{kind}": value for name, value in overlap(counts).items()}
        means = {name: [v for k, v in numbers.items() if k.startswith(f"{name}/")] for name in ("iou", "rock_iou")}
        return {**{name: sum(values) / max(len(values), 1) for name, values in means.items()}, **numbers}

    return validate


def confusion(true: Tensor, said: Tensor, classes: int = len(CLASSES)) -> Tensor:
    """Pixels of each true class (rows) that are said to be of each class (columns); only where the truth is known."""
    known = true < classes
    return torch.bincount(true[known] * classes + said[known], minlength=classes**2).view(classes, classes)


def overlap(counts: Tensor) -> dict[str, float]:
    """Intersection over union: mean of the classes that are there, and of rocks of both sizes together."""
    both, either = counts.diagonal().double(), (counts.sum(0) + counts.sum(1) - counts.diagonal()).double()
    there = counts.sum(1) > 0
    low, high = ROCKS[0], ROCKS[-1] + 1
    right = counts[low:high, low:high].sum().double()
    any_rock = counts[low:high].sum() + counts[:, low:high].sum() - right
    return {"iou": float((both / either)[there].mean()), "rock_iou": float(right / any_rock)}


# ---- the published networks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A network and how it is optimised; `slip` is what its program sets otherwise than its report says."""

    family: str
    settings: Mapping[str, Any]
    slip: Mapping[str, Any]
    optimiser: str
    rate: float


# The way up of segmentation-models' U-Net, which the authors' program takes.
_WAY_UP = {"up": (16, 32, 64, 128, 256)}
PUBLISHED: dict[str, Published] = {
    "unet-published": Published("unet-published", {"channels": 8, "depth": 3, "softmax": False}, {"softmax": True},
                                "adam", 1e-3),
    **{
        f"unet-{name}": Published("unet-encoder", {"encoder": encoder, "normalise": True, **_WAY_UP},
                                  {"normalise": False}, "sgd", 1e-2)
        for name, encoder in (("vgg11", "vgg11-bn"), ("resnet18", "resnet18"), ("mobilenetv3", "mobilenetv3"))
    },
}  # fmt: skip


def published_task(lesson: Lesson, optimiser: str) -> Task:
    """Cross entropy of what the network gives, and nothing else."""
    net = lesson.network

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        with state.precision():
            output = net(batch["image"])
        found = losses.cross_entropy(output.float(), _one_size(batch["mask"]))
        state.descend("net", found)
        return {"cross_entropy": found}

    chosen: torch.optim.Optimizer = (
        torch.optim.Adam(net.parameters(), lesson.rate)
        if optimiser == "adam"
        else torch.optim.SGD(net.parameters(), lesson.rate, momentum=0.9)
    )
    validate = judged(lesson, lambda picture: squeezed(picture, lesson.size))
    return Task({"net": net}, {"net": chosen}, lesson.batch, step, validate, ("iou", "high"), lesson.about)


def whole_images(pictures: Sequence[Picture], size: int, batch: int, seed: int, device: str = "cpu") -> Sampler:
    """Whole images, brought to `size` × `size` whatever their shape was."""
    return crops([squeezed(p, size) for p in pictures if _kind(p) == WHOLE], size, batch, seed)


def squeezed(picture: Picture, size: int) -> Picture:
    """The whole picture as a square; classes by nearest neighbour."""
    image = torch.from_numpy(picture.image)[None, None]
    image = functional.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)

    def nearest(values: Any) -> Any:
        there = torch.from_numpy(values.astype("uint8"))[None, None]
        return functional.interpolate(there, (size, size), mode="nearest-exact")[0, 0].numpy()

    mask = None if picture.mask is None else nearest(picture.mask)
    return replace(picture, image=image[0, 0].numpy(), valid=nearest(picture.valid).astype(bool), mask=mask)


def _published(name: str, plan: Published, repaired: bool) -> Recipe:
    settings = {**plan.settings, **({} if repaired else plan.slip), "outputs": len(CLASSES)}
    return Recipe(
        name=f"{name}-repaired" if repaired else name,
        title=f"{TITLE}: the published network {name}, {'repaired' if repaired else 'as its program trains it'}",
        # The tool shows a network the image as it is; `side` tells the evaluation how the authors' programs did it.
        card=Card("", "rocks", plan.family, settings=settings, classes=CLASSES, tile=512, halo=64,
                  reading={"side": SIDE}),
        task=partial(published_task, optimiser=plan.optimiser),
        policy="published" if repaired else "published-slip",
        scenes="lander",
        labels=True,
        sampler=whole_images,
        size=SIDE,
        batch=4,
        rate=plan.rate,
        validations=VALIDATIONS,
    )  # fmt: skip


# ---- our own -----------------------------------------------------------------------------------------------------

WEIGHTS = (1.0, 3.0, 3.0, 1.0)  # rocks are a few pixels in a hundred
SIMULATED, WEAK, CLOSE = 1, 1, 1  # of eight windows; the rest are of whole renders
UNSEEN = 0.0  # what the network is shown where nothing was seen: the sky is there, and a tool takes black for no data
HALO = 128  # px around an image in which nothing was seen
# Shares of windows in which black sky is UNSEEN: all of it, or down to some row. Below, as in images that were
# compressed, it is nearly black, and valid.
HIDDEN_SKY, PARTLY_HIDDEN = 0.4, 0.4
NEARLY_BLACK = 0.08  # of the range, at the most
OWN_RANGE = 0.5  # share of windows that are stretched by themselves, as an image without sky would be
EDGES, EDGE = 0.25, 0.25  # share of windows beyond each side of which an image ends, and how far inside at the most
LOWERED = 24  # px of sky, at the most, that are left above the lowest horizon in views that look down
# Costs a fifth of a step, and sees edges and spots as it does in any picture.
FIXED = tuple(f"encoder.{name}." for name in ("_conv_stem", "_bn0", "_blocks.0", "_blocks.1"))
SLOWER = 0.2  # the rate of what has learnt from ImageNet already, as a share
POOL, AGAIN = 8, 16  # simulated batches that are made together, and how often each is seen, varied anew each time
AROUND = 61  # px of a square in which rocks are small or large together
FILLED = 0.08  # share of it that a rock of 300 px fills: more speaks for large, as in the masks of real images
PREFERENCES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # of rocks, as logits
BALANCED_ON = 18  # pictures
VISIBLE_PX = 12  # a simulated rock of fewer pixels is neither asked for nor forbidden


def task(lesson: Lesson) -> Task:
    """Cross entropy and Dice; what has been learnt from ImageNet is led on more slowly."""
    net = lesson.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = torch.tensor(WEIGHTS)

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        with state.precision():
            output = net(batch["image"].contiguous(memory_format=torch.channels_last))
        logits, labels = output.float(), _one_size(batch["mask"])
        found = {
            "cross_entropy": losses.cross_entropy(logits, labels, weights.to(logits.device)),
            "dice": losses.dice(logits, labels),
            "rocks": losses.cross_entropy(_any_rock(logits), _rock_or_not(batch["mask"])),
        }
        state.descend("net", torch.stack(list(found.values())).sum())
        return found

    for name, weights_there in net.named_parameters():
        weights_there.requires_grad_(not name.startswith(FIXED))
    known = [w for name, w in net.named_parameters() if name.startswith("encoder.") and not name.startswith(FIXED)]
    new = [w for name, w in net.named_parameters() if not name.startswith("encoder.")]
    groups = [{"params": new, "lr": lesson.rate}, {"params": known, "lr": SLOWER * lesson.rate}]
    optimiser = torch.optim.AdamW(groups, lesson.rate, weight_decay=1e-3)
    validate = judged(lesson, as_the_tool_shows)
    return Task({"net": net}, {"net": optimiser}, lesson.batch, step, validate, ("iou", "high"), lesson.about)


@torch.no_grad()
def balance(lesson: Lesson, net: nn.Module) -> Mapping[str, Any]:
    """Choose by how much small and large rocks are preferred: what the best mean IoU of the classes asks for.

    A short training sees rare things too seldom, and small rocks hardly ever. Chosen on what is validated on, but for
    real images where there are others. Puts it into the network's last biases.
    """
    assert isinstance(net, EncoderUNet)
    judges = [p for p in lesson.validation if p.product != REAL] or list(lesson.validation)
    device = next(net.parameters()).device
    seen = []
    for one in judges[:: -(-len(judges) // BALANCED_ON)]:
        shown = as_the_tool_shows(one)
        logits = net.logits(torch.from_numpy(shown.image).to(device)[None, None]).cpu()
        seen.append((torch.from_numpy(shown.mask).long(), logits))
    scores = {}
    for small, large in product(PREFERENCES, PREFERENCES):
        more = torch.tensor([0.0, small, large, 0.0])[:, None, None]
        said = ((true, net.decided(logits + more).argmax(dim=1)[0]) for true, logits in seen)
        counts = sum(confusion(true, classes) for true, classes in said)
        scores[small, large] = overlap(torch.as_tensor(counts))["iou"]
    best = max(scores, key=lambda pair: scores[pair])
    net.get_parameter("head.bias").add_(torch.tensor([0.0, *best, 0.0], device=device))
    return {"preference_small": best[0], "preference_large": best[1]}


def _one_size(mask: Tensor) -> Tensor:
    """Labels of the four classes; a rock of either size is UNKNOWN."""
    return mask.masked_fill(mask == EITHER, UNKNOWN)


def _rock_or_not(mask: Tensor) -> Tensor:
    """0 no rock, 1 rock of any size, UNKNOWN."""
    rock = torch.isin(mask, torch.tensor([*ROCKS, EITHER], device=mask.device))
    return torch.where(mask == UNKNOWN, UNKNOWN, rock.long())


def _any_rock(logits: Tensor) -> Tensor:
    """Two logits: of no rock, and of a rock of any size."""
    none = [k for k in range(len(CLASSES)) if k not in ROCKS]
    return torch.stack([logits[:, none].logsumexp(dim=1), logits[:, list(ROCKS)].logsumexp(dim=1)], dim=1)


def as_the_tool_shows(picture: Picture, unseen: float = UNSEEN, halo: int = HALO) -> Picture:
    """What counts as without data, as a black sky does, is `unseen`, and so is a halo around the image."""
    return replace(
        picture,
        image=np.pad(np.where(picture.valid, picture.image, unseen), halo, constant_values=unseen).astype(np.float32),
        valid=np.pad(picture.valid, halo),
        mask=None if picture.mask is None else np.pad(picture.mask, halo, constant_values=UNKNOWN),
    )


def sampler(pictures: Sequence[Picture], size: int, batch: int, seed: int, device: str = "cpu") -> Sampler:
    """Windows of whole pictures, of close-ups, of partly labelled frames, and of simulated scenes."""
    eighth = max(1, batch // 8)
    shares = {"simulated": SIMULATED * eighth, WEAKLY: WEAK * eighth, CLOSE_UP: CLOSE * eighth}
    shares[WHOLE] = max(1, batch - sum(shares.values()))
    aimed = {WHOLE: 0.0, CLOSE_UP: 0.0, WEAKLY: 0.5}  # in the others nearly every window holds rocks
    kinds = {kind: [p for p in pictures if _kind(p) == kind] for kind in aimed}
    kinds[WHOLE] = kinds[WHOLE] + [lowered(p, number % LOWERED) for number, p in enumerate(kinds[WHOLE][::2])]
    drawn = [
        crops(some, size, shares[kind], mix(seed, number), aimed[kind])
        for number, (kind, some) in enumerate(kinds.items())
        if some
    ]

    @lru_cache(maxsize=1)
    def pool(number: int) -> Batch:
        return landers(size, POOL * shares["simulated"], mix(mix(seed, 3), number))

    def draw(step: int) -> Batch:
        number, turn = divmod(step, POOL * AGAIN)
        order = torch.randperm(POOL * shares["simulated"], generator=dice(mix(seed, number), turn // POOL))
        chosen = order[turn % POOL * shares["simulated"] :][: shares["simulated"]]
        parts = [one(step) for one in drawn] + [{name: values[chosen] for name, values in pool(number).items()}]
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[-1]}
        shown = hidden_sky(stretched(together, dice(mix(seed, 4), step)), dice(mix(seed, 5), step))
        return edged(shown, dice(mix(seed, 6), step))

    return draw


def lowered(picture: Picture, left: int) -> Picture:
    """The same view as of a camera that looks down: `left` px of sky above where it reaches furthest down."""
    sky = np.zeros(0) if picture.mask is None else (picture.mask == SKY).any(axis=1).nonzero()[0]
    first = max(0, int(sky.max()) + 1 - left) if len(sky) else 0
    return picture.cut(slice(first, None), slice(None)) if first < len(picture.image) // 2 else picture


def _kind(picture: Picture) -> str:
    return picture.product if picture.product in (CLOSE_UP, WEAKLY) else WHOLE


def landers(size: int, batch: int, seed: int) -> Batch:
    """Simulated views of a lander. Rocks are EITHER size, since the simulator parts them otherwise; what is too small
    to be seen is UNKNOWN.
    """
    made = scenes.draw("lander", batch, seed, "cpu", size)
    low, high = percentiles(made.image)
    classes = made.classes.long()
    return {
        "image": ((made.image - low) / (high - low).clamp_min(1e-6))[:, None],
        "valid": (classes != SKY)[:, None],
        "mask": _visible(classes, made.rock_id.long()),
    }


def _visible(classes: Tensor, rock_id: Tensor) -> Tensor:
    pixels = torch.bincount(rock_id.flatten())
    rock = torch.isin(classes, torch.tensor(ROCKS, device=classes.device))
    tiny = rock & (pixels[rock_id] < VISIBLE_PX)
    return classes.masked_fill(rock, EITHER).masked_fill(tiny, UNKNOWN)


def stretched(batch: Batch, generator: torch.Generator, often: float = OWN_RANGE) -> Batch:
    """Some of the windows between their own percentiles: a cut of an image looks as that image would alone."""
    image = batch["image"]
    chosen = (torch.rand(len(image), generator=generator) < often).to(image.device)[:, None, None, None]
    low, high = percentiles(image[:, 0])
    own = (image - low[:, None]) / (high - low).clamp_min(0.05)[:, None]
    return {**batch, "image": torch.where(chosen & batch["valid"], own, image)}


def hidden_sky(batch: Batch, generator: torch.Generator) -> Batch:
    """In some of the windows what is not valid is UNSEEN, in some that which lies above a random row; what is left of
    it is nearly black.
    """
    image, dark = batch["image"], ~batch["valid"]
    how, row, level = torch.rand(3, len(image), 1, 1, 1, generator=generator).to(image.device)
    rows = torch.arange(image.shape[-2], device=image.device)[:, None]
    above = torch.where(how < HIDDEN_SKY, 2.0, torch.where(how < HIDDEN_SKY + PARTLY_HIDDEN, row, -1.0))
    # A random share of the rows that sky reaches to, so that also a narrow sky is parted.
    reach = (dark * (rows + 1)).amax(dim=(-2, -1), keepdim=True)
    grain = torch.rand(image.shape, generator=generator).to(image.device)
    image = torch.where(dark, image + NEARLY_BLACK * level * grain, image)
    return {**batch, "image": image.masked_fill(dark & (rows < above * reach), UNSEEN)}


def edged(batch: Batch, generator: torch.Generator) -> Batch:
    """In some of the windows the image ends: beyond, nothing is seen and nothing is asked."""
    height, width = batch["image"].shape[-2:]
    there, inside = torch.rand(2, len(batch["image"]), 4, 1, 1, generator=generator).to(batch["image"].device)
    left, right, top, bottom = ((there < EDGES) * EDGE * inside).unbind(dim=1)
    rows = torch.arange(height, device=there.device)[:, None] / height
    cols = torch.arange(width, device=there.device) / width
    beyond = (cols < left) | (cols >= 1 - right) | (rows < top) | (rows >= 1 - bottom)
    return {
        **batch,
        "image": batch["image"].masked_fill(beyond[:, None], UNSEEN),
        "valid": batch["valid"] & ~beyond[:, None],
        "mask": batch["mask"].masked_fill(beyond, UNKNOWN),
    }


ABOUT = (
    "Small and large rocks, ground and sky in what a lander or rover sees, in pixels. Small and large are those of the "
    "renders it learnt from: about 300 px of area in an image 420 px wide."
)

SURFACE = Recipe(
    name="rocks-surface",
    title=TITLE,
    card=Card("", "rocks", "unet-encoder", settings={
        "encoder": "efficientnet-lite0-13", "outputs": len(CLASSES), "alike": ROCKS, "around": AROUND, "filled": FILLED,
        "mirrored": True},
              classes=CLASSES, tile=1024, halo=HALO, reading={"unseen": UNSEEN}, description=ABOUT),
    task=task,
    policy="ground",
    scenes="lander",
    labels=True,
    sampler=sampler,
    size=224,
    batch=8,
    rate=5e-3,
    steps=2400,
    keep="float16",
    validations=VALIDATIONS,
    finish=balance,
)  # fmt: skip

RECIPES = (
    SURFACE,
    *(_published(name, plan, repaired) for name, plan in PUBLISHED.items() for repaired in (False, True)),
)
