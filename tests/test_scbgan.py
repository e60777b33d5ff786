"""Pictures out of nothing: what layers promise, what keeps the critic honest, and the way from patches to pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from running import lunar
from torch import Tensor, nn

from lunar_processing.modelpack import read_pack
from lunar_processing.networks.scbgan import Critic, Generator, Modulated, Watcher, made_of, variety
from lunar_processing.tools.synthesize import draw
from lunar_processing.training import losses
from lunar_processing.training.ada import EVERY, Adaptive, _turned, _warped, vary
from lunar_processing.training.data import crops, dice
from lunar_processing.training.features import Features
from lunar_processing.training.loop import Plan, train
from lunar_processing.training.patches import MANIFEST, PATCHES, load_patches
from lunar_processing.training.recipes import RECIPES, Lesson, scbgan

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "small-bodies"
SMALL = {"size": 32, "width": 0.01, "most": 16, "latent": 8, "layers": 2}
SETTINGS = ("--set", "width=0.01", "--set", "most=16", "--set", "latent=8", "--set", "layers=2")


def generator(seed: int = 0, **settings: object) -> Generator:
    torch.manual_seed(seed)
    return Generator(**{**SMALL, **settings}).eval()


def patch_set(folder: Path, count: int = 80, side: int = 32, **also: object) -> Path:
    """Bright discs on dark ground, those of the last product to validate on."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    middles = random.uniform(8, side - 8, (count, 2, 1, 1))
    discs = np.hypot(y - middles[:, 0], x - middles[:, 1]) < 6
    patches = np.where(discs, 200, 60) + random.normal(0, 5, (count, side, side))
    folder.mkdir()
    np.save(folder / PATCHES, also.get("patches", patches.clip(0, 255).astype(np.uint8)))
    rows = [{"image": f"m{k % 4}.png", "product": f"m{k % 4}", "part": "validation" if k % 4 == 3 else "train"}
            for k in range(count)]  # fmt: skip
    (folder / MANIFEST).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patch_set(tmp_path_factory.mktemp("patches") / "set", 120)


@pytest.fixture(scope="module")
def model(patches: Path) -> Path:
    """One that has hardly learnt anything."""
    folder = patches.parent / "my-bodies"
    ran = lunar("train", "stylegan2-ada", "--images", patches, "--out", folder, "--steps", 4, "--batch", 4,
                "--size", 32, *SETTINGS)  # fmt: skip
    assert ran.code == 0, ran.err
    return folder


# ---- the networks ------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("up", [False, True])
def test_a_demodulated_convolution_keeps_the_variance_whatever_the_style(up: bool) -> None:
    torch.manual_seed(0)
    layer, x = Modulated(32, 64, 8, up=up), torch.randn(4, 32, 64, 64)
    for strength in (0.1, 1.0, 30.0):
        inside = layer(x, strength * torch.randn(4, 8))[..., 4:-4, 4:-4]
        # Blurred, noise is weaker: squared weights of (1, 3, 3, 1) / 4 add up to 20 / 16 where half the pixels are 0.
        expected = 1.0 if not up else (20 / 16) ** 2 / 4
        assert inside.var(dim=(1, 2, 3)).sqrt() == pytest.approx(expected**0.5, rel=0.1)


@torch.no_grad()
def test_truncation_draws_pictures_towards_the_mean_one() -> None:
    net, z = generator(), torch.randn(6, 8, generator=dice(0, 0))
    net.average.copy_(net.styles(torch.randn(500, 8, generator=dice(1, 0))).mean(dim=0))
    apart = [float(net(z, truncation=t).std(dim=0).mean()) for t in (1.0, 0.5, 0.0)]
    assert apart[0] > apart[1] > apart[2] == pytest.approx(0.0, abs=1e-6)


@torch.no_grad()
def test_a_picture_is_that_of_its_seed_alone() -> None:
    net = generator()
    for part in (*net.first, *net.second):
        part.loudness.fill_(0.3)  # noise counts
    torch.testing.assert_close(made_of(net, [3, 8, 5])[1], made_of(net, [8])[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(made_of(net, [8]), made_of(net, [9]))


def test_the_critic_is_told_how_unlike_neighbours_are() -> None:
    x = torch.zeros(4, 2, 3, 3)
    assert variety(x).max() < 1e-3  # all alike
    x[0] = 4.0  # mean 1, deviations 3, -1, -1, -1: variance 3
    assert variety(x).flatten().tolist() == pytest.approx([3**0.5] * 36)


def test_pictures_have_a_side_that_is_a_power_of_two_and_channels_as_published() -> None:
    net = Generator(latent=16, layers=1, size=256)
    assert [layer.convolution.weight.shape[0] for layer in net.first] == [512, 512, 512, 512, 256, 128, 64]
    assert sum(p.numel() for p in Critic(64, 0.05, 96).parameters()) < 600_000


def test_coarse_and_fine_levels_may_have_two_styles() -> None:
    net = generator().train()
    torch.manual_seed(1)
    styles = scbgan.mixed(net, 200, torch.device("cpu"))
    alike = (styles == styles[:, :1]).all(dim=2)
    assert alike[:, 0].all()
    assert (alike.int().diff(dim=1) <= 0).all()  # once the other, it stays the other
    assert 0.8 < float((~alike[:, -1]).double().mean()) < 0.98


# ---- losses, augmentation ------------------------------------------------------------------------------------------


def test_how_steep_a_critic_is_worked_out_by_hand() -> None:
    images, weight = torch.rand(5, 1, 2, 2, requires_grad=True), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(losses.r1(images, images.flatten(1) @ weight)) == pytest.approx(30.0)  # 1 + 4 + 9 + 16


def test_lengths_of_paths_worked_out_by_hand() -> None:
    styles = torch.rand(3, 2, 2, requires_grad=True)
    weight = torch.tensor([[3.0, 4.0], [0.0, 12.0]])  # squares: 25 of one level, 144 of the other
    pictures = (styles * weight).sum(dim=(1, 2)).view(3, 1, 1, 1)
    torch.manual_seed(0)
    lengths = losses.path_lengths(pictures, styles)
    torch.manual_seed(0)
    direction = torch.randn(3).abs()
    torch.testing.assert_close(lengths, direction * ((25 + 144) / 2) ** 0.5)


def test_augmentation_follows_how_sure_the_critic_is() -> None:
    ada, sure, torn = Adaptive(target=0.6, thousands=1.0), torch.ones(10), torch.tensor([1.0, -1.0] * 5)
    for step in range(EVERY):
        ada.hear(sure, 10, step)
    assert float(ada.share) == pytest.approx(10 * EVERY / 1000)
    for step in range(2 * EVERY):
        ada.hear(torn, 10, step)
    assert float(ada.share) == 0.0  # never below


def test_variations_are_as_frequent_as_asked_and_let_gradients_through() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 16, 16, requires_grad=True)
    assert vary(images, 0.0) is images
    varied = vary(images, 0.2)
    untouched = (varied == images).flatten(1).all(dim=1).double().mean()
    assert 0.05 < float(untouched) < 0.45  # most of the nine steps change something
    varied.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_a_quarter_turn_is_exact() -> None:
    image = torch.rand(2, 1, 8, 8)
    turned = _warped(image, _turned(torch.full((2,), torch.pi / 2)))
    torch.testing.assert_close(turned, image.rot90(1, (2, 3)), atol=1e-5, rtol=1e-5)


def test_a_linear_probe_tells_apart_what_is_different() -> None:
    torch.manual_seed(0)
    one, same, other = torch.randn(200, 40), torch.randn(200, 40), torch.randn(200, 40) + 1.0
    assert abs(scbgan.told_apart(one, same) - 0.5) < 0.15
    assert scbgan.told_apart(one, other) > 0.95


# ---- the recipe ----------------------------------------------------------------------------------------------------


def eye(name: str) -> Features:
    """Features of a few weights, that nothing was learnt for."""

    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 6, 4, stride=4)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.down(x), self.down(x)[..., ::2, ::2]]

    torch.manual_seed(len(name))
    return Features(name, Few(), ((0.5,) * 3, (0.5,) * 3), (6, 6), 4)


def lesson(patches: Path, **options: object) -> Lesson:
    recipe = RECIPES["scb-gan"]
    parts = load_patches(patches, 32)
    return Lesson(recipe, generator(), crops(parts["train"], 32, 4), parts["validation"], 32, 1e-3,
                  options={**recipe.options, **options})  # fmt: skip


def test_eyes_open_one_after_another_and_stay_frozen(patches: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scbgan, "PROBED", 16)
    monkeypatch.setattr(scbgan, "JUDGED", 32)
    eyes: dict[str, Features] = {}
    task = scbgan.task(lesson(patches, features=("efficientnet-lite0", "vgg16"), num=2),
                       lambda name: eyes.setdefault(name, eye(name)))  # fmt: skip
    before = {name: part.see.down.weight.clone() for name, part in eyes.items()}
    outcome = train(task, Plan(steps=8, device="cpu", validations=2), tmp_path / "straight")
    assert sorted(task.networks["notes"].chosen.tolist()) == [0, 1]
    assert outcome.measured["distance"] > 0
    assert all(torch.equal(part.see.down.weight, before[name]) for name, part in eyes.items())
    log = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert {"fooled", "critic", "r1", "paths"} <= set().union(*(line.get("losses", {}) for line in log))


def test_resumed_equals_uninterrupted_bit_for_bit(patches: Path, tmp_path: Path) -> None:
    def task() -> object:
        return scbgan.task(lesson(patches, num=0))

    plan, asked = Plan(steps=6, device="cpu", validations=1), iter([False] * 2)
    straight, pieces = task(), task()
    train(straight, plan, tmp_path / "straight")
    train(task(), plan, tmp_path / "pieces", cancelled=lambda: next(asked, True))
    train(pieces, plan, tmp_path / "pieces", resume=True)
    for name in ("net", "critic", "ada", "notes"):
        for key, value in straight.networks[name].state_dict().items():
            assert torch.equal(value, pieces.networks[name].state_dict()[key]), (name, key)


def test_a_watcher_has_a_word_for_each_level() -> None:
    maps = [torch.rand(2, 6, 8, 8), torch.rand(2, 12, 4, 4)]
    assert Watcher((6, 12))(maps).shape == (2, 2)
    assert Watcher((6, 12), multilevel=False)(maps).shape == (2, 1)


# ---- the tool --------------------------------------------------------------------------------------------------------


def test_seeds_give_the_same_bytes_again(model: Path, tmp_path: Path) -> None:
    first = lunar("synthesize", "--model", model, "--count", 20, "--out", tmp_path / "a", "--json")
    assert first.code == 0, first.err
    assert first.result["counts"] == {"pictures": 20, "side_px": 32}
    assert lunar("synthesize", "--model", model, "--count", 4, "--seed", 16, "--out", tmp_path / "b").code == 0
    for number in range(16, 20):
        name = f"my-bodies_{number:05d}.png"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    record = json.loads((tmp_path / "a" / "synthesis.json").read_text())
    assert record["model"]["sha256"] == read_pack(model).card.sha256
    assert (record["parameters"]["seed"], record["parameters"]["truncation"]) == (0, 1.0)
    assert (tmp_path / "a" / "contact_sheet.png").exists()


def test_pictures_may_be_tiff_and_say_that_they_are_made_up(model: Path, tmp_path: Path) -> None:
    ran = lunar("synthesize", "--model", model, "--count", 1, "--format", "tiff", "--out", tmp_path)
    assert ran.code == 0, ran.err
    with rasterio.open(tmp_path / "my-bodies_00000.tif") as file:
        assert (file.count, file.width, file.dtypes[0]) == (1, 32, "uint8")
        assert "MADE UP" in file.tags()["LUNAR_NOTICE"]


def test_what_is_there_is_kept_unless_told_otherwise(model: Path, tmp_path: Path) -> None:
    words = ("synthesize", "--model", model, "--count", 2, "--out", tmp_path)
    assert lunar(*words).code == 0
    again = lunar(*words)
    assert again.code == 1
    assert "--overwrite" in again.err
    assert lunar(*words, "--overwrite").code == 0


def test_the_shipped_model_makes_varied_pictures_with_contrast() -> None:
    pictures = np.stack(list(draw(read_pack(SHIPPED), 32)))
    assert pictures.shape == (32, 64, 64)
    assert np.median(pictures.std(axis=(1, 2))) > 15  # grey levels: there is something in them
    flat = pictures.reshape(32, -1).astype(float)
    alike = np.corrcoef(flat)[np.triu_indices(32, 1)]
    assert np.abs(alike).max() < 0.9  # no picture comes twice


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, images: object, *words: object, recipe: str = "stylegan2") -> str:
    ran = lunar("train", recipe, "--images", images, "--out", tmp_path / "out", "--steps", 1, *words)
    assert ran.code in (1, 2)
    return ran.err


def test_too_few_patches(tmp_path: Path) -> None:
    said = refused(tmp_path, patch_set(tmp_path / "few", 40), "--size", 32)
    assert "30 patches are too few" in said
    assert "64 are needed" in said


def test_patches_of_another_size(patches: Path, tmp_path: Path) -> None:
    assert "--size 32" in refused(tmp_path, patches)


def test_colour_among_grey(tmp_path: Path) -> None:
    colour = patch_set(tmp_path / "colour", patches=np.zeros((80, 32, 32, 3), np.uint8))
    assert "colour" in refused(tmp_path, colour, "--size", 32)


def test_a_side_that_is_no_power_of_two(patches: Path, tmp_path: Path) -> None:
    assert "power of two" in refused(tmp_path, patches, "--size", 48)


def test_images_that_were_not_cut(tmp_path: Path) -> None:
    assert "lunar patches" in refused(tmp_path, tmp_path)


def test_features_that_are_not_there(patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "nothing" / "here.safetensors"))
    assert "lunar fetch-features" in refused(tmp_path, patches, "--size", 32, recipe="scb-gan")


@pytest.mark.parametrize(("words", "said"), [
    (("--set", "num=3"), "num=3"),
    (("--set", 'augmentations=["magic"]'), "magic"),
    (("--set", "thickness=3"), "--set"),
])  # fmt: skip
def test_wishes_that_cannot_be_met(patches: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(tmp_path, patches, "--size", 32, *words)


@pytest.mark.parametrize("words", [("--count", 0), ("--truncation", -1), ("--seed", -4), ("--model", "vae-2020")])
def test_pictures_that_cannot_be_made(model: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    ran = lunar("synthesize", "--model", model, "--out", tmp_path / "out", *words)
    assert ran.code in (1, 2)
    assert not list(tmp_path.glob("out/*.png"))
