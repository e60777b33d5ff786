"""Real against simulated images: reads a folder of real ones, draws scenes under the same sun, writes the report."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lunar_processing.draft import Draft
from lunar_processing.errors import DataError, ParameterError
from lunar_processing.evaluate import judge, realism
from lunar_processing.evaluate.patches import SIZE, Images, relative, tiles
from lunar_processing.grid import Window
from lunar_processing.raster.image import open_image
from lunar_processing.simulate import scenes
from lunar_processing.training.data import SPLITS, product_id

SUFFIXES = (".png", ".tif", ".tiff", ".cub", ".img")
SCENE, SEEN = 288, 192  # px: what is drawn, and its middle on the map, of which 9 patches are cut
PROJECTED = 0.7  # share of the real images that are mosaics on a map grid, by nearest neighbour
# Pixels of the camera in one of the map: more than 1, as no mosaic has doubled pixels; hardly more, as craters are as
# many a pixel as in the frames that the mosaics were made of. Turn either way in degrees: assumed.
ZOOM, TURN = (1.0, 1.2), 12.0
STRETCH = 0.996  # quantile of brightness that becomes 255: in the real products 0 to 2 % are there
VISIBLE = 0.75  # degradation beyond which nobody would have labelled a simulated crater

# Incidence and azimuth of the Sun (clockwise from north) at 45.5° S, 177.5° E when each image was taken, degrees, ±1:
# from the spacecraft clock in its name (seconds, tied to UTC by the labels of M143947267L and M1333276014R) and the
# Sun's place in the Moon's sky (Meeus 1998, ch. 53).
SUN = {
    "M115143943": (76.3, 77.0),
    "M1155395732": (85.3, 86.0),
    "M1183658592": (67.2, 65.0),
    "M1229577647": (66.2, 62.0),
    "M1231933714": (85.1, 83.0),
    "M1266003170": (61.5, 306.0),
    "M1275410097": (76.1, 77.0),
    "M134022629": (77.5, 282.0),
    "M161142858": (71.7, 70.0),
    "M161149639": (71.1, 69.0),
    "M180000082": (83.1, 278.0),
    "M180007222": (83.8, 277.0),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What to compare: `part` of the split is judged, the network learns from `train`."""

    part: str = "validation"
    recipe: str = "nac"
    seed: int = 0
    steps: int = 1500
    scenes_per_product: int = 32


def compare_simulator(
    folder: Path, out: Path, wishes: Wishes | None = None, say: Say | None = None
) -> dict[str, object]:
    """Compare the images in a folder with simulated ones; write `realism.md` and `realism.png`; return the numbers."""
    wishes, say = wishes or Wishes(), say or (lambda text: None)
    if wishes.steps < 1 or wishes.scenes_per_product < 1:
        raise ParameterError("Nothing is to be learned or drawn.", "give one or more steps and scenes per product.")
    real = read_folder(folder)
    taught, judged = parts(real, wishes.part)
    say(f"{len(taught.patches)} real patches to learn from, {len(judged.patches)} to judge by")
    drawn = [simulate(images, wishes, k) for k, images in enumerate((taught, judged))]
    say(f"{sum(len(images.patches) for images in drawn)} simulated patches")
    verdict = judge.tell_apart(taught, drawn[0], judged, drawn[1], steps=wishes.steps, seed=wishes.seed)
    measured = realism.compare(judged, drawn[1], verdict)
    out.mkdir(parents=True, exist_ok=True)
    with Draft(out / "realism.md", overwrite=True) as text, Draft(out / "realism.png", overwrite=True) as figure:
        words = realism.in_words(measured, f"Simulated ({wishes.recipe}) and real images")
        text.path.write_text(words + _how(wishes), encoding="utf-8")
        realism.picture(judged, drawn[1], figure.path, wishes.seed)
        text.publish()
        figure.publish()
    return {
        "report": str(out / "realism.md"),
        "figure": str(out / "realism.png"),
        "accuracy": verdict.accuracy,
        "auc": verdict.auc,
        "distances": {name: d.distance for name, d in measured.distances.items()},
    }


def _how(wishes: Wishes) -> str:
    """A line that says what the numbers depend on."""
    return (
        f"\nJudged by the products of {wishes.part}; {wishes.scenes_per_product} scenes for each product, "
        f"{wishes.steps} steps of learning, seed {wishes.seed}.\n"
    )


def read_folder(folder: Path) -> Images:
    """Patches of all images of a folder, with the crater boxes that lie beside them (ID, X, Y, W, H in px)."""
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise DataError(f"There is no image in {folder}.", f"give a folder with {', '.join(SUFFIXES)} files.")
    patches, products = [], []
    craters: dict[str, list[np.ndarray]] = {}
    area: dict[str, float] = {}
    for path in paths:
        name = product_id(path.name)
        with open_image(path) as image:
            part = image.read(Window(0, 0, image.grid.width, image.grid.height))
        whole = tiles(part.valid).all(axis=(1, 2))
        cut = tiles(relative(part.pixels.astype(np.float32)))[whole]
        patches.append(cut)
        products += [name] * len(cut)
        labels = path.with_suffix(".txt")
        if labels.is_file():
            craters.setdefault(name, []).append(crater_boxes(labels))
            area[name] = area.get(name, 0.0) + float(part.valid.sum())
    if not products:
        raise DataError(f"No image in {folder} holds {SIZE} × {SIZE} valid pixels.", "give larger images.")
    return Images(
        np.concatenate(patches),
        np.array(products),
        np.array([SUN.get(name, (np.nan,))[0] for name in products]),
        {name: np.concatenate(parts) for name, parts in craters.items()},
        area,
    )


def crater_boxes(path: Path) -> np.ndarray:
    """Diameters in px, the mean of width and height, of labelled craters (n,)."""
    rows = [
        re.split(r"[,\t ]+", line.strip()) for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()
    ]
    try:
        return np.array([(float(row[3]) + float(row[4])) / 2 for row in rows])
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path} is not a table of crater boxes.", "give ID,X,Y,W,H in each line, with a header."
        ) from error


def simulate(real: Images, wishes: Wishes, part: int) -> Images:
    """Scenes under the sun of each real product (any sun of the recipe where it is unknown), as patches."""
    recipe = scenes.RECIPES.get(wishes.recipe)
    if recipe is None:
        raise ParameterError(f"There is no recipe {wishes.recipe!r}.", f"choose one of {', '.join(scenes.RECIPES)}.")
    sets = []
    for k, product in enumerate(np.unique(real.product)):
        incidence, azimuth = SUN.get(str(product), (None, None))
        here = recipe
        if incidence is not None and azimuth is not None:
            incidences, azimuths = (incidence - 1, incidence + 1), (azimuth - 5, azimuth + 5)
            here = replace(recipe, incidence_deg=incidences, sun_azimuth_deg=azimuths)
        seed = (wishes.seed * 2 + part) * 1000 + k
        drawn = scenes.draw(here, wishes.scenes_per_product, seed, size=SCENE)
        sets.append(_patches(drawn, f"{part}-{product}", seed))
    return Images(
        np.concatenate([s.patches for s in sets]),
        np.concatenate([s.product for s in sets]),
        np.concatenate([s.incidence for s in sets]),
        {name: value for s in sets for name, value in s.craters.items()},
        {name: value for s in sets for name, value in s.area.items()},
    )


def _patches(drawn: scenes.Scenes, name: str, seed: int) -> Images:
    """Scenes as real products come: calibrated, most on a map grid, stretched to 8 bits with black at 0."""
    random = np.random.default_rng(seed)
    zoom = np.where(random.random(len(drawn)) < PROJECTED, random.uniform(*ZOOM, len(drawn)), 1.0)
    turn = np.where(zoom == 1.0, 0.0, random.uniform(-TURN, TURN, len(drawn)))
    images = drawn.image.clamp(min=0).numpy()
    bright = relative(np.stack([on_a_map(image, z, t, SEEN) for image, z, t in zip(images, zoom, turn)]))
    step = np.quantile(bright, STRETCH) / 255
    byte = np.clip(np.rint(bright / step), 1, 255) * step
    patches = np.concatenate([tiles(scene) for scene in byte])
    each = len(patches) // len(drawn)
    craters = drawn.craters
    size = (craters.diameter_m / drawn.pixel_size[craters.scene]).numpy() / zoom[craters.scene.numpy()]
    inside = (craters.col >= 0) & (craters.col < SCENE) & (craters.row >= 0) & (craters.row < SCENE)
    seen = (inside & (craters.degradation < VISIBLE)).numpy()
    return Images(
        patches,
        np.full(len(patches), name),
        np.repeat(drawn.incidence.numpy(), each),
        {name: size[seen]},
        {name: float((zoom**-2).sum() * SCENE**2)},
    )


def on_a_map(image: np.ndarray, zoom: float, turn: float, size: int) -> np.ndarray:
    """The middle of a square image on a grid of size × size that is turned (degrees) and coarser by `zoom`.

    By nearest neighbour, as mosaics are: a coarser grid leaves pixels out.
    """
    rows, cols = np.mgrid[:size, :size] - (size - 1) / 2
    cos, sin = zoom * np.cos(np.radians(turn)), zoom * np.sin(np.radians(turn))
    middle = (len(image) - 1) / 2
    places = (cos * rows - sin * cols + middle, sin * rows + cos * cols + middle)
    row, col = (np.rint(np.round(place, 6)).astype(int) for place in places)
    return image[row, col]


def parts(real: Images, part: str) -> tuple[Images, Images]:
    """Patches to learn from and to judge by; never of one product."""
    split = next(
        (s for s in SPLITS.values() if set(real.product.tolist()) <= {p for names in s.values() for p in names}), None
    )
    products = np.unique(real.product).tolist()
    if split is None:
        if len(products) < 2:
            raise DataError("All real images are of one product.", "add images of another product to judge by.")
        split = {
            "train": tuple(products[: -max(1, len(products) // 4)]),
            part: tuple(products[-max(1, len(products) // 4) :]),
        }
    if part not in split or part == "train":
        raise ParameterError(f"There is no part {part!r} to judge by.", "choose validation or test.")
    chosen = [np.isin(real.product, split[name]) for name in ("train", part)]
    if not all(mask.any() for mask in chosen):
        raise DataError(f"The folder holds no product of train or none of {part}.", "give the whole folder.")
    return real.of(chosen[0]), real.of(chosen[1])
