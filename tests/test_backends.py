"""OpenVINO computes what torch computes: any packed network, to a thousandth, chosen by name."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import running
import torch
from test_vae import MODELS, SMALL, drawn, lived, noise
from torch import nn

from lunar_processing import backends
from lunar_processing.backends import choose_backend, predictor
from lunar_processing.errors import DeviceError
from lunar_processing.modelpack import Card, read_pack, save_pack
from lunar_processing.networks.unet import UNet
from lunar_processing.networks.vae import VAE

pytestmark = pytest.mark.usefixtures("one_thread")
installed = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason='pip install "lunar-processing[openvino]"'
)

NETWORKS: dict[str, nn.Module] = {
    "vae": VAE(**SMALL),
    "unet": UNet(channels=4, depth=2, outputs=2),
}


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, equal_nan=True)


@installed
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_equals_torch(name):
    network, tiles = lived(NETWORKS[name]), noise(3, 1, 32, 48)
    with torch.inference_mode():
        answer = predictor(network, "openvino")
        close(answer(tiles), network(tiles))
        close(answer(tiles[:1, :, :, :32]), network(tiles[:1, :, :, :32]))  # another size on the way


@installed
def test_the_shipped_autoencoder_scores_alike():
    network, tiles = read_pack(MODELS / "vae-2024").network(), drawn().reshape(1, 1, 192, 64)
    with torch.inference_mode():
        close(predictor(network, "openvino")(tiles), network(tiles))


@installed
def test_gaps_are_told_to_a_network_that_knows_them():
    network, tiles = lived(VAE(**SMALL, seen=0.5)), noise(2, 1, 32, 32)
    valid = torch.ones_like(tiles, dtype=torch.bool)
    valid[0, :, :20, :20] = False
    with torch.inference_mode():
        found = predictor(network, "openvino")(tiles, valid)
        assert found.isnan().sum() == 1
        close(found, network(tiles, valid))


@installed
def test_another_question_than_forward_can_be_asked():
    class Doubling(UNet):
        def twice(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.forward(x)

    network, tiles = lived(Doubling(channels=2, depth=1)), noise(2, 1, 16, 16)
    with torch.inference_mode():
        close(predictor(network, "openvino", "twice")(tiles), 2 * network(tiles))


@installed
def test_the_same_run_gives_the_same_bits():
    network, tiles = lived(VAE(**SMALL)), noise(5, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(*(predictor(network, "openvino")(tiles) for _ in range(2)))


@installed
def test_lunar_anomalies_finds_the_same_with_it(tmp_path):
    image = running.scene(tmp_path / "image.tif")
    card = Card(
        "small", "anomalies", "vae", settings=dict(SMALL), tile=64, halo=0, stride=16, window=16, output="score"
    )
    save_pack(tmp_path / "small", card, lived(VAE(**SMALL)))
    maps = {}
    for device in ("cpu", "openvino"):
        scores = tmp_path / f"{device}.tif"
        ran = running.lunar("anomalies", image, tmp_path / f"{device}.gpkg", "--scores", scores, "--model",
                            tmp_path / "small", "--device", device, "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        assert ran.result["device"] == device
        maps[device] = running.read_all(scores)[0]
    assert np.isnan(maps["cpu"]).any()
    np.testing.assert_allclose(maps["openvino"], maps["cpu"], rtol=1e-3)


def test_torch_is_what_is_taken_unless_asked():
    assert choose_backend("auto") != "openvino"
    network = lived(VAE(**SMALL))
    assert predictor(network, "cpu") == network.forward


def test_without_openvino_the_cure_is_told(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r'pip install "lunar-processing\[openvino\]"'):
        choose_backend("openvino")
