"""The published autoencoders: their shapes and sizes, what their scores are, and how they learn."""

from __future__ import annotations

from pathlib import Path

import formats
import numpy as np
import pytest
import running
import torch
from torch import nn

from lunar_processing.errors import ModelError
from lunar_processing.modelpack import Card, Pack, read_pack, save_pack
from lunar_processing.networks.fold import folded
from lunar_processing.networks.vae import VAE, Rebuilt, cut
from lunar_processing.training.data import dice, picture, simulated
from lunar_processing.training.loop import Plan, train
from lunar_processing.training.recipes import RECIPES, Lesson
from lunar_processing.training.recipes.vae import terms

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = Path(__file__).resolve().parent.parent / "models"
SMALL = {"latent": 4, "hidden": 8, "channels": (2, 3, 4, 4), "window": 16, "stride": 16}


def lived(network: nn.Module) -> nn.Module:
    """Weights and statistics as after a training, the same for each network of one shape."""
    generator = dice(0, 1)
    with torch.no_grad():
        for weight in network.state_dict().values():
            if weight.is_floating_point():
                weight.copy_(0.2 * torch.rand(weight.shape, generator=generator) - 0.05 * (weight.dim() > 1))
    return network.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=dice(0, 2))


# ---- what was published ------------------------------------------------------------------------------------------


def test_the_network_of_2024_has_17_million_weights_nearly_all_in_two_layers():
    network = VAE(**RECIPES["vae-2024"].card.settings)
    sizes = sorted((weight.numel() for weight in network.parameters()), reverse=True)
    assert round(sum(sizes) / 1e6) == 17
    assert sizes[:2] == [32_768 * 256, 32_768 * 256]


@pytest.mark.parametrize("year", ["2020", "2024"])
def test_windows_go_through_128_maps_of_16_by_16_and_back(year):
    network = VAE(**RECIPES[f"vae-{year}"].card.settings)
    sides: list[tuple[int, ...]] = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda _layer, _given, made: sides.append(tuple(made.shape[1:])))
    rebuilt = network(noise(2, 1, 64, 64))
    way = [(16, 64, 64), (32, 32, 32), (64, 32, 32), (128, 16, 16)]
    assert sides == [*way, (64, 32, 32), (32, 32, 32), (16, 64, 64), (1, 64, 64)]
    assert rebuilt.image.shape == (2, 1, 64, 64)
    assert rebuilt.mean.shape == rebuilt.log_variance.shape == (2, {"2020": 64, "2024": 256}[year])


@pytest.mark.parametrize("power", [3, 11])
def test_the_latent_vector_of_2020_is_a_choice(power):
    network = VAE(**{**RECIPES["vae-2020"].card.settings, "latent": 2**power})
    assert network(noise(2, 1, 64, 64)).mean.shape == (2, 2**power)


@pytest.mark.parametrize(("year", "cells"), [("2020", (3, 5)), ("2024", (2, 3))])
def test_windows_lie_as_far_apart_as_published(year, cells):
    settings = {**RECIPES[f"vae-{year}"].card.settings, "channels": (1, 1, 1, 1)}
    card = RECIPES[f"vae-{year}"].card
    assert VAE(**settings).eval()(noise(1, 1, 128, 192)).shape == (1, 1, *cells)
    assert card.stride == VAE(**settings).stride
    assert 2 * card.halo == card.window - card.stride  # so that a cell lies in the middle of its window


# ---- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_the_published_formulas():
    x = noise(2, 1, 32, 48)
    found = {kind: lived(VAE(**SMALL, score=kind, weight=0.5)) for kind in ("reconstruction", "latent", "sum")}
    windows = torch.stack([x[n, 0, r : r + 16, c : c + 16] for n in (0, 1) for r in (0, 16) for c in (0, 16, 32)])
    with torch.inference_mode():
        rebuilt = found["sum"].rebuild(windows[:, None])
        scores = {kind: network(x).flatten() for kind, network in found.items()}
    error = ((rebuilt.image[:, 0] - windows) ** 2).sum((1, 2))
    torch.testing.assert_close(scores["reconstruction"], error)
    torch.testing.assert_close(scores["latent"], (rebuilt.mean**2).sum(1).sqrt())
    torch.testing.assert_close(scores["sum"], error + 0.5 * (rebuilt.mean**2).sum(1))


def test_pixels_beyond_the_stretch_count_as_those_of_an_8_bit_image():
    network = lived(VAE(**SMALL))
    x = 3 * noise(1, 1, 16, 16) - 1
    assert torch.equal(network(x), network(x.clamp(0, 1)))


def test_windows_are_cut_in_reading_order():
    x = torch.arange(48.0).reshape(1, 1, 6, 8)
    assert cut(x, 4, 2)[0, :, :, 0, 0].tolist() == [[0, 2, 4], [16, 18, 20]]


def test_a_window_with_a_gap_gets_no_score_as_published():
    network, x = lived(VAE(**SMALL)), noise(1, 1, 16, 64)
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., 7, 20], valid[..., 48:] = False, False  # one pixel; a black border
    scores = network(x, valid).flatten()
    assert scores.isnan().tolist() == [False, True, False, True]
    torch.testing.assert_close(scores[[0, 2]], network(x).flatten()[[0, 2]])


def test_gaps_say_nothing_and_too_many_of_them_give_no_score():
    network, x = lived(VAE(**SMALL, seen=0.5)), noise(1, 1, 16, 64)
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., 16 + 4 : 32], valid[..., 40:48] = False, False  # three quarters, then half
    other = torch.where(valid, x, 0.9)
    scores, others = network(x, valid).flatten(), network(other, valid).flatten()
    assert scores.isnan().tolist() == [False, True, False, False]
    assert torch.equal(scores[2], others[2])
    torch.testing.assert_close(scores[[0, 3]], network(x).flatten()[[0, 3]])


def test_an_unknown_score_is_refused():
    with pytest.raises(ModelError, match="choose reconstruction, latent, sum"):
        VAE(**SMALL, score="surprise")


# ---- learning ----------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_normal_distributions():
    mean, log_variance = noise(3, 5), noise(3, 5) - 0.5
    image = torch.zeros(3, 1, 8, 8)
    _, divergence = terms(Rebuilt(image, mean, log_variance), image, "l1")
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(divergence, exact.sum() / image.numel())


@pytest.mark.parametrize("year", ["2020", "2024"])
def test_a_few_steps_lower_the_loss(year, tmp_path):
    recipe = RECIPES[f"vae-{year}"]
    torch.manual_seed(0)
    network = VAE(**{**recipe.card.settings, **SMALL, "hidden": recipe.card.settings["hidden"] and 8})

    def batch(step: int) -> dict[str, torch.Tensor]:
        coarse = torch.rand(8, 1, 3, 3, generator=dice(0, step))
        image = nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
        return {"image": image, "valid": torch.ones_like(image, dtype=torch.bool)}

    ground = [picture(f"M{k}00000000.tif", batch(900 + k)["image"].numpy().reshape(-1, 16)) for k in (1, 2)]
    task = recipe.task(Lesson(recipe, network, batch, ground, 16, 1e-2))
    ended = train(task, Plan(steps=60, device="cpu", average=0.9, warmup=5), tmp_path)
    assert ended.measured["loss"] < 0.8 * ended.first["loss"]


def test_simulated_windows_are_stretched_with_the_scene_they_are_cut_from():
    whole = simulated("nac", 64, 1, seed=3)(0)["image"]
    parts = simulated("nac", 32, 3, seed=3, scene=64)(0)
    assert parts["image"].shape == (3, 1, 32, 32)
    assert torch.equal(parts["image"][1, 0], whole[0, 0, :32, 32:])
    assert torch.equal(parts["image"][2, 0], whole[0, 0, 32:, :32])
    assert {len(values) for values in parts.values()} == {3}


# ---- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "saved"), [("float16", 2), ("int8", 3)])
def test_small_files_keep_the_statistics_and_hardly_move_the_scores(tmp_path, keep, saved):
    network, x = lived(VAE(**SMALL)), noise(1, 1, 32, 32)
    card = Card("a", "anomalies", "vae", settings=SMALL, output="score")
    save_pack(tmp_path / "full", card, network)
    pack = save_pack(tmp_path / keep, card, network, keep)
    with torch.inference_mode():
        torch.testing.assert_close(pack.network()(x), network(x), rtol=1e-3 if keep == "float16" else 1e-2, atol=0)
    for name, value in pack.network().state_dict().items():
        assert value.dtype == network.state_dict()[name].dtype
        rounded = value.dim() in ((2, 4) if keep == "float16" else (2,))
        assert rounded or torch.equal(value, network.state_dict()[name]), name
    sizes = [(tmp_path / kind / "weights.safetensors").stat().st_size for kind in ("full", keep)]
    matrices = [weight for weight in network.parameters() if weight.dim() == 2]
    rows = sum(len(matrix) for matrix in matrices)
    steps = (4 * rows + 128 * len(matrices)) if keep == "int8" else 0  # 128: names and places, in the file's header
    assert sizes[0] - sizes[1] >= saved * sum(matrix.numel() for matrix in matrices) - steps - 64


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "hidden": 0, "stride": 8}], ids=["2024", "2020"])
def test_a_folded_network_gives_the_same_scores(settings):
    network, x = lived(VAE(**settings)), noise(2, 1, 32, 48)
    light = folded(network)
    assert not [layer for layer in light.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    with torch.inference_mode():
        before = network(x)
        torch.testing.assert_close(light(x), before, rtol=1e-5, atol=1e-6)
        assert torch.equal(network(x), before)  # the network itself is left as it was


def test_folding_leaves_alone_what_it_cannot_fold():
    odd = nn.Sequential(nn.ConvTranspose2d(2, 2, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 1))
    odd = lived(odd)
    x = noise(1, 2, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(folded(odd)(x), odd(x))


# ---- those that are shipped --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["vae-2020", "vae-2024"])
def shipped(request: pytest.FixtureRequest) -> Pack:
    return read_pack(MODELS / request.param)


def drawn() -> torch.Tensor:
    """Three windows that need no file: flat ground, a slope, and a bright bar with its shadow."""
    flat = torch.full((64, 64), 0.5)
    slope = torch.linspace(0.2, 0.8, 64).expand(64, 64)
    bar = flat.clone()
    bar[28:36, 20:30], bar[28:36, 30:44] = 1.0, 0.0
    return torch.stack([flat, slope, bar])[:, None]


GOLDEN = {"vae-2020": [24.0544, 98.4214, 77.0179], "vae-2024": [10.508, 149.038, 58.8184]}


def test_shipped_weights_give_the_scores_they_gave(shipped):
    with torch.inference_mode():
        scores = shipped.network()(drawn())
    assert scores.flatten().tolist() == pytest.approx(GOLDEN[shipped.card.id], rel=1e-4)


def test_a_shipped_network_folded_gives_the_same_scores(shipped):
    network, x = shipped.network(), drawn().reshape(1, 1, 192, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(network)(x), network(x), rtol=1e-4, atol=0)


def test_a_shipped_card_tells_what_it_is(shipped):
    card = shipped.card
    recipe = RECIPES[card.id].card
    assert (card.stride, card.window, card.tile, card.halo) == (recipe.stride, recipe.window, recipe.tile, recipe.halo)
    assert card.license
    assert card.training["command"].startswith(f"lunar train {card.id} ")
    assert not {*card.training["products"]["train"]} & {*card.training["products"]["validation"]}
    assert (shipped.folder / "training.jsonl").stat().st_size < 200_000


def test_lunar_anomalies_points_at_the_strange_window(shipped, tmp_path):
    ground = np.random.default_rng(2).normal(120, 4, (210, 340)).clip(0, 255)
    ground[64:128:4, 192:256] = 250  # the window of row 1, column 3
    image = formats.tiled(tmp_path / "image.tif", ground.astype(np.uint8))
    scores = tmp_path / "scores.tif"
    ran = running.lunar("anomalies", image, tmp_path / "found.gpkg", "--scores", scores, "--top", 1,
                        "--model", shipped.folder, "--pixel-size", 1, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    # Windows that reach over the edge get no score.
    assert ran.result["counts"]["windows"] == {"vae-2024": 3 * 5, "vae-2020": 5 * 9}[shipped.card.id]
    point = running.read_layer(tmp_path / "found.gpkg", "anomalies")
    assert point["sample"].tolist() == pytest.approx([224], abs=16)
    assert point["line"].tolist() == pytest.approx([96], abs=16)
