"""What labels say: names, cameras, angles, scales and special pixels of real files and of files built here."""

from __future__ import annotations

from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lunar_processing.raster.product import Product, read_product

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def product(path: Path) -> Product:
    with rasterio.open(path) as dataset:
        return read_product(dataset, path)


def is_special(value: float, read: Product) -> bool:
    return any(low <= value <= high for low, high in read.missing)


# ---- real files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "product_id", "camera"), [("nacl", "M114145549LE", "NACL"), ("nacr", "M114145549RE", "NACR")]
)
def test_a_real_raw_nac_image_names_itself_and_has_no_angles(
    real_data: Path, name: str, product_id: str, camera: str
) -> None:
    read = product(real_data / "formats" / f"{name}.img")
    assert (read.id, read.id_source, read.instrument, read.target) == (product_id, "label", camera, "Moon")
    assert (read.summing, read.exposure_ms, read.start_time) == (1, 0.3376, "2009-11-29T14:51:21.968000")
    assert read.temperature_c == pytest.approx(17.7, abs=0.1)
    assert read.incidence_deg is read.sun_azimuth_deg is read.pixel_size_m is None


def test_nodata_that_gdal_invents_for_raw_nac_images_is_not_believed(real_data: Path) -> None:
    path = real_data / "formats" / "nacl.img"
    with rasterio.open(path) as dataset:
        assert dataset.nodata == 0  # what GDAL says
    assert not product(path).trust_nodata
    assert product(path).missing == ()


@pytest.mark.parametrize(
    ("name", "product_id", "camera"),
    [
        ("M143947267L.cal.echo.crop.cub", "M143947267LE", "NACL"),
        ("M1333276014R.default.crop.cub", "M1333276014RE", "NACR"),
        ("M1333276014R.near.crop.cub", "M1333276014RE", "NACR"),
        ("M1333276014R.pair.crop.cub", "M1333276014RE", "NACR"),
    ],
)
def test_a_real_isis_cube_of_the_nac_is_in_reflectance(
    real_data: Path, name: str, product_id: str, camera: str
) -> None:
    read = product(real_data / "formats" / name)
    assert (read.id, read.instrument, read.target, read.unit) == (product_id, camera, "Moon", "I/F")
    assert all(is_special(value, read) for value in formats.ISIS_REAL_SPECIALS)
    assert not is_special(-0.001, read)
    assert not is_special(np.nextafter(formats.ISIS_REAL_SPECIALS[0], np.float32(0)), read)


@pytest.mark.parametrize(
    ("name", "angles"),
    [
        ("TC1S2B0_01_00811N526E0443_mini.lbl", (78.595, 15.811, 83.644)),
        ("TC1S2B0_01_05186N225E0040_mini.lbl", (65.012, 15.912, 67.161)),
    ],
)
def test_a_real_kaguya_label_gives_angles_exposure_and_invalid_values(
    real_data: Path, name: str, angles: tuple[float, ...]
) -> None:
    read = product(real_data / "formats" / name)
    assert (read.incidence_deg, read.emission_deg, read.phase_deg) == angles
    assert (read.instrument, read.exposure_ms, read.unit) == ("TC1", 3.25, "W/m**2/micron/sr")
    assert all(is_special(value, read) for value in formats.KAGUYA_SPECIALS)
    assert not is_special(-19999, read)


def test_the_sun_of_a_real_kaguya_image_is_turned_from_the_ground_into_the_image(real_data: Path) -> None:
    # Morning: the sun is in the east, a little south. The image has east at its right but north at its bottom,
    # so the sun stands to the right and a little up.
    read = product(real_data / "formats" / "TC1S2B0_01_00811N526E0443_mini.lbl")
    assert read.sun_azimuth_deg == pytest.approx(180 - 107.842, abs=1)


def test_the_real_lola_map_gives_its_scale_in_metres(real_data: Path) -> None:
    read = product(real_data / "lola" / "LDEM_16.LBL")
    assert (read.id, read.instrument, read.pixel_size_m, read.unit) == ("LDEM_16", "LOLA", 1895.21, "METER")


def test_a_real_image_without_a_label_is_named_by_its_file(real_data: Path) -> None:
    read = product(real_data / "nac_cdr" / "M115143943RE_cal_echo_2_2.png")
    assert (read.id, read.id_source) == ("M115143943RE", "file name")
    assert read == Product("M115143943RE", "file name")  # and nothing else is known


# ---- LROC ------------------------------------------------------------------------------------------------


def test_a_calibrated_nac_image_has_five_special_values_and_reads_as_reflectance(tmp_path: Path) -> None:
    path = formats.nac_cdr(tmp_path / "M104318871RC.IMG")
    read = product(path)
    assert (read.id, read.instrument, read.unit, read.summing) == ("M104318871RC", "NACR", "I/F", 2)
    assert all(is_special(value, read) for value in formats.INT16_SPECIALS)
    assert not is_special(-32752, read)  # VALID_MINIMUM itself is valid
    assert read.trust_nodata
    with rasterio.open(path) as dataset:
        assert dataset.scales == (formats.CDR_SCALE,)


def test_special_values_of_floats_may_be_written_as_bit_patterns(tmp_path: Path) -> None:
    keywords = "  NULL = 16#FF7FFFFB#\n  HIGH_REPR_SATURATION = 16#FF7FFFFF#\n  VALID_MINIMUM = 16#FF7FFFFA#"
    read = product(formats.pds3(tmp_path / "wac.IMG", formats.ramp("float32"), "PRODUCT_ID = X", keywords))
    assert all(is_special(value, read) for value in formats.ISIS_REAL_SPECIALS)
    assert not is_special(-1.0, read)


def test_an_8_bit_image_whose_label_calls_0_missing_keeps_its_nodata(tmp_path: Path) -> None:
    read = product(formats.pds3(tmp_path / "map.IMG", formats.ramp("uint8"), "PRODUCT_ID = X", "  CORE_NULL = 0"))
    assert read.trust_nodata
    assert is_special(0, read)


def test_valid_minimum_is_a_statistic_unless_it_fences_off_special_values(tmp_path: Path) -> None:
    read = product(formats.pds3(tmp_path / "a.IMG", formats.ramp("int16"), "PRODUCT_ID = X", "  VALID_MINIMUM = 12"))
    assert read.missing == ()


# ---- ISIS ------------------------------------------------------------------------------------------------


def test_an_isis_cube_gives_camera_and_geometry(tmp_path: Path) -> None:
    read = product(formats.isis_cube(tmp_path / "a.cub", groups=formats.NAC_GROUPS + formats.GEOMETRY_GROUP, tile=32))
    assert (read.id, read.instrument, read.target) == ("M143947267LE", "NACL", "Moon")
    assert (read.incidence_deg, read.emission_deg, read.phase_deg) == (69.25, 1.5, 70.5)
    assert (read.pixel_size_m, read.summing, read.exposure_ms, read.temperature_c) == (0.5, 2, 0.3632, 19.18)


def test_isis_counts_azimuths_from_the_right_edge_and_we_count_from_the_top(tmp_path: Path) -> None:
    read = product(formats.isis_cube(tmp_path / "a.cub", groups=formats.GEOMETRY_GROUP))
    assert read.sun_azimuth_deg == 200.0 + 90.0


def test_the_azimuth_of_the_camera_image_means_nothing_in_a_projected_cube(tmp_path: Path) -> None:
    groups = formats.GEOMETRY_GROUP + formats.MAPPING_GROUP
    read = product(formats.isis_cube(tmp_path / "map.cub", formats.ramp("int16"), groups=groups))
    assert read.sun_azimuth_deg is None
    assert read.pixel_size_m == 5.0  # of the projection, not of the camera


@pytest.mark.parametrize(
    ("dtype", "special", "valid"),
    [
        ("uint8", [0, 255], [1, 254]),
        ("int16", formats.INT16_SPECIALS, [-32752, 0, 32767]),
        ("uint16", [0, 1, 2, 65534, 65535], [3, 65533]),
        ("float32", formats.ISIS_REAL_SPECIALS, [0.0, -1e30, 1e30]),
    ],
)
def test_every_isis_pixel_type_has_its_own_special_values(
    tmp_path: Path, dtype: str, special: list[float], valid: list[float]
) -> None:
    read = product(formats.isis_cube(tmp_path / "a.cub", formats.ramp(dtype)))
    assert all(is_special(value, read) for value in special)
    assert not any(is_special(value, read) for value in valid)


# ---- Kaguya, PDS4, VICAR, GDAL ---------------------------------------------------------------------------


@pytest.mark.parametrize(("north_up", "azimuth"), [(True, 100.0), (False, 80.0)])
def test_a_bearing_on_the_ground_is_mirrored_with_the_image(tmp_path: Path, north_up: bool, azimuth: float) -> None:
    read = product(formats.kaguya_tc(tmp_path, north_up=north_up))
    assert read.sun_azimuth_deg == pytest.approx(azimuth, abs=1e-6)


def test_pds4_gives_name_angles_scale_and_special_constants(tmp_path: Path) -> None:
    path = formats.pds4(
        tmp_path / "a.xml",
        discipline=formats.PDS4_GEOMETRY,
        specials="<saturated_constant>32767</saturated_constant>",
    )
    read = product(path)
    assert (read.id, read.id_source, read.target) == ("M102600893LE", "label", "Moon")
    assert (read.incidence_deg, read.emission_deg) == (71.5, 2.25)
    assert read.phase_deg == pytest.approx(np.degrees(1.25))  # the label writes radians
    assert read.sun_azimuth_deg == 80.0  # 350 from the right edge
    assert read.pixel_size_m == 2.0
    assert is_special(32767, read)
    assert is_special(-32768, read)


def test_a_pds4_template_that_was_never_filled_in_is_silent(tmp_path: Path) -> None:
    read = product(formats.pds4(tmp_path / "a.xml"))
    assert read.instrument is None
    assert read.start_time is None


def test_vicar_and_plain_geotiffs_are_named_by_their_file(tmp_path: Path) -> None:
    assert product(formats.vicar(tmp_path / "m0001.vic", formats.ramp("int16"))).id == "m0001"
    read = product(formats.tiled(tmp_path / "NAC_ROI_APOLLO11_M150361817LE_100CM.tif"))
    assert (read.id, read.id_source) == ("M150361817LE", "file name")


def test_gdal_tags_count_as_a_label(tmp_path: Path) -> None:
    tags = {
        "PRODUCT_ID": "M104318871LE",
        "INCIDENCE_ANGLE": "81.5 <deg>",
        "SUB_SOLAR_AZIMUTH": "90",
        "TARGET_NAME": "MOON",
    }
    read = product(formats.tiled(tmp_path / "renamed.tif", tags=tags))
    assert (read.id, read.id_source, read.target) == ("M104318871LE", "label", "Moon")
    assert (read.incidence_deg, read.sun_azimuth_deg) == (81.5, 180.0)


# ---- scale and silence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "metres"),
    [
        ("MAP_SCALE = 1.5 <METERS/PIXEL>", 1.5),
        ("MAP_SCALE = 0.0015 <KM/PIXEL>", 1.5),
        ("MAP_SCALE = 1.5 <M>", 1.5),
        ("PIXEL_RESOLUTION = 1.5 <m/pix>", 1.5),
        ("MAP_RESOLUTION = 16 <PIX/DEG>\nA_AXIS_RADIUS = 1737.4 <KM>", 1895.21),
        ("MAP_SCALE = 1.5", None),  # metres or kilometres? labels disagree
        ("MAP_RESOLUTION = 16 <PIX/DEG>", None),  # on which body?
        ("MAP_SCALE = -1 <M/PIXEL>", None),
        ("MAP_SCALE = 4 <PIX/DEG>", None),
        ("MAP_SCALE = 'N/A'", None),
    ],
)
def test_the_pixel_size_is_believed_only_with_its_unit(tmp_path: Path, keywords: str, metres: float | None) -> None:
    read = product(formats.pds3(tmp_path / "a.IMG", formats.ramp("uint8"), keywords))
    assert read.pixel_size_m == (None if metres is None else pytest.approx(metres, rel=1e-5))


@pytest.mark.parametrize("value", ["'N/A'", "UNK", "NULL", "-9999", "1.0E+32", "(1, 2, 3)", '"many"', "95 <KM>", "181"])
def test_an_angle_that_the_label_does_not_know_is_none(tmp_path: Path, value: str) -> None:
    read = product(formats.pds3(tmp_path / "a.IMG", formats.ramp("uint8"), f"INCIDENCE_ANGLE = {value}"))
    assert read.incidence_deg is None


def test_a_temperature_in_kelvin_is_given_in_celsius(tmp_path: Path) -> None:
    label = "FOCAL_PLANE_TEMPERATURE = 273.15 <K>"
    assert product(formats.pds3(tmp_path / "a.IMG", formats.ramp("uint8"), label)).temperature_c == 0.0


junk = st.one_of(
    st.sampled_from(
        ["N/A", '"', "''", "()", "(1, 2)", "{A, B}", "16#ZZ#", "16#FFFFFFFFFF#", "1e999", "-", "<deg>", "1 <", "5 <>"]
    ),
    st.floats().map(str),
    st.integers().map(str),
    st.text(alphabet=st.characters(codec="ascii", exclude_characters="\0\r\n"), max_size=20),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(junk, min_size=14, max_size=14))
def test_a_damaged_label_never_stops_a_run(tmp_path: Path, values: list[str]) -> None:
    header = ("PRODUCT_ID", "INSTRUMENT_ID", "FRAME_ID", "TARGET_NAME", "START_TIME", "MAP_SCALE", "INCIDENCE_ANGLE")
    header += ("SUB_SOLAR_AZIMUTH", "CROSSTRACK_SUMMING", "LINE_EXPOSURE_DURATION", "LRO:TEMPERATURE_FPA")
    image = ("NULL", "VALID_MINIMUM", "INVALID_VALUE")
    lines = [f"{key} = {value}" for key, value in zip(header + image, values)]
    path = formats.pds3(
        tmp_path / "a.IMG", formats.ramp("int16"), "\n".join(lines[: len(header)]), "\n".join(lines[len(header) :])
    )
    try:
        dataset = rasterio.open(path)
    except rasterio.errors.RasterioError:
        return  # GDAL itself gave up
    with dataset:
        read = read_product(dataset, path)
    assert read.id
    assert read.incidence_deg is None or 0 <= read.incidence_deg <= 180
    assert read.sun_azimuth_deg is None or 0 <= read.sun_azimuth_deg < 360
    assert all(-32768 <= low <= high <= 32767 for low, high in read.missing)
