"""Light: how long shadows are and where they fall, how bright ground is, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from lunar_processing.errors import ParameterError
from lunar_processing.simulate import light
from lunar_processing.simulate.terrain import Ground, crater_table, flat, rock_table, stamp_craters, stamp_rocks
from lunar_processing.simulate.view import SKY, perspective

AZIMUTHS = [0.0, 30.0, 45.0, 77.0, 90.0, 135.0, 180.0, 200.0, 270.0, 301.0]


def plain(batch: int = 1, size: int = 129, pixel: float = 1.0) -> Ground:
    return flat((batch, size, size), pixel, 0.2)


def with_height(ground: Ground, height: torch.Tensor) -> Ground:
    return Ground(height, ground.albedo, ground.pixel_size)


def distances(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels right of and below the middle pixel of a square of odd size."""
    axis = torch.arange(size) - size // 2
    return axis[None, :].expand(size, size).float(), axis[:, None].expand(size, size).float()


def shadow_end(seen: torch.Tensor, azimuth: float) -> float:
    """Distance in pixels from the middle, away from the sun, at which ground is lit again."""
    turn = math.radians(azimuth)
    steps = torch.arange(0, 60, 0.1)
    middle = seen.shape[-1] // 2
    col, row = middle - steps * math.sin(turn), middle + steps * math.cos(turn)
    points = torch.stack([col, row], dim=-1) / middle - 1
    line = torch.nn.functional.grid_sample(seen[None, None], points[None, None], align_corners=True)[0, 0, 0]
    return float(steps[line < 0.5].max())


@pytest.mark.parametrize("azimuth", AZIMUTHS)
@pytest.mark.parametrize("incidence", [45.0, 70.0])
def test_a_shadow_is_as_long_as_its_thing_is_high_times_the_tangent_of_incidence(azimuth, incidence):
    right, down = distances(129)
    drum = (torch.hypot(right, down) <= 6.5).float()[None] * 10.0
    seen = light.lit(drum, 1.0, azimuth, incidence)[0]
    assert shadow_end(seen, azimuth) == pytest.approx(6.5 + 10 * math.tan(math.radians(incidence)), abs=1.0)


@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_the_shadow_of_a_cone_is_that_of_its_blunt_top(azimuth):
    right, down = distances(129)
    cone = torch.clamp(14 - 0.8 * torch.hypot(right, down), min=0, max=12)[None]  # steeper than the sun is high
    seen = light.lit(cone, 1.0, azimuth, 60.0)[0]
    assert shadow_end(seen, azimuth) == pytest.approx(2.5 + 12 * math.tan(math.radians(60)), abs=1.0)
    assert float(seen[torch.hypot(right, down) < 2].min()) > 0.9


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 180.0, 270.0])
def test_a_wall_throws_a_shadow_of_its_height_to_the_side_away_from_the_sun(azimuth):
    right, down = distances(101)
    forwards = {0.0: down, 90.0: -right, 180.0: -down, 270.0: right}[azimuth]  # distance away from the sun
    wall = ((forwards >= -3) & (forwards <= 0)).float()[None] * 6
    seen = light.lit(wall, 0.5, azimuth, 60.0)[0]
    shadow = 6 / 0.5 * math.tan(math.radians(60))  # px
    ground = wall[0] == 0
    behind = (forwards > 0) & (forwards < shadow - 1)
    assert float(seen[ground & behind].max()) < 0.05
    assert float(seen[ground & (forwards > shadow + 1.5)].min()) > 0.95
    assert float(seen[ground & (forwards < 0)].min()) > 0.95


def test_flat_ground_is_lit_from_everywhere_at_any_height_of_the_sun():
    azimuth = torch.linspace(0, 360, 25)
    for incidence in (0.0, 30.0, 80.0, 89.0):
        seen = light.lit(torch.zeros(25, 40, 40), 1.0, azimuth, incidence)
        assert float(seen.min()) == 1.0


def test_a_slope_turned_away_is_dark_just_when_it_is_steeper_than_the_sun_is_high():
    right, _ = distances(65)
    for tilt, lit in ((22.0, True), (35.0, False)):
        slope = (math.tan(math.radians(tilt)) * right)[None]  # rises to the right; the sun is 30° high
        seen = light.lit(slope, 1.0, 270.0, 60.0)[0, :, 1:-1]
        away = light.lit(slope, 1.0, 90.0, 60.0)[0, :, 1:-1]
        assert float(seen.min()) == 1.0
        assert float(away.mean()) == pytest.approx(1.0 if lit else 0.0, abs=0.01)


def test_the_edge_of_a_shadow_fades_over_the_width_of_the_sun():
    _, down = distances(401)
    wall = (down <= -150).float()[None] * 20
    narrow = light.lit(wall, 1.0, 0.0, 85.0, sun_radius=0.001)[0, :, 200]
    broad = light.lit(wall, 1.0, 0.0, 85.0, sun_radius=0.5)[0, :, 200]
    # 20 m at 5° ± 0.5°: from 207 to 254 m.
    fading = ((broad > 0.02) & (broad < 0.98)).sum()
    assert 25 <= int(fading) <= 48
    assert int(((narrow > 0.02) & (narrow < 0.98)).sum()) <= 2


def test_scenes_of_a_batch_do_not_shade_each_other():
    alone = stamp_craters(plain(1, 96), crater_table(0, 40, 50, [30.0])).height
    batch = torch.cat([alone, torch.zeros_like(alone), alone + 100])
    together = light.lit(batch, 1.0, torch.tensor([20.0, 100.0, 200.0]), torch.tensor([60.0, 70.0, 75.0]))
    for i, (azimuth, incidence) in enumerate(((20.0, 60.0), (100.0, 70.0), (200.0, 75.0))):
        single = light.lit(batch[i : i + 1], 1.0, azimuth, incidence)
        torch.testing.assert_close(together[i : i + 1], single, atol=0.02, rtol=0)


def test_images_that_are_no_squares():
    height = torch.zeros(1, 40, 90)
    height[0, 20, 60] = 8
    seen = light.lit(height, 1.0, 90.0, 60.0)[0]  # the sun stands right, the shadow falls left
    assert seen.shape == (40, 90)
    assert float((1 - seen[20, :60]).sum()) == pytest.approx(8 * math.tan(math.radians(60)), abs=1.0)
    assert float(seen[:18].min()) == 1.0


def test_turning_the_scene_and_the_sun_turns_the_shadows():
    torch.manual_seed(0)
    ground = stamp_craters(plain(1, 96), crater_table(0, [30, 70.0], [40, 60.0], [30.0, 20.0]))
    for quarter in (1, 2, 3):
        turned = torch.rot90(ground.height, -quarter, (1, 2))  # clockwise
        there = light.lit(turned, 1.0, 25.0 + 90 * quarter, 65.0)
        torch.testing.assert_close(
            torch.rot90(there, quarter, (1, 2)), light.lit(ground.height, 1.0, 25.0, 65.0), atol=0.05, rtol=0
        )


@pytest.mark.parametrize("name", list(light.PHOTOMETRY))
def test_flat_ground_under_the_zenith_sun_has_its_normal_albedo(name):
    assert light.reflectance(plain(), 0.0, 0.0, name).mean().item() == pytest.approx(0.2, rel=1e-4)


def test_lunar_lambert_against_the_formula():
    incidence = 60.0
    mu0, phase = math.cos(math.radians(incidence)), incidence  # seen from the zenith, phase is incidence
    share = 1 - 0.019 * phase + 2.42e-4 * phase**2 - 1.46e-6 * phase**3
    expected = 0.2 * (2 * share * mu0 / (mu0 + 1) + (1 - share) * mu0)
    assert light.reflectance(plain(), 123.0, incidence).mean().item() == pytest.approx(expected, rel=1e-5)


def test_lommel_seeliger_and_lambert_against_their_formulas():
    mu0 = math.cos(math.radians(50))
    assert light.reflectance(plain(), 0, 50.0, "lommel-seeliger").mean().item() == pytest.approx(
        0.2 * 2 * mu0 / (1 + mu0), rel=1e-5
    )
    assert light.reflectance(plain(), 0, 50.0, "lambert").mean().item() == pytest.approx(0.2 * mu0, rel=1e-5)


def test_a_slope_is_as_bright_as_flat_ground_under_the_sun_it_sees():
    right, _ = distances(33)
    slope = with_height(plain(1, 33), (math.tan(math.radians(20.0)) * right)[None])  # rises to the right
    image = light.reflectance(slope, 270.0, 40.0, "lambert")[0, 5:-5, 5:-5]  # the sun stands left: 20° from its normal
    assert image.mean().item() == pytest.approx(0.2 * math.cos(math.radians(20.0)), rel=1e-4)
    image = light.reflectance(slope, 90.0, 40.0, "lambert")[0, 5:-5, 5:-5]
    assert image.mean().item() == pytest.approx(0.2 * math.cos(math.radians(60.0)), rel=1e-4)


# ---- Hapke


def hapke_on_flat(incidence: float) -> float:
    return light.reflectance(plain(1, 5), 0.0, incidence, "hapke").mean().item() / 0.2


@pytest.mark.parametrize(("reach", "shortest"), [(4, 2.4), (7, 2.25)])
def test_slopes_are_those_of_the_waves_that_the_ground_is_made_of(reach, shortest):
    at = torch.arange(200.0)
    for length in (shortest, 3.0, 5.0, 40.0):
        wave = 2 * math.pi / length
        ground = with_height(plain(size=200, pixel=0.5), (torch.sin(wave * at) * 0.5).expand(1, 200, 200).clone())
        right, down = light.slopes(ground, reach)
        amplitude = right[0, 100, 20:-20].abs().max() / wave
        assert 0.85 < amplitude < 1.12
        assert down.abs().max() < 1e-4
    plane = with_height(plain(pixel=0.5), (torch.arange(129.0) * 0.2)[None, :, None].expand(1, 129, 129).clone())
    right, down = light.slopes(plane, reach)
    assert right[0, 20:-20, 20:-20].abs().max() < 1e-4
    assert torch.allclose(down[0, 20:-20, 20:-20], torch.tensor(0.4), atol=1e-4)


def test_hapke_without_roughness_and_surge_against_the_formula(monkeypatch):
    """Isotropic scattering: w/4 · μ0/(μ0 + μ) · H(μ0)·H(μ), by hand with Hapke's 1981 approximation of H."""
    w, incidence = 0.3, 50.0
    parameters = {"w": w, "b": 0.0, "c": 0.0, "h": 0.05, "b0": 0.0, "theta": 0.0}
    law = light.Photometry(light.hapke, parameters, "by hand")
    monkeypatch.setitem(light.PHOTOMETRY, "hapke", law)
    mu0 = math.cos(math.radians(incidence))
    root = math.sqrt(1 - w)
    bright = [mu / (mu + 1) * (1 + 2 * mu) / (1 + 2 * mu * root) * 3 / (1 + 2 * root) for mu in (mu0, 1.0)]
    assert hapke_on_flat(incidence) == pytest.approx(bright[0] / bright[1], rel=1e-5)


def test_the_opposition_surge_doubles_no_more_than_its_height_says(monkeypatch):
    def value(b0: float, incidence: float) -> torch.Tensor:
        mu0, phase = torch.tensor(math.cos(math.radians(incidence))), torch.tensor(float(incidence))
        return light._hapke(mu0, torch.ones(()), phase, 0.25, 0.24, 0.2, 0.06, b0, 0.0)

    assert float(value(1.0, 0.0) / value(0.0, 0.0)) == pytest.approx(1.9, abs=0.09)  # single scattering doubles
    assert float(value(1.0, 60.0) / value(0.0, 60.0)) < 1.1


def test_roughness_is_the_same_both_ways_and_darkens_grazing_light():
    """Helmholtz: swapping sun and eye changes r·μ not at all: r(i,e)/μ0 = r(e,i)/μ (Hapke 1984)."""
    a, b = torch.tensor(math.cos(math.radians(65.0))), torch.tensor(math.cos(math.radians(20.0)))
    phase = torch.tensor(50.0)
    settings = (0.25, 0.24, 0.2, 0.06, 1.6, 23.0)
    there, back = light._hapke(a, b, phase, *settings) / a, light._hapke(b, a, phase, *settings) / b
    assert float(there) == pytest.approx(float(back), rel=1e-4)
    rough = light._hapke(torch.tensor(0.15), torch.ones(()), torch.tensor(81.4), *settings)
    smooth = light._hapke(torch.tensor(0.15), torch.ones(()), torch.tensor(81.4), *settings[:-1], 0.0)
    assert float(rough) < 0.8 * float(smooth)


def test_lunar_lambert_is_close_to_hapke_on_the_moon_below_sixty_degrees_from_limb_to_limb():
    """At fixed phase 30°: the fall from the brightest to an inclined face agrees within a fifth."""
    phase = torch.tensor(30.0)
    law, hapke = light.PHOTOMETRY["lunar-lambert"], light.PHOTOMETRY["hapke"]
    faces = [(0.96, 0.97), (0.7, 0.9), (0.55, 0.8)]
    ratios = []
    for mu0, mu in faces:
        pair = torch.tensor(mu0), torch.tensor(mu), phase
        ratios.append(float(law.function(*pair, **law.parameters) / hapke.function(*pair, **hapke.parameters)))
    assert max(ratios) / min(ratios) < 1.2


# ---- permanent shadow


def test_permanent_shadow_is_a_hundred_thousandth_to_a_thousandth_as_bright_as_the_sun():
    glow = light.draw_glow(64, torch.Generator().manual_seed(0))
    ground = plain(64, 33)
    ratio = light.shadow_light(ground, glow).mean(dim=(1, 2)) / light.reflectance(ground, 0.0, 0.0).mean(dim=(1, 2))
    assert float(ratio.min()) >= 0.8e-5
    assert float(ratio.max()) <= 1.3e-3
    assert float(ratio.max() / ratio.min()) > 20
    torch.testing.assert_close(glow.share.sum(dim=1), torch.ones(64))


def test_light_from_several_sides_leaves_no_black_shadow_where_the_sun_does():
    ground = stamp_craters(plain(1, 96), crater_table(0, 48, 48, [50.0], depth_m=[10.0]))
    glow = light.Glow(
        torch.tensor([[0.0, 120.0, 240.0]]),
        torch.tensor([[65.0, 65.0, 65.0]]),
        torch.full((1, 3), 1 / 3),
        torch.ones(1),
    )
    soft = light.shadow_light(ground, glow)
    hard, _ = light.sunlit(ground, 0.0, 80.0)
    assert float((hard < 0.01 * hard.median()).float().mean()) > 0.05
    assert float((soft < 0.01 * soft.median()).float().mean()) == 0.0


# ---- what is refused


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda: light.lit(torch.zeros(1, 8, 8), 1.0, 0.0, 95.0), "incidence"),
        (lambda: light.lit(torch.zeros(1, 8, 8), 1.0, 0.0, -1.0), "incidence"),
        (lambda: light.lit(torch.zeros(1, 8, 8), -1.0, 0.0, 30.0), "pixel size"),
        (lambda: light.lit(torch.zeros(2, 8, 8), 1.0, [0.0, 1.0, 2.0], 30.0), "3 values"),
        (lambda: light.reflectance(plain(1, 8), 0.0, 30.0, "phong"), "photometry"),
        (lambda: light.reflectance(plain(1, 8), 0.0, 30.0, view=(1.0, 0.0, -1.0)), "view"),
    ],
)
def test_impossible_light_is_refused_with_the_cure(wrong, word):
    with pytest.raises(ParameterError, match=word) as error:
        wrong()
    assert error.value.cure


# ---- from a lander


def test_the_horizon_of_a_plain_lies_where_geometry_says():
    ground = flat((1, 400, 400), 0.1, 0.2)
    view = perspective(ground, torch.ones(1, 400, 400), 90.0, 45.0, camera_height=2.0, pitch=-10.0, size=(200, 200))
    column = torch.isfinite(view.distance[0, :, 100])
    first_ground = int(column.nonzero()[0])
    focal = 100 / math.tan(math.radians(25))
    # The plain ends 38.8 m ahead: 2.95 degrees below the horizon, the camera looks 10 down.
    expected = 100 + focal * math.tan(math.radians(math.degrees(math.atan2(2.0, 38.8)) - 10))
    assert first_ground == pytest.approx(expected, abs=1.5)
    assert bool(column[first_ground:].all())
    # The middle row looks 10 degrees down, at 2 m / tan(10°).
    assert float(view.distance[0, 99:101, 100].mean()) == pytest.approx(2 / math.tan(math.radians(10)), rel=0.02)


def test_a_boulder_hides_what_is_behind_it_and_stands_where_it_is():
    ground = flat((1, 300, 300), 0.1, 0.2)
    ground, ids = stamp_rocks(ground, rock_table(0, 150, 191, [1.0], height_m=[0.9]))  # 10 m ahead
    view = perspective(ground, torch.ones(1, 300, 300), 90.0, 45.0, camera_height=1.5, pitch=-8.0, size=(160, 160))
    seen = view.of(ids)[0]
    cols = (seen > 0).nonzero(as_tuple=True)[1]
    assert float(cols.float().mean()) == pytest.approx(80, abs=1.5)
    focal = 80 / math.tan(math.radians(25))
    assert int(cols.max() - cols.min()) == pytest.approx(focal * 1.0 / 9.7, abs=3)
    # No pixel shows ground that the stone hides: from its foot to where the ray over its top meets the plain.
    straight = view.distance[0, :, 80]
    behind = straight[(straight > 10.6) & torch.isfinite(straight)]
    assert float(behind.min()) > 14


def test_the_sky_has_no_rocks_and_no_light():
    ground = flat((2, 200, 200), 0.1, 0.2)
    view = perspective(ground, torch.ones(2, 200, 200), 0.0, 60.0, pitch=torch.tensor([-5.0, -20.0]), size=(64, 96))
    sky = ~torch.isfinite(view.distance)
    assert int(sky[0].sum()) > int(sky[1].sum()) > 0
    assert float(view.radiance[sky].max()) == 0
    assert view.of(torch.ones(2, 200, 200, dtype=torch.uint8), sky=SKY)[sky].unique().tolist() == [SKY]


def test_impossible_views_are_refused():
    for wrong in ({"camera_height": 0.0}, {"pitch": -90.0}, {"fov": 200.0}, {"at": (2.0, 0.5)}):
        with pytest.raises(ParameterError):
            perspective(plain(), torch.ones(1, 129, 129), 0.0, 30.0, **wrong)
