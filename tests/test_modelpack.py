"""A model is a card and weights: what is damaged, missing or of another kind is refused with the cure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from lunar_processing.errors import ModelError
from lunar_processing.modelpack import (
    CARD,
    WEIGHTS,
    Card,
    Normalisation,
    Pack,
    find_pack,
    list_packs,
    read_pack,
    save_pack,
)
from lunar_processing.networks.convnet import ConvNet, Identity
from lunar_processing.tools import anomalies, enhance, rocks
from lunar_processing.tools.job import Options

AS_IS = Normalisation("range", 0.0, 1.0)


def small(folder: Path, **card: object) -> Pack:
    """A small convolutional network with fixed random weights."""
    torch.manual_seed(0)
    facts = {"id": folder.name, "task": "enhance", "family": "convnet", "settings": {"channels": 4, "depth": 2}}
    facts |= {"tile": 64, "halo": 8, **card}
    return save_pack(folder, Card(**facts), ConvNet(**facts["settings"]))


def image(path: Path, pixels: np.ndarray, pixel_size: float = 1.0) -> Path:
    place = rasterio.Affine(pixel_size, 0, -5000, 0, -pixel_size, 9000)
    profile = {"driver": "GTiff", "count": 1, "dtype": pixels.dtype, "crs": "IAU_2015:30135", "transform": place}
    with rasterio.open(path, "w", height=pixels.shape[0], width=pixels.shape[1], **profile) as file:
        file.write(pixels, 1)
    return path


@pytest.fixture
def strip(tmp_path: Path) -> Path:
    return image(tmp_path / "strip.tif", np.random.default_rng(0).integers(1, 255, (200, 150)).astype("uint8"))


def test_saved_and_loaded_a_network_gives_the_same(tmp_path: Path) -> None:
    pack = small(tmp_path / "little", pixel_size_m=(0.5, 2.0), classes=("ground", "rock"), measured={"psnr_db": 31.4})
    again = read_pack(tmp_path / "little")
    assert again.card == pack.card
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(again.network()(x), pack.network()(x), rtol=0, atol=0)


def test_nothing_in_a_model_folder_is_pickled(tmp_path: Path) -> None:
    small(tmp_path / "little")
    assert sorted(p.name for p in (tmp_path / "little").iterdir()) == [CARD, WEIGHTS]
    json.loads((tmp_path / "little" / CARD).read_text())


def test_damaged_weights_are_refused_before_they_are_used(tmp_path: Path) -> None:
    pack = small(tmp_path / "little")
    weights = bytearray((pack.folder / WEIGHTS).read_bytes())
    weights[-3] ^= 1
    (pack.folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelError, match=r"damaged: their checksum.*install the model again"):
        pack.network()


def test_missing_weights_and_cards_are_told_apart(tmp_path: Path) -> None:
    pack = small(tmp_path / "little")
    (pack.folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"has no weights.safetensors"):
        pack.network()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"is not a model folder"):
        find_pack(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match=r"no model 'nowhere'.*lunar models"):
        find_pack("nowhere", [tmp_path])


@pytest.mark.parametrize(
    "damage",
    [
        lambda card: "{",
        lambda card: "[]",
        lambda card: json.dumps({**card, "task": "poetry"}),
        lambda card: json.dumps({**card, "tile": 0}),
        lambda card: json.dumps({**card, "halo": 40}),
        lambda card: json.dumps({**card, "surprise": 1}),
        lambda card: json.dumps({**card, "format": 99}),
        lambda card: json.dumps({**card, "normalisation": {"kind": "magic"}}),
        lambda card: json.dumps({**card, "tile": "large"}),
        lambda card: json.dumps({k: v for k, v in card.items() if k != "family"}),
        lambda card: json.dumps({**card, "pixel_size_m": [1]}),
        lambda card: json.dumps({**card, "reading": {"threshold": "high"}}),
        lambda card: json.dumps({**card, "reading": {"incidence": [[50, 1.0], [70]]}}),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(tmp_path: Path, damage: object) -> None:
    small(tmp_path / "little")
    path = tmp_path / "little" / CARD
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ModelError, match=r"little.*Cure"):
        read_pack(tmp_path / "little")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    card = small(tmp_path / "little").card
    save_pack(tmp_path / "little", card, Identity())
    with pytest.raises(ModelError, match=r"do not fit its card"):
        read_pack(tmp_path / "little").network()


def test_an_architecture_of_the_future_is_refused(tmp_path: Path) -> None:
    save_pack(tmp_path / "new", Card("new", "enhance", "transformer-9"), Identity())
    with pytest.raises(ModelError, match=r"'transformer-9', which this version does not know.*update"):
        read_pack(tmp_path / "new").network()


def test_models_are_found_in_given_folders_then_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "mine" / "one")
    small(tmp_path / "ours" / "one", version="2")
    small(tmp_path / "ours" / "two")
    monkeypatch.setenv("LUNAR_MODELS", str(tmp_path / "ours"))
    found = {p.card.id: p for p in list_packs([tmp_path / "mine"])}
    assert {"one", "two"} <= set(found)
    assert found["one"].folder == tmp_path / "mine" / "one"
    assert find_pack("two").folder == tmp_path / "ours" / "two"
    assert find_pack(str(tmp_path / "ours" / "one")).card.version == "2"


def test_a_model_for_another_task_is_refused(tmp_path: Path, strip: Path) -> None:
    small(tmp_path / "little", task="rocks", classes=("ground", "rock"))
    with pytest.raises(ModelError, match=r"made for the task 'rocks', not for 'enhance'.*lunar models --task enhance"):
        enhance.enhance(Options(strip, model=str(tmp_path / "little")), tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize(
    ("pixel_size", "warned", "refused"),
    [(1.0, False, False), (3.0, True, False), (9.0, False, True), (0.1, False, True)],
)
def test_pixels_outside_the_models_range_are_warned_of_then_refused(
    tmp_path: Path, pixel_size: float, warned: bool, refused: bool
) -> None:
    small(tmp_path / "little", pixel_size_m=(0.5, 2.0))
    path = image(tmp_path / "a.tif", np.full((70, 70), 9, "uint8"), pixel_size)
    options = Options(path, model=str(tmp_path / "little"))
    if refused:
        with pytest.raises(ModelError, match=r"pixels of 0.5–2 m; this image has .* gdalwarp"):
            enhance.enhance(options, tmp_path / "out.tif")
    else:
        result = enhance.enhance(options, tmp_path / "out.tif")
        assert any("expect poorer results" in w for w in result.warnings) == warned


def test_an_identity_network_returns_the_image_bit_for_bit(tmp_path: Path, strip: Path) -> None:
    card = Card("same", "enhance", "identity", normalisation=AS_IS, tile=64, halo=5)
    save_pack(tmp_path / "same", card, Identity())
    enhance.enhance(Options(strip, model=str(tmp_path / "same")), tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as made, rasterio.open(strip) as given:
        np.testing.assert_array_equal(made.read(1), given.read(1))


def test_a_network_in_tiles_equals_the_network_on_the_whole(tmp_path: Path, strip: Path) -> None:
    """The halo is larger than what a pixel sees, so no seam can show."""
    pack = small(tmp_path / "little", normalisation=Normalisation("range", 0.0, 255.0))
    enhance.enhance(Options(strip, model=str(pack.folder)), tmp_path / "out.tif")
    with rasterio.open(strip) as given, rasterio.open(tmp_path / "out.tif") as made:
        x = torch.from_numpy(np.pad(given.read(1) / 255.0, 8, constant_values=0.5).astype("float32"))[None, None]
        with torch.inference_mode():
            whole = pack.network()(x)[0, 0, 8:-8, 8:-8].numpy() * 255.0
        np.testing.assert_allclose(made.read(1), whole, rtol=1e-4, atol=1e-3)


def test_a_network_of_classes_gives_rocks(tmp_path: Path) -> None:
    """Class 1 wherever it is brighter than half: two bright squares are two rocks, 6 m and 4 m wide."""
    network = ConvNet(channels=1, depth=1, outputs=2)
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[1, 0, 1, 1] = 20.0
        network[0].bias.copy_(torch.tensor([0.0, -10.0]))
    settings = {"channels": 1, "depth": 1, "outputs": 2}
    card = Card(
        "bright", "rocks", "convnet", settings=settings, classes=("ground", "rock"), tile=64, halo=4,
        normalisation=Normalisation("range", 0.0, 255.0),
    )  # fmt: skip
    save_pack(tmp_path / "bright", card, network)
    pixels = np.full((120, 150), 20, "uint8")
    pixels[30:36, 60:66] = pixels[62:66, 100:104] = 250
    path = image(tmp_path / "a.tif", pixels)
    wishes = rocks.Wishes(str(tmp_path / "rocks.gpkg"), mask=str(tmp_path / "mask.tif"))
    result = rocks.segment_rocks(Options(path, model=str(tmp_path / "bright")), wishes)
    assert result.counts["rocks"] == 2
    with rasterio.open(tmp_path / "mask.tif") as mask:
        np.testing.assert_array_equal(mask.read(1), pixels == 250)


def test_a_network_that_rebuilds_windows_gives_anomalies(tmp_path: Path) -> None:
    """A network that can only rebuild what is dark finds the one bright window."""
    network = ConvNet(channels=1, depth=1)
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.fill_(0.1)
    card = Card(
        "dark", "anomalies", "convnet", settings={"channels": 1, "depth": 1}, output="reconstruction",
        normalisation=Normalisation("range", 0.0, 255.0), tile=160, halo=16, stride=32, window=64,
    )  # fmt: skip
    save_pack(tmp_path / "dark", card, network)
    pixels = np.full((320, 480), 25, "uint8")
    pixels[150:156, 300:306] = 250
    path = image(tmp_path / "a.tif", pixels)
    wishes = anomalies.Wishes(str(tmp_path / "a.gpkg"), scores=str(tmp_path / "scores.tif"), top=1)
    result = anomalies.score_anomalies(Options(path, model=str(tmp_path / "dark")), wishes)
    assert result.counts["windows"] == 10 * 15
    with rasterio.open(tmp_path / "scores.tif") as scores:
        row, col = np.unravel_index(np.nanargmax(scores.read(1)), scores.shape)
        assert abs((col + 0.5) * 32 - 303) <= 32
        assert abs((row + 0.5) * 32 - 153) <= 32
