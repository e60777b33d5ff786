"""What every network of the house can do, whatever is inside. A new family is a new line in FAMILIES and in CASES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lunar_processing.modelpack import Card, read_pack, save_pack
from lunar_processing.networks import FAMILIES
from lunar_processing.networks.multiscale import Strangeness
from lunar_processing.networks.vae import Rebuilt, cut
from lunar_processing.training import losses
from lunar_processing.training.data import Batch, dice
from lunar_processing.training.loop import Plan, State, Task, train
from lunar_processing.training.recipes import vae

pytestmark = pytest.mark.usefixtures("one_thread")


def rebuilt(output: Tensor, batch: Batch) -> Tensor:
    """For networks that give back an image."""
    return losses.l1(output[:, :1], batch["image"] ** 2)


def classified(output: Tensor, batch: Batch) -> Tensor:
    """For networks that give logits of two classes."""
    return losses.cross_entropy(output, (batch["image"][:, 0] > 0.5).long())


def imagined(output: Rebuilt | Tensor, batch: Batch) -> Tensor:
    """For autoencoders: the loss of a training, the scores of an evaluation."""
    if isinstance(output, Tensor):
        return output.mean()
    wrong, divergence = vae.terms(output, cut(batch["image"], 32, 32).reshape(output.image.shape), "l2")
    return wrong + 1e-3 * divergence


def noticed(output: Strangeness | Tensor, batch: Batch) -> Tensor:
    """For networks that say how strange windows are, and in training pixels: here nothing is."""
    parts = output if isinstance(output, Strangeness) else (output,)
    return torch.stack([nn.functional.softplus(part).mean() for part in parts]).mean()


def painted(output: Tensor, batch: Batch) -> Tensor:
    """For networks that make pictures of numbers: here they shall be grey."""
    return (output**2).mean()


def latents(images: Tensor) -> Tensor:
    """Numbers (N, 8) to make pictures of."""
    return nn.functional.adaptive_avg_pool2d(images, (2, 4)).flatten(1) * 4 - 2


@dataclass(frozen=True)
class Case:
    """A small network of a family: settings, (channels, scale) of its output, and a loss it can go down.

    `given` makes its input of images; where it takes none, its output has always `side` px. `loss` is given the
    network's output, whatever its type, and the batch; None where there is nothing to learn. `output` picks the tensor
    that shapes are told of.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 1
    scale: float = 1.0
    loss: Callable[[Any, Batch], Tensor] | None = rebuilt
    output: Callable[[Any], Tensor] = lambda result: result
    any_size: bool = True
    given: Callable[[Tensor], Tensor] = lambda images: images
    side: int | None = None


SMALL_VAE = {"latent": 4, "channels": (2, 4, 4, 4), "window": 32, "stride": 32, "score": "reconstruction"}
CASES: dict[str, list[Case]] = {
    "identity": [Case("enhance", loss=None)],
    "convnet": [
        Case("enhance", {"channels": 8, "depth": 3, "outputs": 2}, channels=2),
        Case("rocks", {"channels": 8, "depth": 2, "outputs": 2}, channels=2, loss=classified),
    ],
    "unet": [
        Case("rocks", {"channels": 4, "depth": 2, "outputs": 2}, channels=2, loss=classified),
        Case("enhance", {"channels": 4, "depth": 2, "outputs": 1, "residual": True}),
        Case("anomalies", {"channels": 4, "depth": 2, "outputs": 1, "skips": False}),
    ],
    "unet-published": [
        Case("rocks", {"channels": 4, "depth": 2, "outputs": 2, "dropout": 0.0}, channels=2, loss=classified),
    ],
    "unet-encoder": [
        Case("rocks", {"encoder": "efficientnet-lite0", "outputs": 2}, channels=2, loss=classified),
    ],
    "vae": [
        Case("anomalies", {**SMALL_VAE, "hidden": 8}, scale=1 / 32, loss=imagined, any_size=False),
        Case("anomalies", {**SMALL_VAE, "hidden": 0}, scale=1 / 32, loss=imagined, any_size=False),
    ],
    "multiscale": [
        Case("anomalies", {"widths": (8, 8, 8, 8)}, channels=4, scale=1 / 16, loss=noticed, any_size=False),
    ],
    "rocknet": [Case("rocks", {"channels": 8, "outputs": 2}, channels=3, loss=classified)],
    "cyclegan": [
        Case("enhance", {"width": 4, "deepest": 16, "residuals": 1}),
        Case("enhance", {"width": 4, "deepest": 8, "residuals": 1, "attention": False}),
    ],
    "scbgan": [
        Case(
            "synthesis",
            {"size": 16, "width": 0.01, "most": 16, "latent": 8, "layers": 2},
            loss=painted,
            any_size=False,
            given=latents,
            side=16,
        ),
    ],
    "shadow": [Case("enhance", {"widths": (8, 8, 8), "deep": 1}, channels=2)],
}
EVERY = [(name, case) for name, cases in CASES.items() for case in cases]
every_case = pytest.mark.parametrize(("name", "case"), EVERY, ids=[f"{name}-{case.task}" for name, case in EVERY])
learning = [(name, case) for name, case in EVERY if case.loss]
learning_case = pytest.mark.parametrize(
    ("name", "case"), learning, ids=[f"{name}-{case.task}" for name, case in learning]
)


def made(name: str, case: Case, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FAMILIES[name](**case.settings)


def image(count: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 1, 9, 9, generator=dice(seed, 0))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def lesson(name: str, case: Case) -> Task:
    """A few batches of one kind, and the loss of the case."""
    net = made(name, case)
    assert case.loss is not None
    test = {"image": image(seed=999)}

    def step(batch: Batch, state: State) -> dict[str, Tensor]:
        with state.precision():
            result = net(case.given(batch["image"]))
        loss = case.loss(result, batch)
        state.descend("net", loss)
        return {"loss": loss}

    def validate(networks: Mapping[str, nn.Module]) -> dict[str, float]:
        return {"loss": float(case.loss(networks["net"](case.given(test["image"])), test))}

    def batch(step: int) -> Batch:
        return {"image": image(4, 32, 32, seed=step)}

    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    return Task({"net": net}, {"net": optimiser}, batch, step, validate, ("loss", "low"))


def test_every_family_has_a_case():
    assert set(CASES) == set(FAMILIES)


@every_case
def test_shape_and_type_of_the_output(name, case):
    net = made(name, case).eval()
    sizes = [(64, 64), (96, 64)] + ([(50, 37), (17, 64), (5, 5)] if case.any_size else [])
    for height, width in sizes:
        with torch.inference_mode():
            output = case.output(net(case.given(image(3, height, width))))
        assert output.dtype == torch.float32
        sides = (case.side,) * 2 if case.side else (round(height * case.scale), round(width * case.scale))
        assert output.shape == (3, case.channels, *sides)
        assert output.isfinite().all()


@every_case
def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(name, case):
    net, images = made(name, case).eval(), case.given(image(4))
    with torch.inference_mode():
        together = case.output(net(images))
        for number in range(4):
            alone = case.output(net(images[number : number + 1]))
            torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5, rtol=1e-4)


@every_case
def test_the_same_input_gives_the_same_output(name, case):
    net, other = made(name, case).eval(), made(name, case).eval()
    with torch.inference_mode():
        first, again, twin = (case.output(n(case.given(image()))) for n in (net, net, other))
    assert torch.equal(first, again)
    assert torch.equal(first, twin)  # the same seed makes the same network


@every_case
def test_the_input_is_left_as_it_was(name, case):
    given = case.given(image())
    with torch.inference_mode():
        made(name, case).eval()(given)
    assert torch.equal(given, case.given(image()))


@every_case
def test_what_was_saved_is_what_is_loaded(name, case, tmp_path):
    net = made(name, case).eval()
    card = Card("a", case.task, name, settings=dict(case.settings), classes=("ground", "rock"),
                output="reconstruction" if case.task == "anomalies" else "")  # fmt: skip
    save_pack(tmp_path, card, net)
    loaded = read_pack(tmp_path).network()
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(case.output(net(case.given(image()))), case.output(loaded(case.given(image()))))


def test_a_residual_network_begins_by_changing_nothing():
    net = FAMILIES["unet"](channels=4, depth=2, outputs=2, residual=True).eval()
    assert torch.equal(net(image()), image().expand(-1, 2, -1, -1))


@learning_case
def test_gradients_reach_every_weight(name, case):
    net = made(name, case).train()
    with torch.no_grad():  # some begin at zero on purpose, and would stop the gradient on its way
        for weight in net.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=dice(0, weight.numel())))
    batch = {"image": image()}
    case.loss(net(case.given(batch["image"])), batch).backward()
    for weight_name, weight in net.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.isfinite().all(), weight_name
        assert weight.grad.abs().sum() > 0, weight_name


@learning_case
def test_a_few_steps_lower_the_loss(name, case, tmp_path):
    ended = train(lesson(name, case), Plan(steps=40, device="cpu", average=0.9, warmup=5), tmp_path)
    assert ended.measured["loss"] < 0.8 * ended.first["loss"]


@learning_case
def test_resumed_equals_uninterrupted_bit_for_bit(name, case, tmp_path):
    plan, asked = Plan(steps=8, device="cpu", validations=2), iter([False] * 2)
    straight, pieces = lesson(name, case), lesson(name, case)
    train(straight, plan, tmp_path / "straight")
    stopped = train(lesson(name, case), plan, tmp_path / "pieces", cancelled=lambda: next(asked, True))
    assert stopped.step == 3
    train(pieces, plan, tmp_path / "pieces", resume=True)
    for key, value in straight.networks["net"].state_dict().items():
        assert torch.equal(value, pieces.networks["net"].state_dict()[key]), key
    assert files(tmp_path / "straight") == files(tmp_path / "pieces")


def files(folder: Path) -> bytes:
    return (folder / "best.safetensors").read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
@every_case
def test_a_gpu_gives_nearly_the_same(name, case):
    net = made(name, case).eval()
    with torch.inference_mode():
        here = case.output(net(case.given(image())))
        there = case.output(net.to("cuda")(case.given(image()).to("cuda"))).cpu()
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)
