"""Scenes: ground, objects, light and camera put together by a recipe, with all that is true about them.

A recipe is data: ranges that every scene draws its own numbers from. `draw` gives a batch of scenes; the same recipe,
batch, seed and device give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import record_function

from lunar_processing.errors import DeviceError, ParameterError
from lunar_processing.simulate import light, sensor
from lunar_processing.simulate.objects import OBJECTS, Things, draw_things, kind_number, place
from lunar_processing.simulate.sensor import Camera
from lunar_processing.simulate.stamp import Table, moved, take
from lunar_processing.simulate.terrain import (
    Craters,
    Ground,
    Rocks,
    brighten_slopes,
    draw_craters,
    draw_rocks,
    fractal,
    mottled,
    stamp_craters,
    stamp_rocks,
)
from lunar_processing.simulate.view import SKY, perspective

Range = tuple[float, float]

UNBURNT = 3600.0  # DN: images are exposed so that ground seen by 4 × 4 pixels stays below
# Scenes computed together: on a CPU as many as its caches hold.
CHUNK = {"cpu": 4, "cuda": 64}


_ORBITAL_CAMERA: dict[str, Range] = {"flat": (0.0, 0.003)}
# A frame camera has no lines and columns of its own.
_FRAME_CAMERA: dict[str, Range] = dict.fromkeys(
    ("echo", "flat", "pattern", "column", "row", "smear", "nonlinearity"), (0.0, 0.0)
)


_LIMITS: dict[str, Range] = {  # what the ranges of a recipe may hold
    "pixel_size_m": (1e-3, 1e4),
    "incidence_deg": (0.0, 89.9),
    "sun_azimuth_deg": (-360.0, 360.0),
    "slope_deg": (1e-3, 40.0),
    "hurst": (0.0, 1.0),
    "grain": (1e-6, 1.0),
    "tilt_deg": (0.0, 45.0),
    "scatter": (0.0, 1.0),
    "crater_density": (1e-9, 1.0),
    "equilibrium_m": (1e-3, 1e6),
    "rock_share": (1e-9, 0.5),
    "rock_exponent": (2.1, 6.0),
    "albedo": (1e-3, 1.0),
    "albedo_contrast": (0.0, 1.0),
    "slope_brightness": (0.0, 2.0),
    "signal_dn": (1e-3, 4095.0),
}


@dataclass(frozen=True)
class Lander:
    """How a lander's camera stands, as ranges; the ground is `ground` times as many pixels wide as the view."""

    height_m: Range = (1.0, 2.5)
    pitch_deg: Range = (-22.0, -6.0)
    fov_deg: Range = (40.0, 65.0)
    ground: float = 2.5


@dataclass(frozen=True)
class SceneRecipe:
    """What scenes are made of. Pairs are ranges, drawn from evenly, or by their logarithm where it says so."""

    pixel_size_m: Range = (0.5, 1.5)
    incidence_deg: Range = (20.0, 86.0)
    sun_azimuth_deg: Range = (0.0, 360.0)
    slope_deg: Range = (0.5, 3.5)  # rms of the regolith from metre to metre, without craters; logarithm
    hurst: Range = (0.7, 0.9)
    grain: Range = (0.01, 0.07)  # sd of heights, in pixels, of what is smaller than a pixel; logarithm
    tilt_deg: Range = (0.0, 1.5)  # of the whole scene
    crater_density: Range = (0.04, 0.15)  # c of N(>D) = c·D^-2; logarithm
    equilibrium_m: Range = (10.0, 50.0)  # logarithm
    rock_share: Range = (1e-5, 4e-3)  # of the ground under rocks; logarithm
    rock_exponent: Range = (2.6, 4.5)
    blocks: float = 0.015  # rocks around fresh craters
    albedo: Range = (0.07, 0.22)
    albedo_contrast: Range = (0.005, 0.03)
    slope_brightness: Range = (0.0, 0.6)  # by which share albedo grows, times the square of the slope
    signal_dn: Range = (400.0, 2400.0)  # what the camera is exposed for: flat ground of the scene; logarithm
    scatter: Range = (0.004, 0.02)  # light from sunlit slopes around, of that of the Sun overhead
    photometry: str = "lunar-lambert"
    slope_reach: int = light.REACH  # pixels on either side that slopes are taken from; more: crisper, and slower
    shadowed: bool = False  # permanent shadow: no sun, only what lit slopes around scatter
    objects: tuple[str, ...] = ()  # names in `objects.OBJECTS`
    objects_each: float = 0.0  # how many a scene, on average
    objects_of_each_kind: int = 0  # how many of every kind are sure to be in every scene
    large_rock_m: float = 1.0  # from this diameter on a rock is of class 2
    smallest_rock_px: float = 1.5
    largest_rock_px: float = 16.0
    smallest_crater_px: float = 2.0
    concentric: float = 0.03  # share of the craters small enough that are nested
    lander: Lander | None = None  # seen from a lander, not from above
    margin_px: int = 16  # ground around the scene that throws shadows into it
    # Ranges of `sensor.PARAMETERS` that differ.
    camera: Mapping[str, Range] = field(default_factory=lambda: dict(_ORBITAL_CAMERA))

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            least, most = getattr(self, name)
            if not low <= least <= most <= high:
                raise ParameterError(
                    f"A recipe cannot have {name} = ({least:g}, {most:g}).",
                    f"give the lower end first, between {low:g} and {high:g}.",
                )
        for thing in self.objects:
            kind_number(thing)
        light.law_of(self.photometry)
        if self.slope_reach not in light.DERIVATIVES:
            raise ParameterError(
                f"Slopes cannot be taken from {self.slope_reach} px on either side.",
                f"give {' or '.join(map(str, light.DERIVATIVES))}.",
            )
        least = min(self.margin_px, self.objects_each, self.objects_of_each_kind, self.blocks)
        if least < 0 or self.blocks > 0.5:
            raise ParameterError(
                f"A recipe cannot have a margin of {self.margin_px} px, {self.objects_each} objects each, "
                f"{self.objects_of_each_kind} of each kind and {self.blocks} blocks.",
                "give 0 or more, blocks at most 0.5.",
            )


# Ranges at which a network has most trouble to tell scenes from real products.
_ORBIT = SceneRecipe(
    slope_deg=(1.2, 3.0),
    hurst=(0.9, 1.0),
    grain=(1e-4, 2e-3),
    tilt_deg=(0.0, 2.0),
    crater_density=(0.05, 0.11),
    equilibrium_m=(15.0, 60.0),
    smallest_crater_px=1.0,
    rock_share=(1e-6, 3e-4),
    blocks=0.003,
    albedo_contrast=(0.01, 0.06),
    signal_dn=(60.0, 250.0),
    camera={
        "psf": (0.42, 0.6),
        "smear": (0.0, 0.2),
        "flat": (0.0, 0.002),
        "column": (0.1, 0.3),
        "pattern_left": (0.0, 0.08),
        "table": (0.0, 1.0),
    },
)

RECIPES: dict[str, SceneRecipe] = {
    # Slopes of the finest waves, seen by a softer camera: harder to tell from real products than the other way about.
    "nac": replace(_ORBIT, slope_reach=7, camera={**_ORBIT.camera, "psf": (0.5, 0.75)}),
    "psr": SceneRecipe(
        slope_deg=(2.0, 6.0),
        tilt_deg=(0.0, 15.0),
        pixel_size_m=(0.8, 2.0),
        signal_dn=(2.0, 60.0),
        shadowed=True,
        camera={"table": (1.0, 1.0), "exposure": (1.0, 1.5), **_ORBITAL_CAMERA},
    ),
    "rocks": SceneRecipe(pixel_size_m=(0.4, 1.0), incidence_deg=(25.0, 78.0), rock_share=(1e-3, 3e-2), blocks=0.05),
    "anomalies": replace(_ORBIT, objects=tuple(OBJECTS), objects_each=1.0),
    "lander": SceneRecipe(
        pixel_size_m=(0.025, 0.05),
        incidence_deg=(35.0, 75.0),
        slope_deg=(4.0, 9.0),
        hurst=(0.75, 0.9),
        tilt_deg=(0.0, 4.0),
        rock_share=(4e-3, 4e-2),
        rock_exponent=(2.3, 3.2),
        crater_density=(0.02, 0.06),
        smallest_rock_px=2.0,
        largest_rock_px=48.0,
        smallest_crater_px=8.0,
        large_rock_m=0.4,
        margin_px=0,
        camera=_FRAME_CAMERA,
        lander=Lander(),
    ),
}


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes of H × W pixels.

    image: (B, H, W) float32, signal in DN as the camera and its calibration give it. ideal: the light that a perfect
    camera would have counted, in DN. recorded: uint8, the codes on the ground. reflectance: I/F. exposure: (B,), DN
    of an I/F of 1. lit: share of the sun seen. rock_id: int32, 0 or 1 + row in `rocks`. objects: uint8, 0 or the kind
    of object. classes: uint8, 0 ground, 1 small rock, 2 large rock, 3 sky.
    ground: height, albedo, pixel size. Tables hold positions in pixels of the ground; some of their rows lie around a
    scene, from where they throw shadows into it. Seen from a lander, ground is a map and all else is its view.
    """

    image: Tensor
    ideal: Tensor
    recorded: Tensor
    reflectance: Tensor
    lit: Tensor
    rock_id: Tensor
    objects: Tensor
    classes: Tensor
    ground: Ground
    craters: Craters
    rocks: Rocks
    things: Things
    sun_azimuth: Tensor
    incidence: Tensor
    pixel_size: Tensor
    exposure: Tensor
    camera: Camera

    def __len__(self) -> int:
        return len(self.image)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that a seed fixes, on a device."""
    place = _device(device)
    if not isinstance(seed, int) or seed < 0:
        raise ParameterError(f"A seed of {seed!r} is not possible.", "give a whole number, 0 or more.")
    return torch.Generator(place).manual_seed(seed)


def draw(
    recipe: str | SceneRecipe, batch: int, seed: int, device: torch.device | str = "cpu", size: int = 256
) -> Scenes:
    """`batch` scenes of `size` × `size` pixels."""
    wanted = _recipe(recipe)
    if batch < 1 or size < 16:
        raise ParameterError(
            f"{batch} scenes of {size} px are not possible.", "give one scene or more, of 16 px or more."
        )
    place = _device(device)
    numbers, noise = generator(seed), generator(seed, place)
    with record_function("plan"):
        plan = _plan(wanted, batch, size, numbers)
    step = CHUNK.get(place.type, 16)
    with torch.inference_mode():
        parts = [_render(wanted, plan.part(i, i + step), size, noise) for i in range(0, batch, step)]
        return _together(parts, plan.on(place), wanted.margin_px)


@dataclass(frozen=True)
class _Plan:
    """All that is drawn before the first pixel: numbers (B,), tables."""

    numbers: Mapping[str, Tensor]
    craters: Craters
    rocks: Rocks
    things: Things
    glow: light.Glow
    camera: Camera

    def __len__(self) -> int:
        return len(self.numbers["pixel_size"])

    def part(self, begin: int, end: int) -> _Plan:
        """The plan of some of the scenes."""
        numbers = {name: values[begin:end] for name, values in self.numbers.items()}
        numbers["first_rock"] = torch.searchsorted(self.rocks.scene, torch.tensor([begin]))
        tables = (_of_scenes(table, begin, end) for table in (self.craters, self.rocks, self.things))
        rows = slice(begin, end)
        return _Plan(numbers, *tables, take(self.glow, rows), take(self.camera, rows))  # type: ignore[arg-type,call-arg]

    def on(self, device: torch.device) -> _Plan:
        """The plan with its tensors on a device."""
        numbers = {name: values.to(device) for name, values in self.numbers.items()}
        tables = (self.craters, self.rocks, self.things, self.glow, self.camera)
        return _Plan(numbers, *(moved(table, device) for table in tables))  # type: ignore[arg-type]


def _plan(recipe: SceneRecipe, batch: int, size: int, numbers: torch.Generator) -> _Plan:
    def even(limits: Range) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * torch.rand(batch, generator=numbers)

    def by_logarithm(limits: Range) -> Tensor:
        return limits[0] * (limits[1] / limits[0]) ** torch.rand(batch, generator=numbers)

    pixel = even(recipe.pixel_size_m)
    wide = _width(recipe, size)
    shape = (batch, wide, wide)
    hurst = even(recipe.hurst)
    drawn = {
        "pixel_size": pixel,
        "incidence": even(recipe.incidence_deg),
        "sun_azimuth": even(recipe.sun_azimuth_deg),
        "hurst": hurst,
        # The slope of a metre, felt from pixel to pixel.
        "slope": torch.tan(torch.deg2rad(by_logarithm(recipe.slope_deg))) * pixel ** (hurst - 1),
        "grain": by_logarithm(recipe.grain),
        "tilt": torch.tan(torch.deg2rad(even(recipe.tilt_deg))),
        "tilt_azimuth": torch.deg2rad(even((0.0, 360.0))),
        "albedo": even(recipe.albedo),
        "albedo_contrast": even(recipe.albedo_contrast),
        "signal": by_logarithm(recipe.signal_dn),
        "scatter": even(recipe.scatter),
        "slope_brightness": even(recipe.slope_brightness),
    }
    if recipe.lander:
        drawn["camera_height"] = even(recipe.lander.height_m)
        drawn["pitch"] = even(recipe.lander.pitch_deg)
        drawn["fov"] = even(recipe.lander.fov_deg)
    craters = draw_craters(
        shape,
        pixel,
        by_logarithm(recipe.crater_density),
        by_logarithm(recipe.equilibrium_m),
        numbers,
        smallest_px=recipe.smallest_crater_px,
        concentric=recipe.concentric,
    )
    rocks = draw_rocks(
        shape,
        pixel,
        by_logarithm(recipe.rock_share),
        even(recipe.rock_exponent),
        numbers,
        smallest_px=recipe.smallest_rock_px,
        largest_px=recipe.largest_rock_px,
        craters=craters,
        blocks=recipe.blocks,
    )
    things = draw_things(
        shape,
        pixel,
        recipe.objects_each,
        recipe.objects,
        numbers,
        recipe.margin_px,
        recipe.objects_of_each_kind,
    )
    glow = light.draw_glow(batch, numbers)
    return _Plan(drawn, craters, rocks, things, glow, sensor.sample_cameras(batch, numbers, dict(recipe.camera)))


def _width(recipe: SceneRecipe, size: int) -> int:
    """Pixels of ground across, for a scene of so many."""
    return round(size * recipe.lander.ground) if recipe.lander else size + 2 * recipe.margin_px


def _render(recipe: SceneRecipe, plan: _Plan, size: int, noise: torch.Generator) -> dict[str, Tensor]:
    """From a plan to pixels, on the device of the generator."""
    first = int(plan.numbers["first_rock"])
    plan = plan.on(noise.device)
    n, wide = plan.numbers, _width(recipe, size)
    with record_function("ground"):
        ground = _regolith((len(plan), wide, wide), n, noise)
        ground, old = place(ground, plan.things, young=False)
    with record_function("craters"):
        ground = brighten_slopes(stamp_craters(ground, plan.craters), n["slope_brightness"])
    with record_function("rocks and objects"):
        ground, rock_id = stamp_rocks(ground, plan.rocks, first)
        ground, young = place(ground, plan.things, young=True)
    made = {"rock_id": rock_id, "objects": torch.maximum(old, young)}
    made["classes"] = _classes(rock_id, plan.rocks, first, recipe.large_rock_m)
    with record_function("light"):
        if recipe.shadowed:
            made["reflectance"] = light.shadow_light(ground, plan.glow, recipe.photometry)
            made["lit"] = torch.zeros_like(ground.height)
        else:
            made["reflectance"], made["lit"] = light.sunlit(
                ground, n["sun_azimuth"], n["incidence"], recipe.photometry, reach=recipe.slope_reach
            )
            made["reflectance"] += n["scatter"][:, None, None] * ground.albedo
    if recipe.lander:
        with record_function("lander's view"):
            made = _from_lander(recipe, ground, made, n, size)
    inner = slice(recipe.margin_px, -recipe.margin_px or None)
    made = {"height": ground.height, "albedo": ground.albedo, **made}
    made = {name: values[:, inner, inner].contiguous() for name, values in made.items()}
    with record_function("camera"):
        made["exposure"] = _exposure(recipe, n, made["reflectance"])
        made["ideal"] = made["reflectance"] * made["exposure"][:, None, None]
        recorded = sensor.expose(made["ideal"], plan.camera, noise)
        made["recorded"] = recorded.dn8
        made["image"] = sensor.calibrate(recorded)
    return made


def _exposure(recipe: SceneRecipe, n: Mapping[str, Tensor], radiance: Tensor) -> Tensor:
    """DN for an I/F of 1: flat sunlit ground gets the signal of the scene, less if bright slopes would be burnt out.

    Where there is no such ground the mean gets it.
    """
    if recipe.shadowed or recipe.lander:
        wanted = n["signal"] / radiance.mean(dim=(1, 2)).clamp(min=1e-9)
    else:
        wanted = n["signal"] / (n["albedo"] * torch.cos(torch.deg2rad(n["incidence"])))
    brightest = functional.avg_pool2d(radiance[:, None], 4).amax(dim=(1, 2, 3))
    return torch.minimum(wanted, UNBURNT / brightest.clamp(min=1e-9))


def _classes(rock_id: Tensor, rocks: Rocks, first: int, large_m: float) -> Tensor:
    """0 ground, 1 small rock, 2 large rock."""
    of_rock = torch.ones(len(rocks) + 1, dtype=torch.uint8, device=rock_id.device)
    of_rock[0] = 0
    of_rock[1:] += (rocks.diameter_m >= large_m).to(torch.uint8)
    return of_rock[(rock_id - first).clamp(min=0).long()]


def _from_lander(
    recipe: SceneRecipe, ground: Ground, maps: dict[str, Tensor], n: Mapping[str, Tensor], size: int
) -> dict[str, Tensor]:
    """The maps as a lander's camera sees them."""
    seen = perspective(
        ground,
        maps["lit"],
        n["sun_azimuth"],
        n["incidence"],
        n["camera_height"],
        n["pitch"],
        fov=n["fov"],
        size=(size, size),
        photometry=recipe.photometry,
    )
    return {
        "reflectance": seen.radiance,
        "lit": seen.of(maps["lit"]),
        "rock_id": seen.of(maps["rock_id"]),
        "objects": seen.of(maps["objects"]),
        "classes": seen.of(maps["classes"], sky=SKY),
    }


def _regolith(shape: tuple[int, int, int], n: Mapping[str, Tensor], noise: torch.Generator) -> Ground:
    """Fractal ground on a slope, of uneven albedo."""
    pixel = n["pixel_size"][:, None, None]
    height = fractal(shape, n["pixel_size"], n["slope"], n["hurst"], noise, n["grain"])
    down = torch.arange(shape[1], device=height.device)[:, None] * pixel
    right = torch.arange(shape[2], device=height.device)[None] * pixel
    steep, azimuth = n["tilt"][:, None, None], n["tilt_azimuth"][:, None, None]
    height = height + steep * (torch.sin(azimuth) * right - torch.cos(azimuth) * down)
    albedo = n["albedo"][:, None, None] * mottled(shape, n["albedo_contrast"], noise)
    return Ground(height, albedo, n["pixel_size"])


def _together(parts: list[dict[str, Tensor]], plan: _Plan, margin: int) -> Scenes:
    made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    n = plan.numbers
    ground = Ground(made.pop("height"), made.pop("albedo"), n["pixel_size"])
    return Scenes(
        ground=ground,
        craters=_seen_from(plan.craters, margin),
        rocks=_seen_from(plan.rocks, margin),
        things=_seen_from(plan.things, margin),
        sun_azimuth=n["sun_azimuth"],
        incidence=n["incidence"],
        pixel_size=n["pixel_size"],
        camera=plan.camera,
        **made,
    )


def _of_scenes(table: Table, begin: int, end: int) -> Table:
    """The rows of some scenes, which are numbered from 0 then."""
    low, high = torch.searchsorted(table.scene, torch.tensor([begin, end])).tolist()  # type: ignore[attr-defined]
    part = take(table, slice(low, high))
    return replace(part, scene=part.scene - begin)  # type: ignore[attr-defined,type-var]


def _seen_from(table: Table, margin: int) -> Table:
    """Positions counted from the corner of the scene, not of the ground around it."""
    return replace(table, col=table.col - margin, row=table.row - margin)  # type: ignore


def _recipe(recipe: str | SceneRecipe) -> SceneRecipe:
    if isinstance(recipe, SceneRecipe):
        return recipe
    if recipe not in RECIPES:
        raise ParameterError(f"There is no recipe {recipe!r}.", f"choose one of {', '.join(RECIPES)}.")
    return RECIPES[recipe]


def _device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"There is no device {str(device)!r} here.", "use cpu, or see `lunar doctor`.") from error
    return place
