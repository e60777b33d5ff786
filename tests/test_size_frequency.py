"""`lunar rocksizefrequency`: from points and an area to numbers true on the ground, or to a reason why not."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from pyproj import CRS, Geod, Transformer
from running import lunar, names, snapshot

from lunar_processing import sizes
from lunar_processing.planet import body_of, same_place
from lunar_processing.tools.counted import Wishes
from lunar_processing.tools.size_frequency import numbers, size_frequency
from lunar_processing.vector import Layer, read_layer, target, write_layers

POLE, EQUATOR, DEGREES = "IAU_2015:30135", "IAU_2015:30110", "IAU_2015:30100"
MARS = "IAU_2015:49935"
PIXEL = 0.5
RECORD = json.dumps({"tool": "rocks", "model": {"id": "shadow-pairs"}, "parameters": {"pixel_size": PIXEL}})

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def wkt(name: str | None) -> str | None:
    return name and CRS.from_user_input(name).to_wkt("WKT2_2019")


def diameters(n: int, exponent: float = 3.0, smallest: float = 1.0, seed: int = 1) -> np.ndarray:
    return smallest * (1 - np.random.default_rng(seed).random(n)) ** (-1 / exponent)


@dataclass(frozen=True)
class Site:
    """Rocks in a square, as `lunar rocks` writes them."""

    n: int = 400
    crs: str | None = POLE
    corner: tuple[float, float] = (1000.0, 2000.0)  # lower left, map units
    side: float = 300.0  # map units
    record: str = RECORD
    seed: int = 1

    @property
    def box(self) -> shapely.Geometry:
        x, y = self.corner
        return shapely.box(x, y, x + self.side, y + self.side)

    def rocks(self, **fields: np.ndarray) -> Layer:
        random = np.random.default_rng(self.seed)
        x, y = (corner + self.side * random.uniform(0.06, 0.94, self.n) for corner in self.corner)
        d = diameters(self.n, seed=self.seed + 1)
        every = {
            "diam_eq_m": d,
            "area_m2": np.pi / 4 * d**2,
            "diam_eq_px": d / PIXEL,
            "edge": np.zeros(self.n, np.int32),
            "product_id": np.full(self.n, "M104318871L", dtype=object),
            "model": np.full(self.n, "shadow-pairs", dtype=object),
        } | fields
        every = {name: values for name, values in every.items() if values is not None}
        return Layer("rocks", shapely.points(x, y), every, wkt(self.crs), "Point", metadata=self.record)

    def area(self, shape: shapely.Geometry | None = None, area_m2: float | None = None) -> Layer:
        shapes = np.array([shapely.MultiPolygon([shape or self.box])], dtype=object)
        fields = {} if area_m2 is None else {"area_m2": np.array([area_m2])}
        return Layer("searched_area", shapes, fields, wkt(self.crs), "MultiPolygon", metadata=self.record)

    def write(self, path: Path, rocks: Layer | None = None, area: Layer | None = None) -> Path:
        layers = [rocks or self.rocks(), area or self.area()]
        write_layers([(layer, target(path)) for layer in layers])
        return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return Site().write(tmp_path / "site.gpkg")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One run on a plain site, for those who only look."""
    folder = tmp_path_factory.mktemp("made")
    return run(Site().write(folder / "site.gpkg"), "--out", folder / "out")


def run(*words: object) -> dict:
    ran = lunar("rocksizefrequency", *words, "--json")
    assert ran.code == 0, ran.err
    return ran.result


def measured(rocks: Path, **wishes: object) -> dict:
    """The same numbers, without the files."""
    return numbers(Wishes(str(rocks), Path(), **wishes))


def refused(*words: object) -> str:
    ran = lunar("rocksizefrequency", *words)
    assert ran.code in (1, 2)
    assert "Cure:" in ran.err
    return ran.err


def rows(path: str) -> list[dict[str, float]]:
    with Path(path).open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# ---- the numbers -------------------------------------------------------------------------------------------------


def test_all_results_of_a_site_appear(made: dict):
    facts = made
    folder = Path(facts["outputs"]["fits"]).parent
    assert set(names(folder)) >= {
        *("site_sizes.csv", "site_sizes.json", "site_sizes.png", "site_sizes.svg", "site_abundance.tif"),
        *("site.diam", "site.scc", "site_CRATER.shp", "site_CRATER.prj", "site_AREA.shp"),
    }
    assert set(facts["outputs"]) == {
        *("table", "fits", "figure", "drawing", "abundance", "diam", "scc", "craters", "areas")
    }
    assert all(Path(path).stat().st_size > 100 for path in facts["outputs"].values())
    assert facts["min_diameter"] == {"value": 4 * PIXEL, "source": "4 px", "peak_of_counts": None}
    d = diameters(400, seed=2)
    assert facts["counts"] == {
        "rocks": 400, "counted": 400, "complete": int((d >= 2).sum()), "outside": 0, "on_edge": 0
    }  # fmt: skip
    large = d[d >= 2]
    assert facts["power_law"]["exponent"] == pytest.approx(len(large) / np.log(large / 2).sum())
    assert facts["power_law"]["low"] < 3.0 < facts["power_law"]["high"]
    written = json.loads(Path(facts["outputs"]["fits"]).read_text(encoding="utf-8"))
    assert written["power_law"] == facts["power_law"]
    assert written["provenance"]["inputs"][0]["path"] == str(folder.parent / "site.gpkg")
    assert written["provenance"]["model"] == {
        "id": "maximum likelihood", "rocks": "shadow-pairs", "product": "M104318871L"
    }  # fmt: skip


def test_the_table_adds_up(site: Path, tmp_path: Path):
    facts = run(site, "--out", tmp_path / "out", "--bins", 5)
    table = rows(facts["outputs"]["table"])
    d, km2 = diameters(400, seed=2), facts["area"]["value"] / 1e6
    assert sum(row["count"] for row in table) == 400
    for row in table:
        assert row["cumulative"] == (d >= row["d_low_m"] * (1 - 1e-9)).sum()
        assert row["cumulative_per_km2"] == pytest.approx(row["cumulative"] / km2, rel=1e-6)
        width = row["d_high_m"] - row["d_low_m"]
        assert row["differential_per_km2_m"] == pytest.approx(row["count"] / km2 / width, rel=1e-6)
        assert row["r"] == pytest.approx(row["count"] / (km2 * 1e6) / width * row["d_mid_m"] ** 3, rel=1e-6)
        for name in ("cumulative_per_km2", "differential_per_km2_m", "r", "count"):
            assert row[f"{name}_lower"] <= row[name] <= row[f"{name}_upper"]
        assert row["complete"] == (row["d_low_m"] > 1.999)
    first = next(row for row in table if row["complete"])
    assert facts["density"]["value"] == pytest.approx(first["cumulative_per_km2"], rel=1e-6)


def test_options_of_the_fit(site: Path, tmp_path: Path):
    facts = run(site, "--out", tmp_path / "out", "--min-diameter", 3, "--max-diameter", 8, "--confidence", 0.6827)
    d = diameters(400, seed=2)
    assert facts["power_law"]["n"] == ((d >= 3) & (d <= 8)).sum()
    assert facts["weibull"]["n"] == (d >= 3).sum()
    fit = sizes.fit_power_law(d, 3.0, 8.0, 0.6827)
    assert (facts["power_law"]["low"], facts["power_law"]["high"]) == pytest.approx((fit.low, fit.high))


def test_below_four_pixels_one_is_warned(site: Path):
    warnings = measured(site, min_diameter=1.0)["warnings"]
    assert any("Below 4 px (2 m)" in warning for warning in warnings)


def test_what_the_layer_left_out_is_not_taken_for_complete(tmp_path: Path):
    record = json.dumps({"parameters": {"pixel_size": PIXEL, "min_diameter": 3.0}})
    facts = measured(Site(record=record).write(tmp_path / "site.gpkg"))
    assert facts["min_diameter"]["value"] == 3.0
    assert any("left out of the layer" in warning for warning in facts["warnings"])


def test_without_a_pixel_size_the_limit_is_a_guess_and_said_so(tmp_path: Path):
    site = Site(record="")
    site.write(tmp_path / "site.gpkg", site.rocks(diam_eq_px=None))
    facts = measured(tmp_path / "site.gpkg")
    assert facts["min_diameter"]["source"] == "the smallest rock"
    assert any("Give --pixel-size" in warning for warning in facts["warnings"])
    given = measured(tmp_path / "site.gpkg", pixel_size=0.75)
    assert given["min_diameter"]["value"] == pytest.approx(3.0)


def test_the_pixel_size_is_also_told_by_the_rocks_themselves(tmp_path: Path):
    assert measured(Site(record="").write(tmp_path / "s.gpkg"))["min_diameter"]["value"] == 2.0


# ---- rocks and where they are -------------------------------------------------------------------------------------


def test_rocks_outside_the_area_and_on_the_edge(tmp_path: Path):
    site = Site()
    edge = (np.arange(400) % 4 == 0).astype(np.int32)
    x, y = site.corner
    site.write(tmp_path / "site.gpkg", site.rocks(edge=edge), site.area(shapely.box(x, y, x + 150, y + 300)))
    rocks = site.rocks(edge=edge)
    inside = shapely.get_x(rocks.geometry) <= x + 150
    facts = measured(tmp_path / "site.gpkg")
    assert facts["counts"]["outside"] == (~inside).sum()
    assert facts["counts"]["on_edge"] == (inside & (edge > 0)).sum()
    assert facts["counts"]["counted"] == (inside & (edge == 0)).sum()
    assert any("outside the searched area: not counted" in warning for warning in facts["warnings"])
    assert any("touch the image's edge" in warning for warning in facts["warnings"])
    assert measured(tmp_path / "site.gpkg", edge="count")["counts"]["counted"] == inside.sum()


def test_no_rocks_are_a_result(tmp_path: Path):
    facts = run(Site(n=0).write(tmp_path / "empty.gpkg"), "--out", tmp_path / "out")
    assert facts["counts"]["counted"] == 0
    assert facts["density"]["upper"] == pytest.approx(3.6889 / facts["area"]["value"] * 1e6, rel=1e-4)
    assert set(facts["outputs"]) == {"table", "fits", "abundance", "craters", "areas"}
    assert any("nothing to fit or to draw" in warning for warning in facts["warnings"])
    assert rows(facts["outputs"]["table"]) == []
    with rasterio.open(facts["outputs"]["abundance"]) as raster:
        assert np.nanmax(raster.read(1)) == 0


def test_few_rocks_are_counted_but_not_fitted(tmp_path: Path):
    facts = run(Site(n=12).write(tmp_path / "few.gpkg"), "--out", tmp_path / "out", "--min-diameter", 2)
    assert facts["power_law"] is None
    assert "too few" in facts["no_fit"]
    assert "figure" in facts["outputs"]


def test_a_catalogue_of_others(made: dict, tmp_path: Path):
    """A shapefile with diameters in km under a name of its own, and the area in a file of its own."""
    site = Site()
    rocks = replace(site.rocks(), fields={"D": diameters(400, seed=2) / 1000, "who": np.full(400, "me", dtype=object)})
    write_layers([(replace(rocks, metadata=""), target(tmp_path / "boulders.shp"))])
    write_layers([(site.area(), target(tmp_path / "area.fgb"))])
    words = [tmp_path / "boulders.shp", "--area", tmp_path / "area.fgb", "--min-diameter", 2]
    facts = run(*words, "--out", tmp_path / "a", "--diameter-field", "D", "--unit", "km")
    assert facts["power_law"]["exponent"] == pytest.approx(made["power_law"]["exponent"])
    assert facts["density"]["value"] == pytest.approx(made["density"]["value"], rel=1e-4)
    assert "no field with diameters that is known: it has D, who" in refused(*words, "--out", tmp_path / "c")
    assert "choose one of D" in refused(*words, "--out", tmp_path / "c", "--diameter-field", "who")


def test_rocks_without_a_diameter_are_left_out_and_said_so(tmp_path: Path):
    site = Site()
    d = diameters(400, seed=2)
    d[:30] = np.nan
    d[30:35] = 0.0
    site.write(tmp_path / "site.gpkg", site.rocks(diam_eq_m=d))
    facts = measured(tmp_path / "site.gpkg")
    assert facts["counts"]["rocks"] == 365
    assert any(warning.startswith("35 of 400 rocks have no diameter") for warning in facts["warnings"])


# ---- areas on the ground ------------------------------------------------------------------------------------------


def geodesic_area(shape: shapely.Geometry, crs: str) -> float:
    """Independently: densified, in longitude and latitude, on the sphere by GeographicLib."""
    system = CRS.from_user_input(crs)
    fine = shapely.segmentize(shape, shape.length / 4000)
    to_degrees = Transformer.from_crs(system, system.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(*shapely.get_coordinates(fine).T)
    return abs(Geod(a=1_737_400.0, b=1_737_400.0).polygon_area_perimeter(lon, lat)[0])


@pytest.mark.parametrize(
    ("crs", "corner", "side"),
    [
        (POLE, (-150.0, -150.0), 300.0),  # the pole itself
        (POLE, (300_000.0, 400_000.0), 5000.0),  # 73.6° south: the map shows 4 % too much
        (EQUATOR, (100_000.0, 2_274_000.0), 3000.0),  # 75° north: the map shows 4 times too much
        (DEGREES, (30.0, -80.1), 0.1),
    ],
    ids=["pole", "far from the pole", "equirectangular", "degrees"],
)
def test_areas_are_those_on_the_ground_and_not_on_the_map(crs: str, corner: tuple, side: float, tmp_path: Path):
    site = Site(crs=crs, corner=corner, side=side)
    truth = geodesic_area(site.box, crs)
    cell = math.sqrt(truth) / 20
    facts = run(site.write(tmp_path / "site.gpkg"), "--out", tmp_path / "out", "--cell", cell)
    assert facts["area"]["value"] == pytest.approx(truth, rel=2e-5)
    assert facts["density"]["value"] == pytest.approx(facts["counts"]["complete"] / truth * 1e6, rel=2e-5)
    areas = read_layer(facts["outputs"]["areas"])
    assert areas.fields["area"].sum() == pytest.approx(truth / 1e6, rel=2e-5)
    d = diameters(400, seed=2)
    with rasterio.open(facts["outputs"]["abundance"]) as raster:
        under_rocks = np.nansum(raster.read(1)) * cell**2
    assert under_rocks == pytest.approx(np.pi / 4 * (d[d >= 2] ** 2).sum(), rel=0.02)


def test_an_area_in_another_coordinate_system_of_the_moon(tmp_path: Path):
    site = Site()
    near = CRS.from_wkt(wkt(POLE))
    there = CRS.from_proj4("+proj=stere +lat_0=-89 +lon_0=20 +R=1737400 +units=m +no_defs")
    moved = shapely.transform(
        shapely.segmentize(site.box, 5), lambda xy: np.stack(Transformer.from_crs(near, there).transform(*xy.T), axis=1)
    )
    other = replace(site.area(moved), wkt=there.to_wkt())
    write_layers([(other, target(tmp_path / "area.gpkg"))])
    write_layers([(site.rocks(), target(tmp_path / "rocks.gpkg"))])
    facts = measured(tmp_path / "rocks.gpkg", area=str(tmp_path / "area.gpkg"))
    assert facts["area"]["value"] == pytest.approx(geodesic_area(site.box, POLE), rel=1e-5)
    assert facts["counts"]["outside"] == 0


def test_the_counted_area_is_believed_until_its_outline_was_edited(tmp_path: Path):
    site = Site()
    truth = geodesic_area(site.box, POLE)
    site.write(tmp_path / "whole.gpkg", area=site.area(area_m2=truth * 0.995))
    facts = measured(tmp_path / "whole.gpkg")
    assert facts["area"]["value"] == pytest.approx(truth * 0.995)
    assert "which its outline confirms" in facts["area"]["source"]
    x, y = site.corner
    half = site.area(shapely.box(x, y, x + 150, y + 300), truth * 0.995)
    site.write(tmp_path / "edited.gpkg", area=half)
    facts = measured(tmp_path / "edited.gpkg")
    assert facts["area"]["value"] == pytest.approx(truth / 2, rel=1e-4)
    assert any("edited" in warning for warning in facts["warnings"])


def test_overlapping_and_crossing_polygons_count_once(tmp_path: Path):
    site = Site()
    x, y = site.corner
    bow_tie = shapely.Polygon([(x, y), (x + 300, y + 300), (x + 300, y), (x, y + 300)])
    for name, shapes, share in (
        ("overlap", [site.box, shapely.box(x, y, x + 100, y + 100)], 1.0),
        ("bow_tie", [bow_tie], 0.5),
    ):
        layer = replace(site.area(), geometry=np.array([shapely.MultiPolygon([s]) for s in shapes], dtype=object))
        site.write(tmp_path / f"{name}.gpkg", area=layer)
        facts = measured(tmp_path / f"{name}.gpkg")
        assert facts["area"]["value"] == pytest.approx(share * geodesic_area(site.box, POLE), rel=1e-4)
        assert any("overlap" in w or "cross" in w for w in facts["warnings"])


def test_a_number_is_an_area_too(site: Path, tmp_path: Path):
    facts = run(site, "--area", "5e4", "--out", tmp_path / "out")
    assert facts["area"]["value"] == 50_000
    assert set(facts["outputs"]) == {"table", "fits", "figure", "drawing", "diam", "scc"}
    assert any("cannot be checked" in warning for warning in facts["warnings"])


# ---- without a coordinate system -----------------------------------------------------------------------------------


def test_pixels_of_known_size_are_metres(tmp_path: Path):
    site = Site(crs=None, corner=(0.0, -600.0), side=600.0)
    facts = run(site.write(tmp_path / "site.gpkg"), "--out", tmp_path / "out")
    assert facts["unit"] == "m"
    assert facts["area"]["value"] == pytest.approx(300.0**2)
    assert set(facts["outputs"]) == {"table", "fits", "figure", "drawing", "abundance"}
    with rasterio.open(facts["outputs"]["abundance"]) as raster:
        assert raster.crs is None
        assert raster.bounds.top <= 20  # where QGIS draws an image without a coordinate system


def test_pixels_of_unknown_size_are_counted_for_a_square_pixel(tmp_path: Path):
    site = Site(crs=None, corner=(0.0, -600.0), side=600.0, record="")
    nothing = np.full(400, np.nan)
    site.write(tmp_path / "site.gpkg", site.rocks(diam_eq_m=nothing, area_m2=nothing))
    facts = run(tmp_path / "site.gpkg", "--out", tmp_path / "out")
    assert facts["unit"] == "px"
    assert facts["area"] == {"value": 360_000.0, "unit": "px2", "source": facts["area"]["source"]}
    assert facts["min_diameter"]["value"] == 4.0
    assert facts["density"]["value"] == pytest.approx(facts["counts"]["complete"] / 360_000)
    assert "cumulative_per_px2" in rows(facts["outputs"]["table"])[0]
    assert any("No scale is known" in warning for warning in facts["warnings"])
    scaled = measured(tmp_path / "site.gpkg", pixel_size=PIXEL)
    assert scaled["density"]["value"] == pytest.approx(facts["density"]["value"] / PIXEL**2 * 1e6)
    assert scaled["power_law"]["exponent"] == pytest.approx(facts["power_law"]["exponent"])


# ---- the raster of abundance ---------------------------------------------------------------------------------------


def test_abundance_is_the_share_of_ground_under_rocks(tmp_path: Path):
    """One rock of 6 m in the middle of one cell, one over the border of two; an area that leaves cells out."""
    site = Site(n=2, side=100.0)
    x, y = site.corner
    points = shapely.points([x + 5, x + 20], [y + 5, y + 15])
    rocks = replace(site.rocks(diam_eq_m=np.array([6.0, 6.0]), area_m2=None), geometry=points)
    site.write(tmp_path / "site.gpkg", rocks, site.area(shapely.box(x, y, x + 100, y + 60)))
    facts = run(tmp_path / "site.gpkg", "--out", tmp_path / "out", "--cell", 10)
    with rasterio.open(facts["outputs"]["abundance"]) as raster:
        share = raster.read(1)
        assert raster.descriptions == ("abundance",)
        assert math.isnan(raster.nodata)
        assert same_place(raster.crs.to_wkt(), wkt(POLE))
        assert "LUNAR_PROVENANCE" in raster.tags()
        row, col = raster.index(x + 5, y + 5)
        rows_of = {name: raster.index(x + east, y + 15)[1] for name, east in (("left", 15), ("right", 25))}
        row_15 = raster.index(x + 15, y + 15)[0]
        outside = raster.index(x + 50, y + 90) if raster.bounds.top > y + 90 else None
    covered = np.pi * 9 / 100
    # Nearly at the pole, a cell of 10 m is one of 10 m on the ground, but not aligned with the points to the metre.
    assert np.nansum(share) == pytest.approx(2 * covered, rel=0.02)
    assert share[row, col] == pytest.approx(covered, rel=0.05)
    assert share[row_15, rows_of["left"]] == pytest.approx(covered / 2, rel=0.15)
    assert share[row_15, rows_of["right"]] == pytest.approx(covered / 2, rel=0.15)
    assert outside is None or np.isnan(share[outside])
    assert "give a larger --cell" in refused(tmp_path / "site.gpkg", "--out", tmp_path / "fine", "--cell", 0.01)


# ---- files for other programs --------------------------------------------------------------------------------------


def structure(path: str) -> dict[str, object]:
    """A file of Craterstats as its reader takes it: comments go, then `name = value` or a table between braces."""
    text = "\n".join(line for line in Path(path).read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    found: dict[str, object] = {}
    for name, heads, body in re.findall(r"^(\w+) = \{(.+)\n((?:.*\n)*?)\}", text, re.M):
        columns = [head.strip() for head in heads.split(",")]
        found[name] = [dict(zip(columns, line.split())) for line in body.splitlines()]
    return found | dict(re.findall(r"^(\w+) = ([^{\n]+)$", text, re.M))


def test_diam_and_scc_as_craterstats_reads_them(made: dict):
    facts = made
    diam, scc = structure(facts["outputs"]["diam"]), structure(facts["outputs"]["scc"])
    d = diameters(400, seed=2) / 1000
    assert float(diam["area"]) == pytest.approx(facts["area"]["value"] / 1e6, abs=1e-12)
    np.testing.assert_allclose([float(c["diameter"]) for c in diam["crater"]], d, atol=1e-9)
    np.testing.assert_allclose([float(c["diam"]) for c in scc["crater"]], d, atol=1e-9)
    assert {c["fraction"] for c in scc["crater"]} == {"1"}
    assert set(scc["crater"][0]) == {"diam", "fraction", "lon", "lat", "topo_scale_factor"}
    # The reader of Craterstats takes digits and points only: no exponents.
    assert float(re.match(r"\s*[\d.]*", scc["Total_area"])[0]) == pytest.approx(facts["area"]["value"] / 1e6, abs=1e-12)
    assert scc["a_axis_radius"] == "1737.400000 <km>"
    ring = [(float(v["lon"]), float(v["lat"])) for v in scc["unit_boundary"]]
    assert ring[0] == ring[-1]
    assert {v["tag"] for v in scc["unit_boundary"]} == {"ext"}
    rocks = Site().rocks()
    to_degrees = Transformer.from_crs(CRS.from_wkt(rocks.wkt), CRS.from_wkt(rocks.wkt).geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(shapely.get_x(rocks.geometry), shapely.get_y(rocks.geometry))
    np.testing.assert_allclose([float(c["lon"]) for c in scc["crater"]], lon, atol=1e-9)
    np.testing.assert_allclose([float(c["lat"]) for c in scc["crater"]], lat, atol=1e-9)


def test_holes_of_the_area_are_inner_rings(tmp_path: Path):
    site = Site()
    x, y = site.corner
    hole = site.box.difference(shapely.box(x + 100, y + 100, x + 200, y + 200))
    facts = run(site.write(tmp_path / "s.gpkg", area=site.area(hole)), "--out", tmp_path / "out")
    rings = {(v["sub_area"], v["tag"]) for v in structure(facts["outputs"]["scc"])["unit_boundary"]}
    assert rings == {("1", "ext"), ("2", "int")}
    assert facts["area"]["value"] == pytest.approx(geodesic_area(site.box, POLE) * 8 / 9, rel=1e-4)


@pytest.mark.parametrize(("crs", "corner"), [(POLE, (400_000.0, 0.0)), (EQUATOR, (0.0, 1_500_000.0))])
def test_the_pair_of_shapefiles_has_circles_of_their_diameter(crs: str, corner: tuple, tmp_path: Path):
    facts = run(Site(crs=crs, corner=corner).write(tmp_path / "s.gpkg"), "--out", tmp_path / "out")
    craters, areas = read_layer(facts["outputs"]["craters"]), read_layer(facts["outputs"]["areas"])
    assert Path(facts["outputs"]["craters"]).name == "s_CRATER.shp"
    assert Path(facts["outputs"]["areas"]).name == "s_AREA.shp"
    assert list(craters.fields) == ["Diam_km", "x_coord", "y_coord", "tag"]
    assert list(areas.fields) == ["area", "area_name"]
    assert set(craters.fields["tag"]) == {"standard"}
    for layer in (craters, areas):
        assert same_place(layer.wkt, wkt(crs))
        assert body_of(layer.wkt).name == "Moon"
    for i in (0, 17, 399):
        ground = math.sqrt(geodesic_area(craters.geometry[i], crs) * 4 / math.pi)
        assert ground == pytest.approx(1000 * craters.fields["Diam_km"][i], rel=1e-3)
    told = json.loads((tmp_path / "out" / "s_CRATER.provenance.json").read_text(encoding="utf-8"))
    assert told["tool"] == "rocksizefrequency"


def test_the_figure_says_what_was_counted(made: dict):
    facts = made
    drawing = Path(facts["outputs"]["drawing"]).read_text(encoding="utf-8")
    for word in ("M104318871L", "shadow-pairs", "per km²", "power law", "not complete, not fitted", "0.09"):
        assert word in drawing, word
    from skimage.io import imread

    picture = imread(facts["outputs"]["figure"])
    assert picture.shape[1] >= 1800
    assert picture.std() > 10


# ---- what is refused -----------------------------------------------------------------------------------------------

WRONG = {
    "no such file": (["missing.gpkg"], "There is no file"),
    "no such layer": (["site.gpkg|layername=craters"], "no layer"),
    "polygons for rocks": (["site.gpkg|layername=searched_area"], "no points"),
    "no such area": (["site.gpkg", "--area", "missing.gpkg"], "There is no file"),
    "points for an area": (["site.gpkg", "--area", "site.gpkg|layername=rocks"], "no polygons"),
    "area 0": (["site.gpkg", "--area", "0"], "not possible"),
    "area below 0": (["site.gpkg", "--area", "-3"], "not possible"),
    "area elsewhere": (["site.gpkg", "--area", "elsewhere.gpkg"], "do not overlap"),
    "area on Mars": (["site.gpkg", "--area", "mars.gpkg"], "on Moon, the searched area on Mars"),
    "area without a place": (["site.gpkg", "--area", "nowhere.gpkg"], "no coordinate system"),
    "area of no extent": (["site.gpkg", "--area", "line.gpkg"], "is zero"),
    "no area at all": (["alone.gpkg"], "searched area is not known"),
    "no such field": (["site.gpkg", "--diameter-field", "size"], "no field of numbers"),
    "limit 0": (["site.gpkg", "--min-diameter", "0"], "not possible"),
    "limit nan": (["site.gpkg", "--min-diameter", "nan"], "not possible"),
    "end below the limit": (["site.gpkg", "--min-diameter", "3", "--max-diameter", "2"], "not above"),
    "end below four pixels": (["site.gpkg", "--max-diameter", "1"], "not above"),
    "no bins": (["site.gpkg", "--bins", "0"], "not possible"),
    "certainty": (["site.gpkg", "--confidence", "1"], "not possible"),
    "pixels of -1 m": (["site.gpkg", "--pixel-size", "-1"], "not possible"),
}


@pytest.fixture(scope="module")
def wrong_places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    site = Site(n=20)
    site.write(folder / "site.gpkg")
    line = shapely.Polygon([(1000, 2000), (1300, 2300), (1000, 2000)])
    for name, layer in {
        "elsewhere": replace(Site(corner=(50_000.0, 0.0)).area()),
        "mars": Site(crs=MARS).area(),
        "nowhere": Site(crs=None).area(),
        "line": site.area(line),
        "alone": site.rocks(),
    }.items():
        write_layers([(layer, target(folder / f"{name}.gpkg"))])
    return folder


@pytest.mark.parametrize(("words", "why"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_right_is_refused_and_leaves_nothing(
    words: list[str], why: str, wrong_places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(wrong_places)
    assert why in refused(*words, "--out", tmp_path / "out")
    assert names(tmp_path) == []


def test_metres_without_any_scale_need_one(tmp_path: Path):
    site = Site(crs=None, record="")
    site.write(tmp_path / "s.gpkg", site.rocks(diam_eq_px=None))
    assert "give --pixel-size" in refused(tmp_path / "s.gpkg", "--out", tmp_path / "out")
    assert measured(tmp_path / "s.gpkg", area="1e4", min_diameter=2.0)["unit"] == "m"


def test_an_area_that_holds_no_rock_is_no_mistake(tmp_path: Path):
    site = Site()
    x, y = site.corner
    rocks = site.rocks()
    left = replace(
        rocks,
        geometry=rocks.geometry[shapely.get_x(rocks.geometry) < x + 100],
        fields={k: v[shapely.get_x(rocks.geometry) < x + 100] for k, v in rocks.fields.items()},
    )
    site.write(tmp_path / "site.gpkg", left)
    write_layers([(site.area(shapely.box(x + 150, y, x + 300, y + 300)), target(tmp_path / "part.gpkg"))])
    facts = measured(tmp_path / "site.gpkg", area=str(tmp_path / "part.gpkg"))
    assert facts["counts"]["counted"] == 0


# ---- files -------------------------------------------------------------------------------------------------------


def test_what_exists_stays_unless_it_may_be_replaced(site: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(site, "--out", out)
    before = snapshot(out)
    assert "--overwrite" in refused(site, "--out", out, "--min-diameter", 3)
    assert snapshot(out) == before
    run(site, "--out", out, "--min-diameter", 3, "--overwrite")
    assert snapshot(out) != before


def test_files_of_an_earlier_run_are_not_left_beside_new_ones(site: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(site, "--out", out)
    run(site, "--out", out, "--area", 1e4, "--overwrite")
    assert names(out) == [
        "site.diam",
        "site.scc",
        "site_sizes.csv",
        "site_sizes.json",
        "site_sizes.png",
        "site_sizes.svg",
    ]


def test_the_same_rocks_give_the_same_bytes(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    for name in ("a", "b"):
        run(site, "--out", tmp_path / name)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_a_cancelled_run_leaves_nothing(site: Path, tmp_path: Path):
    from lunar_processing.errors import Cancelled
    from lunar_processing.tools.job import Report

    with pytest.raises(Cancelled):
        size_frequency(Wishes(str(site), tmp_path / "out"), Report(cancelled=lambda: True))
    assert names(tmp_path / "out") == []


def test_progress_and_result_as_json_lines(site: Path, tmp_path: Path):
    ran = lunar("rocksizefrequency", site, "--out", tmp_path / "out", "--progress", "jsonl")
    *before, last = ran.events
    assert last["event"] == "result"
    shares = [event["fraction"] for event in before if event["event"] == "progress"]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_rocks_of_the_rock_tool_go_in_as_they_are(tmp_path: Path):
    from running import scene

    image = scene(tmp_path / "scene.tif")
    assert lunar("rocks", image, tmp_path / "rocks.gpkg", "--area-layer", "--sun-azimuth", 90).code == 0
    facts = run(tmp_path / "rocks.gpkg", "--out", tmp_path / "out")
    assert "which its outline confirms" in facts["area"]["source"]
    assert facts["min_diameter"]["value"] == pytest.approx(8.0, rel=0.02)  # 4 pixels of 2 m
    assert facts["counts"]["rocks"] == len(pyogrio.raw.read(tmp_path / "rocks.gpkg", layer="rocks")[2])
    assert lunar("rocks", image, tmp_path / "rocks.fgb", "--area-layer", "--sun-azimuth", 90).code == 0
    beside = measured(tmp_path / "rocks.fgb")
    assert beside["density"]["value"] == pytest.approx(facts["density"]["value"], rel=1e-6)
