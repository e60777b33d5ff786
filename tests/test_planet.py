"""Which world an image shows, where its pixels lie there, and how large they are."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod

from lunar_processing.errors import ParameterError, PlanetError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.planet import (
    BODIES,
    Body,
    body_of,
    equal_area,
    jacobian,
    lonlat,
    metres_per_pixel,
    pixel_area,
    place_in_words,
    reproject,
    resolve_body,
    same_place,
    wkt_for,
)

R = 1_737_400.0
MOON = Body("Moon", R, R)
LOCAL_METRES = 'LOCAL_CS["a lander site",UNIT["metre",1]]'
LOCAL_FEET = 'LOCAL_CS["a lander site",UNIT["foot",0.3048]]'
LOCAL_NOTHING = 'LOCAL_CS["a lander site",UNIT["unknown",0]]'


def wkt(crs: str) -> str:
    return CRS.from_user_input(crs).to_wkt()


def grid_of(crs: str | None, transform: Affine, size: int = 1000) -> Grid:
    return Grid(None if crs is None else wkt(crs), transform, size, size)


def map_pixel(crs: str, lon: float, lat: float, size: float = 1.0) -> Grid:
    """One image whose pixel centre (0.5, 0.5) lies at the given longitude and latitude."""
    from pyproj import Transformer

    system = CRS.from_user_input(crs)
    x, y = Transformer.from_crs(system.geodetic_crs, system, always_xy=True).transform(lon, lat)
    return grid_of(crs, Affine(size, 0, x - size / 2, 0, -size, y + size / 2), 1)


# Bodies


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        ("IAU_2015:30100", "Moon"),
        ("IAU_2015:30135", "Moon"),
        ("+proj=longlat +R=1737150", "Moon"),
        ("+proj=longlat +R=1738140", "Moon"),
        ("+proj=longlat +a=1738140 +b=1735970", "Moon"),
        ("+proj=longlat +R=1736000", "Moon"),
        ("IAU_2015:19900", "Mercury"),
        ("IAU_2015:19901", "Mercury"),
        ("+proj=longlat +R=2439400", "Mercury"),
        ("+proj=longlat +R=2439700", "Mercury"),
        ("IAU_2015:49900", "Mars"),
        ("IAU_2015:49902", "Mars"),
        ("+proj=longlat +R=3389500", "Mars"),
        ("+proj=longlat +R=255000", "Vesta"),
        ("+proj=longlat +R=281000", "Vesta"),
        ("+proj=longlat +a=285000 +b=229000", "Vesta"),
        ("+proj=longlat +R=470000", "Ceres"),
        ("+proj=longlat +a=482000 +b=445900", "Ceres"),
        ("+proj=longlat +a=487300 +b=454700", "Ceres"),
        ("EPSG:4326", "Earth"),
        ("EPSG:32633", "Earth"),
        ("+proj=longlat +R=6371000", "Earth"),
        ("+proj=longlat +R=252100", "unknown"),  # Enceladus, nearly as large as Vesta
        ("+proj=longlat +a=256600 +b=248300", "unknown"),
        ("+proj=longlat +R=2410300", "unknown"),  # Callisto, nearly as large as Mercury
        ("+proj=longlat +R=1821490", "unknown"),  # Io, somewhat larger than the Moon
        ("+proj=longlat +R=6051800", "unknown"),  # Venus
    ],
)
def test_a_body_is_recognised_by_its_axes(crs: str, name: str) -> None:
    body = body_of(wkt(crs))
    ellipsoid = CRS.from_user_input(crs).ellipsoid
    assert body.name == name
    axes = (ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre)
    assert (body.a, body.b) == pytest.approx(axes, rel=1e-12)


def test_every_known_body_is_recognised_by_its_own_axes() -> None:
    for name, body in BODIES.items():
        assert body_of(wkt(f"+proj=longlat +a={body.a} +b={body.b}")).name == name


def test_codes_play_no_part() -> None:
    lying = wkt("EPSG:4326").replace("WGS 84", "Moon").replace("World Geodetic System 1984", "Moon")
    assert body_of(lying).name == "Earth"


@pytest.mark.parametrize("local", [LOCAL_METRES, LOCAL_NOTHING, None])
def test_without_a_coordinate_system_on_a_body_there_is_no_body(local: str | None) -> None:
    assert body_of(local) is None
    assert resolve_body(local, None) is None


def test_heights_and_datum_shifts_around_a_coordinate_system_do_not_hide_it() -> None:
    compound = (
        f'COMPOUNDCRS["with heights",{wkt("IAU_2015:30135")},'
        'VERTCRS["radius",VDATUM["Moon"],CS[vertical,1],AXIS["up",up],LENGTHUNIT["metre",1]]]'
    )
    bound = wkt("+proj=longlat +R=1737400 +towgs84=0,0,0 +type=crs")
    assert CRS(bound).is_bound
    assert body_of(compound) == body_of(bound) == MOON
    transform = Affine(10, 0, -5000, 0, -10, 5000)
    there = lonlat(Grid(compound, transform, 9, 9), 3.0, 4.0)
    assert np.allclose(there, lonlat(grid_of("IAU_2015:30135", transform), 3.0, 4.0))
    assert np.allclose(lonlat(Grid(bound, Affine(1, 0, 20, 0, -1, 40), 9, 9), 3.0, 4.0), (23, 36))


def test_an_image_on_the_earth_is_refused_with_the_cure() -> None:
    with pytest.raises(PlanetError, match=r"on the Earth by its coordinate system \(WGS 84 / UTM zone 33N\)") as caught:
        resolve_body(wkt("EPSG:32633"), None)
    assert "--body Moon" in caught.value.cure
    assert "--body Earth" in caught.value.cure


def test_a_named_body_wins() -> None:
    assert resolve_body(wkt("EPSG:32633"), "earth").name == "Earth"
    assert resolve_body(wkt("EPSG:32633"), "moon") == BODIES["Moon"]
    assert resolve_body(None, "Ceres") == BODIES["Ceres"]
    # the same world by another radius: that of the coordinate system counts
    assert resolve_body(wkt("+proj=longlat +R=1738140"), "Moon") == Body("Moon", 1_738_140, 1_738_140)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="Mon") as caught:
        resolve_body(None, "Mon")
    assert all(name in caught.value.cure for name in BODIES)


def test_with_another_body_coordinates_stay_and_lengths_follow() -> None:
    grid = grid_of("EPSG:4326", Affine(1, 0, 10, 0, -1, 50))
    moon = resolve_body(grid.wkt, "Moon")
    assert np.allclose(lonlat(grid, 0.5, 0.5, moon), (10.5, 49.5))
    assert np.allclose(metres_per_pixel(grid, 0.5, 0.5, moon)[1], math.radians(R), rtol=1e-6)
    projected = grid_of("EPSG:32633", Affine(30, 0, 500_000, 0, -30, 0))
    assert np.allclose(metres_per_pixel(projected, 0.5, 0.5, moon), 30 / 0.9996, rtol=1e-6)
    assert np.allclose(lonlat(projected, 0, 10_000, moon)[1], -math.degrees(300_000 / 0.9996 / R))


def test_a_text_that_is_no_coordinate_system_is_refused() -> None:
    with pytest.raises(PlanetError, match="cannot be understood: PROJCS"):
        body_of('PROJCS["half of')


def test_coordinates_from_the_centre_of_a_body_are_refused() -> None:
    with pytest.raises(PlanetError, match="cannot be computed"):
        lonlat(grid_of("EPSG:4978", Affine(1, 0, 0, 0, -1, 0)), 0, 0)


def test_real_images_are_on_the_moon(real_data: Path) -> None:
    for path in (real_data / "moon" / "moon.tif", real_data / "lola" / "LDEM_16.LBL"):
        with rasterio.open(path) as image:
            grid = Grid(image.crs.to_wkt(), image.transform, image.width, image.height)
        assert body_of(grid.wkt) == MOON
        assert np.allclose(
            lonlat(grid, grid.width / 2, 0), (0, 90) if "moon" in path.name else (180 - 360, 90), atol=0.01
        )
        assert np.allclose(
            metres_per_pixel(grid, grid.width / 2, grid.height / 2)[0] * grid.width, 2 * np.pi * R, rtol=1e-4
        )


# The same place


@pytest.mark.parametrize("code", ["30100", "30110", "30115", "30130", "30135"])
@pytest.mark.parametrize("version", ["WKT1_ESRI", "WKT1_GDAL", "WKT2_2015"])
def test_a_coordinate_system_is_the_same_in_every_dialect(code: str, version: str) -> None:
    exact = CRS.from_authority("IAU_2015", code)
    assert same_place(exact.to_wkt(), exact.to_wkt(version))


def test_a_geotiff_brings_the_same_place_back(tmp_path: Path) -> None:
    path = tmp_path / "south.tif"
    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=wkt("IAU_2015:30135"), transform=Affine(2, 0, 5, 0, -2, 5), **profile):
        pass
    with rasterio.open(path) as image:
        assert same_place(image.crs.to_wkt(), wkt("IAU_2015:30135"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("IAU_2015:30130", "IAU_2015:30135"),
        ("IAU_2015:30110", "IAU_2015:30115"),
        ("IAU_2015:30110", "IAU_2015:30100"),
        ("+proj=eqc +R=1737400", "+proj=eqc +R=1737150"),
        ("+proj=eqc +R=1737400", "+proj=eqc +R=1737400 +lat_ts=10"),
        ("+proj=eqc +R=1737400", "+proj=eqc +R=1737400 +x_0=1"),
        ("+proj=eqc +R=1737400", "+proj=eqc +R=1737400 +units=km"),
        ("IAU_2015:49901", "IAU_2015:49902"),  # planetographic to the west, planetocentric to the east
        ("EPSG:32633", "EPSG:32634"),
        ("IAU_2015:30110", LOCAL_METRES),
        ("IAU_2015:30110", None),
    ],
)
def test_other_parameters_are_another_place(one: str, other: str | None) -> None:
    other_wkt = None if other is None else wkt(other)
    assert not same_place(wkt(one), other_wkt)
    assert not same_place(other_wkt, wkt(one))


def test_names_and_codes_do_not_make_another_place() -> None:
    assert same_place(wkt("IAU_2015:30135"), wkt("+proj=stere +lat_0=-90 +lat_ts=-90 +R=1737400"))
    assert same_place(wkt("IAU_2015:30110"), wkt("+proj=eqc +R=1737400"))
    assert same_place(None, None)


# Longitude and latitude


def test_longitudes_are_within_180_degrees_and_east_positive() -> None:
    grid = grid_of("IAU_2015:30100", Affine(1, 0, 0, 0, -1, 90), 360)  # 0 … 360
    lon, lat = lonlat(grid, np.array([0.5, 179.5, 180.5, 359.5]), 90.0)
    assert np.allclose(lon, [0.5, 179.5, -179.5, -0.5])
    assert np.allclose(lat, 0)
    west = grid_of("IAU_2015:49901", Affine(1, 0, 10, 0, -1, 50), 9)
    assert np.allclose(lonlat(west, 0, 0), (-10, 50))


def test_latitudes_are_those_of_the_coordinate_system() -> None:
    b2a2 = (3_376_200 / 3_396_190) ** 2
    centric = grid_of("IAU_2015:49902", Affine(1, 0, 10, 0, -1, 50), 9)
    assert np.allclose(lonlat(centric, 0, 0), (10, 50))
    y = 2e6
    graphic = lonlat(grid_of("IAU_2015:49911", Affine(1, 0, 0, 0, -1, y), 9), 0, 0)[1]
    centric_lat = lonlat(grid_of("IAU_2015:49912", Affine(1, 0, 0, 0, -1, y), 9), 0, 0)[1]
    assert np.allclose(np.tan(np.radians(centric_lat)), b2a2 * np.tan(np.radians(graphic)))


def test_a_rotated_pole_and_another_prime_meridian_are_undone() -> None:
    rotated = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=45 +lon_0=0 +R=1737400"
    assert np.allclose(lonlat(grid_of(rotated, Affine(1, 0, 0, 0, -1, 90), 9), 0, 0)[1], 45)
    far = grid_of("+proj=longlat +R=1737400 +pm=180", Affine(1, 0, 10, 0, -1, 20), 9)
    assert np.allclose(lonlat(far, 0, 0), (-170, 20))


def test_polar_images_have_their_zero_meridian_where_the_iau_puts_it() -> None:
    transform = Affine(100, 0, -50_000, 0, -100, 50_000)
    south, north = grid_of("IAU_2015:30135", transform), grid_of("IAU_2015:30130", transform)
    col, row = np.array([500, 1000, 500, 0]), np.array([0, 500, 1000, 500])  # up, right, down, left
    assert np.allclose(lonlat(south, col, row)[0], [0, 90, -180, -90])
    assert np.allclose(lonlat(north, col, row)[0], [-180, 90, 0, -90])
    assert np.allclose(lonlat(south, 500, 500)[1], -90)


def test_there_is_no_place_without_a_coordinate_system_or_beyond_the_limb() -> None:
    assert np.isnan(lonlat(grid_of(None, PIXEL_SPACE), 3, 4)).all()
    assert np.isnan(lonlat(grid_of(LOCAL_METRES, PIXEL_SPACE), 3, 4)).all()
    disk = grid_of("+proj=ortho +R=1737400", Affine(1e4, 0, -2e6, 0, -1e4, 2e6), 400)
    lon, lat = lonlat(disk, np.array([0.5, 200]), np.array([0.5, 200]))
    assert np.isnan([lon[0], lat[0]]).all()
    assert np.allclose([lon[1], lat[1]], 0)
    assert np.isnan(jacobian(disk, 0.5, 0.5)).all()


# Metres


@pytest.mark.parametrize(("lat", "excess"), [(85, 0.004), (80, 0.015), (70, 0.063)])
@pytest.mark.parametrize(("crs", "sign"), [("IAU_2015:30130", 1), ("IAU_2015:30135", -1)])
def test_polar_stereographic_pixels_hold_less_ground_away_from_the_pole(
    lat: float, excess: float, crs: str, sign: int
) -> None:
    area = pixel_area(map_pixel(crs, 30, sign * lat, 2.0), 0.5, 0.5)
    assert np.allclose(4 / area - 1, excess, atol=0.0006)
    assert np.allclose(4 / area, (2 / (1 + math.sin(math.radians(lat)))) ** 2, rtol=1e-7)


def test_equirectangular_pixels_are_narrow_near_the_pole() -> None:
    along, down = metres_per_pixel(map_pixel("IAU_2015:30110", 30, 80), 0.5, 0.5)
    assert np.allclose(1 / along, 5.76, atol=0.005)
    assert np.allclose(down, 1)


@pytest.mark.parametrize("size", [0.001, 0.5, 100.0])
def test_pixels_at_the_very_pole_are_right(size: float) -> None:
    ground = jacobian(map_pixel("IAU_2015:30135", 0, -90, size), [0.5, 0.6, 3.0], [0.5, 0.5, -20.0])
    lengths = np.linalg.norm(ground, axis=1)
    assert np.allclose(lengths, size, rtol=1e-6)
    assert np.allclose(np.abs(np.linalg.det(ground)), size**2, rtol=1e-6)


def test_degree_pixels_at_the_pole_are_slivers() -> None:
    grid = grid_of("IAU_2015:30100", Affine(0.25, 0, -180, 0, -0.25, 90), 1440)
    degree = math.radians(R)
    row = np.array([0, 0.5, 1, 360])
    along, down = metres_per_pixel(grid, 7.5, row)
    assert np.allclose(along, 0.25 * degree * np.sin(np.radians(row / 4)), rtol=1e-6, atol=1e-6)
    assert np.allclose(down, 0.25 * degree, rtol=1e-4)


def test_the_pixels_of_a_world_add_up_to_its_surface() -> None:
    globe = grid_of("IAU_2015:30100", Affine(0.5, 0, -180, 0, -0.5, 90), 720)
    rows = pixel_area(globe, 0.5, np.arange(360) + 0.5)
    assert np.allclose(rows.sum() * 720, 4 * math.pi * R**2, rtol=1e-5)
    flat = grid_of("IAU_2015:49901", Affine(0.5, 0, -180, 0, -0.5, 90), 720)
    surface = abs(Geod(a=3_396_190, b=3_376_200).polygon_area_perimeter([0, 90, 180, 270], [0, 0, 0, 0])[0]) * 2
    assert np.allclose(pixel_area(flat, 0.5, np.arange(360) + 0.5).sum() * 720, surface, rtol=1e-5)


def test_the_columns_say_where_east_and_north_are() -> None:
    plain = grid_of("IAU_2015:30110", Affine(2, 0, 0, 0, -2, 0))
    assert np.allclose(jacobian(plain, 5, 5), [[[2, 0], [0, -2]]])
    south_up = grid_of("IAU_2015:30110", Affine(2, 0, 0, 0, 2, 0))
    assert np.allclose(jacobian(south_up, 5, 5), [[[2, 0], [0, 2]]])
    turned = grid_of("IAU_2015:30110", Affine(0, 2, 0, 2, 0, 0))  # a step along the row goes north
    assert np.allclose(jacobian(turned, 5, 5), [[[0, 2], [2, 0]]])
    west = jacobian(grid_of("IAU_2015:49901", Affine(1, 0, 10, 0, -1, 0.5)), 0.5, 0.5)
    assert west[0, 0, 0] < 0


def test_units_other_than_metres_are_metres_in_the_end() -> None:
    grid = grid_of("+proj=eqc +R=1737400 +units=km", Affine(0.1, 0, 0, 0, -0.1, 0))
    assert np.allclose(metres_per_pixel(grid, 1, 1), 100)


def test_without_a_body_the_user_or_the_units_give_the_size() -> None:
    nowhere = grid_of(None, PIXEL_SPACE)
    assert jacobian(nowhere, 1, 1) is None
    assert metres_per_pixel(nowhere, 1, 1) is None
    assert pixel_area(nowhere, 1, 1) is None
    assert np.allclose(jacobian(nowhere, [1, 2], 1, pixel_size=0.5), [np.diag([0.5, -0.5])] * 2)
    local = Affine(2, 0, 0, 0, -2, 0)
    assert np.allclose(metres_per_pixel(grid_of(LOCAL_METRES, local), 1, 1), 2)
    assert np.allclose(metres_per_pixel(grid_of(LOCAL_FEET, local), 1, 1), 0.6096)
    assert jacobian(grid_of(LOCAL_NOTHING, local), 1, 1) is None
    assert np.allclose(metres_per_pixel(grid_of(LOCAL_NOTHING, local), 1, 1, pixel_size=0.5), 0.5)


@pytest.mark.parametrize("size", [0, -1, math.nan, math.inf])
def test_a_pixel_size_must_be_a_size(size: float) -> None:
    with pytest.raises(PlanetError, match="has no size"):
        jacobian(grid_of(None, PIXEL_SPACE), 1, 1, pixel_size=size)


@settings(max_examples=60, deadline=None)
@given(
    crs=st.sampled_from(
        ["IAU_2015:30100", "IAU_2015:30110", "IAU_2015:30115", "IAU_2015:30130", "IAU_2015:30135", "IAU_2015:49910"]
        + ["+proj=laea +lat_0=-80 +lon_0=20 +R=1737400", "+proj=stere +lat_0=-90 +a=3396190 +b=3376200"]
    ),
    lon=st.floats(-179, 179),
    lat=st.floats(40, 89.9),
    metres=st.floats(0.01, 5000),
    turn=st.floats(0, 360),
    flip=st.sampled_from([1, -1]),
    squeeze=st.floats(0.3, 3),
)
def test_a_pixel_is_as_long_as_the_geodesic_across_it(
    crs: str, lon: float, lat: float, metres: float, turn: float, flip: int, squeeze: float
) -> None:
    """Any place, rotation, flip and shape of pixels: compared with geodesics on the same ellipsoid."""
    system = CRS.from_user_input(crs)
    if "-80" in crs or "-90" in crs or "30135" in crs:
        lat = -lat
    corner = map_pixel(crs, lon, lat, 1e-9)
    unit = 1 / math.radians(R) if system.is_geographic else 1.0
    a, b = metres * unit, metres * unit * squeeze
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    t = corner.transform
    grid = Grid(corner.wkt, Affine(a * cos, -flip * b * sin, t.c, a * sin, flip * b * cos, t.f), 9, 9)
    along, down = metres_per_pixel(grid, 0.0, 0.0)
    east, north = jacobian(grid, 0.0, 0.0)[0, :, 0]
    geod = Geod(a=system.ellipsoid.semi_major_metre, b=system.ellipsoid.semi_minor_metre)
    h = 200 / max(along[0], down[0])  # long enough for PROJ's digits, short beside the body
    for dc, dr, length in ((h, 0, along[0]), (0, h, down[0])):
        (west, east_lon), (south, north_lat) = lonlat(grid, [-dc, dc], [-dr, dr])
        azimuth, _, distance = geod.inv(west, south, east_lon, north_lat)
        assert distance / (2 * h) == pytest.approx(length, rel=2e-5)
    if abs(lat) < 89:
        (here_lon, there_lon), (here_lat, there_lat) = lonlat(grid, [0, h], [0, 0])
        azimuth = geod.inv(here_lon, here_lat, there_lon, there_lat)[0]
        difference = (math.degrees(math.atan2(east, north)) - azimuth + 180) % 360 - 180
        assert abs(difference) < 1.0


def test_a_hundred_thousand_places_take_less_than_two_seconds() -> None:
    grid = grid_of("IAU_2015:30135", Affine(10, 0, -5000, 0, -10, 5000))
    col, row = np.random.default_rng(0).uniform(0, 1000, (2, 100_000))
    start = time.perf_counter()
    assert jacobian(grid, col, row).shape == (100_000, 2, 2)
    assert time.perf_counter() - start < 2


# What files keep


@pytest.mark.parametrize("driver", ["GPKG", "ESRI Shapefile", "FlatGeobuf", "GTiff"])
@pytest.mark.parametrize("crs", ["IAU_2015:30100", "IAU_2015:30135", "IAU_2015:49902", "EPSG:32633", LOCAL_METRES])
def test_what_a_file_keeps_is_the_same_place(driver: str, crs: str) -> None:
    kept = wkt_for(wkt(crs), driver)
    assert same_place(kept, wkt(crs))
    if driver != "GTiff":
        assert '"IAU' not in kept
    assert CRS(kept).to_epsg() == (32633 if crs == "EPSG:32633" else None)


def test_the_place_is_said_in_words() -> None:
    assert place_in_words(None) == "No coordinate system: places are columns and rows."
    assert place_in_words(wkt("IAU_2015:30135")).endswith("South Polar: on Moon, radius 1737.4 km.")
    assert "semi-axes 3396.19 km and 3376.2 km" in place_in_words(wkt("IAU_2015:49901"))
    assert "sizes are taken from its units" in place_in_words(wkt(LOCAL_METRES))
    assert "sizes are in pixels" in place_in_words(wkt(LOCAL_NOTHING))
    assert "not known by its size" in place_in_words(wkt("+proj=longlat +R=252100"))
    assert "on Moon, radius 1737.4 km" in place_in_words(wkt("EPSG:4326"), BODIES["Moon"])


# ---- areas in a plane --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", ["IAU_2015:30135", "IAU_2015:30110", "IAU_2015:30100"])
def test_an_equal_area_plane_has_the_area_of_the_ground(crs: str) -> None:
    """A piece between two parallels and two meridians, whose area on a sphere is known."""
    west, east, south, north = 20.0, 26.0, -76.0, -72.0
    side = np.linspace(0, 1, 400)
    lon = np.concatenate(
        [west + (east - west) * side, np.full(400, east), east - (east - west) * side, np.full(400, west)]
    )
    lat = np.concatenate([np.full(400, south), south + (north - south) * side, np.full(400, north)])
    lat = np.concatenate([lat, north - (north - south) * side])
    x, y = reproject(wkt("IAU_2015:30100"), wkt(crs), MOON, lon, lat)
    plane = equal_area(wkt(crs), MOON, x, y, 23.0, -74.0)
    ahead = np.roll(plane, -1, axis=0)
    area = abs((plane[:, 0] * ahead[:, 1] - plane[:, 1] * ahead[:, 0]).sum()) / 2
    truth = R**2 * math.radians(east - west) * (math.sin(math.radians(north)) - math.sin(math.radians(south)))
    assert area == pytest.approx(truth, rel=1e-5)


def test_map_coordinates_there_and_back_again() -> None:
    x, y = np.array([1000.0, -250_000.0]), np.array([2000.0, 40_000.0])
    there = reproject(wkt("IAU_2015:30135"), wkt("IAU_2015:30110"), MOON, x, y)
    back = reproject(wkt("IAU_2015:30110"), wkt("IAU_2015:30135"), MOON, *there)
    np.testing.assert_allclose(back, (x, y), atol=1e-5)
