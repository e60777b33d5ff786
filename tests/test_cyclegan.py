"""The painter of shadows: what its network promises, what its recipe remembers, and that no one can take its pictures
for a measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from qgis_helpers import Qgis
from running import lunar
from test_losses import made_up_weights

from lunar_processing.classical.noise import Noise
from lunar_processing.modelpack import Card, Pack, read_pack, save_pack
from lunar_processing.networks.cyclegan import TOKENS, Critic, Generator
from lunar_processing.simulate import scenes
from lunar_processing.tools import evaluate_psr
from lunar_processing.tools.illustration import ILLUSTRATION, illustrate
from lunar_processing.training import losses
from lunar_processing.training.data import Batch, Picture, crops, dice
from lunar_processing.training.loop import Plan, State, Task, train
from lunar_processing.training.recipes import Lesson, cyclegan
from lunar_processing.training.recipes.cyclegan import Memory, stretched

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "psr-cyclegan"
HALO = cyclegan.RECIPE.card.halo
SMALL = {"width": 8, "deepest": 16, "residuals": 1}


def generator(**settings: object) -> Generator:
    """One that has learnt nothing, but whose attention counts."""
    torch.manual_seed(3)
    network = Generator(**{**SMALL, **settings}).eval()
    for name, weight in network.named_parameters():
        if name.endswith("share"):
            torch.nn.init.constant_(weight, 0.5)
        if name == "head.weight":  # or it would average, and nothing else
            torch.nn.init.normal_(weight, std=0.2)
    return network


def ground(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth relief, brighter towards the right."""
    coarse = torch.rand(count, 1, size // 8 + 1, size // 8 + 1, generator=dice(seed, 0))
    relief = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return relief + torch.linspace(0, 1, size)


# ---- the network -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_tile_is_painted_as_the_whole_once_the_whole_was_looked_at() -> None:
    network, image = generator(residuals=3), ground(1, 512)
    alone = network(image[..., 64:, 64:])
    network.look(image)
    whole = network(image)
    # A tile that starts elsewhere agrees wherever it is further than a halo from its own edge …
    tile = network(image[..., 64:, 64:])
    core = (..., slice(HALO, -HALO), slice(HALO, -HALO))
    torch.testing.assert_close(tile[core], whole[..., 64:, 64:][core], atol=1e-4, rtol=1e-4)
    # … which it would not if it took its own statistics.
    assert (alone[core] - whole[..., 64:, 64:][core]).abs().max() > 0.01


@torch.no_grad()
def test_looking_at_several_windows_is_looking_at_one_picture_of_them() -> None:
    network, image = generator(attention=False), ground(4, 64)
    network.look(image)
    seen = [part.kept for part in network.modules() if getattr(part, "kept", None) is not None]
    assert seen
    assert all(one.shape[1] == 1 for one in seen)  # one mean and one variance for all of them
    torch.testing.assert_close(network(image)[1:2], network(image[1:2]))  # neighbours count no more


@torch.no_grad()
def test_no_place_looks_at_more_than_so_many_others() -> None:
    network = generator()
    network.look(ground(3, 512))
    assert network.bottleneck[-1].whole.kept.shape[-1] <= TOKENS


def test_attention_is_part_of_the_network_or_not() -> None:
    with_it, without = (sum(p.numel() for p in generator(attention=a).parameters()) for a in (True, False))
    assert with_it > without


def test_a_critic_judges_patches_of_70_px() -> None:
    torch.manual_seed(0)
    critic = Critic(4)
    critic = torch.nn.Sequential(*(m for m in critic if isinstance(m, torch.nn.Conv2d)))  # what of it is local
    image = torch.rand(1, 1, 128, 128, requires_grad=True)
    words = critic(image)
    assert words.shape == (1, 1, 14, 14)
    words[0, 0, 7, 7].backward()
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1))
    assert int(rows.max() - rows.min()) + 1 == 70


# ---- the recipe --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perceptual() -> losses.Perceptual:
    return losses.Perceptual(made_up_weights())


def lesson(seed: int = 0) -> Lesson:
    """Two products of smooth ground, 32 px windows."""
    pictures = [Picture(f"{n}", f"M{n}", ground(1, 64, n)[0, 0].numpy(), np.ones((64, 64), bool)) for n in (1, 2)]
    torch.manual_seed(seed)
    return Lesson(cyclegan.RECIPE, Generator(**SMALL), crops(pictures, 32, 2, seed), pictures[:1], 32, 1e-3, seed)


def state_of(task: Task, done: float) -> State:
    for optimiser in task.optimisers.values():
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return State(task, Plan(steps=10, warmup=0, schedule="constant"), torch.device("cpu"), done=done)


def test_the_first_part_is_of_pairs_and_the_rest_is_not(perceptual) -> None:
    task = cyclegan.task(lesson(), features=perceptual)
    batch = task.batch(0)
    assert set(task.step(batch, state_of(task, 0.0))) == {"pairs"}
    told = set(task.step(batch, state_of(task, 0.9)))
    assert told == {"cycle", "identity", "fooled", "critic_sunlit", "critic_dark"}


@pytest.mark.parametrize(("done", "name"), [(0.0, "pairs"), (1.0, "cycle")])
def test_steps_lower_the_loss_of_their_part(done: float, name: str, perceptual) -> None:
    weights = replace(cyclegan.WEIGHTS, perceptual=0.0, adversarial=0.0)
    task = cyclegan.task(lesson(), weights, perceptual)
    batch, state = task.batch(0), state_of(task, done)
    told: list[Mapping[str, torch.Tensor]] = []
    for state.step in range(40):
        told.append(task.step(batch, state))
    assert float(told[-1][name].detach()) < 0.8 * float(told[0][name].detach())


def test_a_part_of_the_loss_can_be_left_out(perceptual) -> None:
    task = cyclegan.task(lesson(), replace(cyclegan.WEIGHTS, identity=0.0), perceptual)
    assert "identity" not in task.step(task.batch(0), state_of(task, 0.9))


def test_dark_and_sunlit_are_of_other_places_but_dark_and_clean_of_the_same() -> None:
    batch: Batch = cyclegan.two_sides(lesson().batch, 32, 0)(3)
    again = cyclegan.two_sides(lesson().batch, 32, 0)(3)
    assert all(torch.equal(values, again[name]) for name, values in batch.items())
    assert not torch.equal(batch["clean"], batch["sunlit"])
    for side in batch.values():
        assert side.shape == (2, 1, 32, 32)
        assert side.isfinite().all()


def test_a_stretched_picture_knows_no_unit() -> None:
    image = ground(2, 64)
    torch.testing.assert_close(stretched(image), stretched(1e-3 * image + 5.0), atol=1e-2, rtol=0)
    assert 0.0 <= float(stretched(image).median()) <= 1.0


def test_a_memory_gives_back_the_new_until_it_is_full_and_then_old_ones_too() -> None:
    torch.manual_seed(0)
    memory = Memory(4, count=3)
    fakes = [torch.full((1, 1, 4, 4), float(n)) for n in range(40)]
    shown = [float(memory.exchange(fake)[0, 0, 0, 0]) for fake in fakes]
    assert shown[:3] == [0.0, 1.0, 2.0]
    older = [n for n, value in enumerate(shown) if value != n]
    assert 8 <= len(older) <= 30  # every other time
    assert all(shown[n] < n for n in older)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, perceptual) -> None:
    plan, asked = Plan(steps=8, device="cpu", validations=2), iter([False] * 5)
    straight, pieces = (cyclegan.task(lesson(), features=perceptual) for _ in range(2))
    train(straight, plan, tmp_path / "straight")
    stopped = cyclegan.task(lesson(), features=perceptual)
    assert train(stopped, plan, tmp_path / "pieces", cancelled=lambda: next(asked, True)).step == 6
    outcome = train(pieces, plan, tmp_path / "pieces", resume=True)
    for name, network in straight.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, pieces.networks[name].state_dict()[key]), (name, key)
    assert int(pieces.networks["fakes_sunlit"].filled) > 0
    assert np.isfinite(outcome.measured["distance"])  # chosen from what came after the pairs


def test_sets_of_one_kind_are_near_and_of_two_kinds_far() -> None:
    some, more = (torch.randn(400, 3, generator=dice(5, k)) for k in (0, 1))
    assert abs(float(losses.energy_distance(some, more))) < 0.05
    assert float(losses.energy_distance(some, more + 3.0)) > 3.0


# ---- the shipped model -------------------------------------------------------------------------------------------


def test_the_shipped_painter_is_small_and_paints_nearer_to_what_is_there_than_the_image_it_was_given() -> None:
    if not SHIPPED.is_dir():
        pytest.skip("the model psr-cyclegan is not installed here")
    pack = read_pack(SHIPPED)
    assert pack.card.output == ILLUSTRATION
    assert (SHIPPED / "weights.safetensors").stat().st_size < 3 << 20
    truth = scenes.draw("psr", 1, 77, size=192).ideal[0].double().numpy()
    truth *= 10 / truth.mean()
    image = truth + np.random.default_rng(0).normal(0, 1.6, truth.shape)  # DN
    made = illustrate(pack, image, Noise(a=2.6, b=0.02, black=0.0, least=0.1)).astype(float)
    likeness = [np.corrcoef(x.ravel(), truth.ravel())[0, 1] for x in (image, made)]
    assert likeness[1] > likeness[0] + 0.02


def test_the_benchmark_shows_every_method_the_same_part_of_a_scene(monkeypatch) -> None:
    if not SHIPPED.is_dir():
        pytest.skip("the model psr-cyclegan is not installed here")
    monkeypatch.syspath_prepend(SHIPPED.parent.parent)
    from benchmarks import cyclegan as benchmark

    trial = evaluate_psr.Wishes(small=True)
    scene = evaluate_psr.draw_scenes(1, evaluate_psr.SMALL_PX, 5)[0]
    _, made = benchmark._restored(scene, 10.0, trial, SHIPPED, (evaluate_psr.INPUT,))
    assert {evaluate_psr.INPUT, "psr-cyclegan", benchmark.TRUTH} <= set(made)
    truth = made[benchmark.TRUTH]
    assert all(np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.3 for image in made.values())
    apart, looks = benchmark._perceived(
        losses.Perceptual(made_up_weights()), {name: np.pad(image, 16, mode="reflect") for name, image in made.items()}
    )
    assert apart[benchmark.TRUTH] == 0 < apart["psr-cyclegan"]
    assert set(looks) == set(made)


# ---- the tool ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    card = replace(cyclegan.RECIPE.card, id="painter", settings=SMALL, pixel_size_m=None)
    return save_pack(tmp_path_factory.mktemp("models") / "painter", card, generator())


def written(path: Path, pixels: np.ndarray) -> Path:
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1}
    with rasterio.open(path, "w", driver="GTiff", dtype="float32", **shape) as file:
        file.write(pixels, 1)
    return path


def dark_image(height: int = 300, width: int = 700) -> np.ndarray:
    random = np.random.default_rng(1)
    light = 10 + 4 * ground(1, width)[0, 0, :height].numpy()
    return (light + random.normal(0, 1.5, light.shape)).astype(np.float32)


def painted(pack: Pack, image: Path, out: Path, card: Card | None = None) -> np.ndarray:
    folder = pack.folder
    if card is not None:
        folder = out.with_suffix("")
        save_pack(folder, card, generator())
    run = lunar("enhance", image, out, "--model", folder, "--pixel-size", 1)
    assert run.code == 0, run.err
    with rasterio.open(out) as file:
        return file.read()


def test_nobody_can_take_an_illustration_for_a_measurement(painter, tmp_path) -> None:
    image, out = written(tmp_path / "dark.tif", dark_image()), tmp_path / "out.tif"
    run = lunar("enhance", image, out, "--model", painter.folder, "--pixel-size", 1)
    assert run.code == 0, run.err
    assert "ILLUSTRATION, not a measurement" in run.err
    with rasterio.open(out) as file:
        picture, sigma = file.read(1), file.read(2)
        assert file.descriptions[0] == "ILLUSTRATION"
        assert "not a measurement" in file.tags()["LUNAR_NOTICE"]
        assert file.tags()["LUNAR_UNIT"] == "display, 0–1"
        record = json.loads(file.tags()["LUNAR_PROVENANCE"])
    assert np.isnan(sigma).all()  # nobody knows how wrong it is
    assert picture.min() >= 0.0
    assert picture.max() <= 1.0
    assert "not a measurement" in record["model"]["notice"]
    assert any("not a measurement" in warning for warning in record["warnings"])
    refused = lunar("rocks", out, tmp_path / "rocks.gpkg", "--band", 1)
    assert refused.code == 1
    assert "Nothing can be counted on it" in refused.err


def test_tiles_leave_no_seam(painter, tmp_path) -> None:
    image = written(tmp_path / "dark.tif", dark_image())
    whole = painted(painter, image, tmp_path / "whole.tif")[0]
    in_tiles = painted(painter, image, tmp_path / "tiles.tif", replace(painter.card, tile=2 * HALO + 128))[0]
    np.testing.assert_allclose(in_tiles, whole, atol=2e-4)


def test_in_qgis_the_name_of_the_layer_says_what_it_is(painter, tmp_path) -> None:
    qgis = Qgis.installed(tmp_path / "qgis")
    told = qgis.script(
        """
        processing.runAndLoadResults(
            "lunar:enhancepsr", {"INPUT": sys.argv[1], "MODEL_FOLDER": sys.argv[2], "PIXEL_SIZE": 1.0,
            "OUTPUT": "TEMPORARY_OUTPUT"}, feedback=Log())
        (layer,) = QgsProject.instance().mapLayers().values()
        tell({"name": layer.name(), "styles": layer.styleManager().styles()})
        """,
        written(tmp_path / "dark.tif", dark_image(100, 120)),
        painter.folder,
    )
    assert told["name"] == "ILLUSTRATION, not a measurement – Enhanced image – dark"
    assert "Sigma" not in told["styles"]  # it has none
