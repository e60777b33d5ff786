"""Small real files of every kind the engine reads, a few lines each: nothing is mocked.

    path = geotiff(tmp_path / "a.tif", ramp("uint16"), nodata=0)
    path = nac_cdr(tmp_path / "M104318871LC.IMG")

Pixels are arrays (H, W) or (bands, H, W). Every builder returns the path that a user would open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

SOUTH_POLE = "IAU_2015:30135"
EQUIRECTANGULAR = "IAU_2015:30110"
EQUIRECTANGULAR_180 = "IAU_2015:30115"
DEGREES = "IAU_2015:30100"
EARTH_UTM = "EPSG:32633"

NORTH_UP = Affine(2.0, 0.0, 10_000.0, 0.0, -2.0, 30_000.0)
SOUTH_UP = Affine(2.0, 0.0, 10_000.0, 0.0, 2.0, 30_000.0)
ROTATED = Affine.translation(10_000.0, 30_000.0) * Affine.rotation(30.0) * Affine.scale(2.0, -2.0)

# Null, low representation, low instrument, high instrument, high representation saturation: in this order.
ISIS_REAL_SPECIALS = np.array([0xFF7FFFFB, 0xFF7FFFFC, 0xFF7FFFFD, 0xFF7FFFFE, 0xFF7FFFFF], np.uint32).view(np.float32)
INT16_SPECIALS = np.array([-32768, -32767, -32766, -32765, -32764], np.int16)
KAGUYA_SPECIALS = np.array([-20000, -21000, -22000, -23000], np.int16)


def ramp(dtype: str = "uint16", width: int = 80, height: int = 64) -> np.ndarray:
    """Every pixel another value where the type allows, none of them 0, 255 or special."""
    numbers = np.arange(width * height).reshape(height, width)
    if np.dtype(dtype).itemsize == 1:
        return (1 + numbers % 120).astype(dtype)
    return ((numbers + 1) / (1000 if dtype.startswith("float") else 1)).astype(dtype)


def geotiff(
    path: Path,
    pixels: np.ndarray | None = None,
    *,
    crs: str | None = SOUTH_POLE,
    transform: Affine | None = NORTH_UP,
    driver: str = "GTiff",
    tags: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """A raster by any GDAL driver that creates files; `options` are rasterio's (nodata, tiled, compress …)."""
    pixels = ramp() if pixels is None else pixels
    bands = pixels if pixels.ndim == 3 else pixels[None]
    place = {key: value for key, value in (("crs", crs), ("transform", transform)) if value is not None}
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver=driver, count=count, height=height, width=width, dtype=bands.dtype, **place, **options
    ) as file:
        if tags:  # before the pixels: the directory then comes first, as in most TIFFs
            file.update_tags(**tags)
        file.write(bands)
    return path


def tiled(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    """The usual GeoTIFF: tiles of 32 px, DEFLATE."""
    return geotiff(path, pixels, tiled=True, blockxsize=32, blockysize=32, compress="deflate", **options)


def cog(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    return geotiff(path, pixels, driver="COG", **options)


def with_overviews(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    tiled(path, pixels, **options)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    return path


def with_mask_band(path: Path, pixels: np.ndarray, valid: np.ndarray, internal: bool = True) -> Path:
    """A mask inside the TIFF, or beside it (`.msk`)."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        tiled(path, pixels)
        with rasterio.open(path, "r+") as file:
            file.write_mask(valid)
    return path


def with_alpha(path: Path, pixels: np.ndarray, valid: np.ndarray) -> Path:
    """Grey and alpha."""
    alpha = np.where(valid, np.iinfo(pixels.dtype).max, 0).astype(pixels.dtype)
    tiled(path, np.stack([pixels, alpha]), photometric="minisblack", alpha="yes")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    return path


def rgb(path: Path, pixels: np.ndarray | None = None) -> Path:
    pixels = np.stack([ramp("uint8"), ramp("uint8") + 1, ramp("uint8") + 2]) if pixels is None else pixels
    return tiled(path, pixels, photometric="rgb")


def palette(path: Path) -> Path:
    geotiff(path, ramp("uint8"), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (i, 255 - i, 0, 255) for i in range(256)})
    return path


def scaled(path: Path, pixels: np.ndarray, scale: float, offset: float, unit: str = "", **options: Any) -> Path:
    """Stored numbers with a scale, an offset and a unit, as GDAL keeps them."""
    tiled(path, pixels, **options)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets, file.units = (scale,), (offset,), (unit,)
    return path


def jpeg2000(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    """Lossless."""
    return geotiff(path, pixels, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", **options)


def png(path: Path, pixels: np.ndarray | None = None) -> Path:
    return geotiff(path, ramp("uint8") if pixels is None else pixels, crs=None, transform=None, driver="PNG")


def vicar(path: Path, pixels: np.ndarray | None = None) -> Path:
    return geotiff(path, pixels, crs=None, transform=None, driver="VICAR")


def vrt(path: Path, *sources: Path) -> Path:
    """A virtual raster beside its sources, stacking them from left to right."""
    parts, col = [], 0
    for source in sources:
        with rasterio.open(source) as file:
            width, height, dtype = file.width, file.height, rasterio.dtypes._gdal_typename(file.dtypes[0])
        parts.append(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(source.name)}</SourceFilename>'
            f'<SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
            f'<DstRect xOff="{col}" yOff="0" xSize="{width}" ySize="{height}"/></SimpleSource>'
        )
        col += width
    path.write_text(
        f'<VRTDataset rasterXSize="{col}" rasterYSize="{height}">'
        f'<VRTRasterBand dataType="{dtype}" band="1">{"".join(parts)}</VRTRasterBand></VRTDataset>'
    )
    return path


# ---- ISIS ------------------------------------------------------------------------------------------------

_ISIS_TYPES = {"uint8": "UnsignedByte", "int16": "SignedWord", "uint16": "UnsignedWord", "float32": "Real"}


def isis_cube(path: Path, pixels: np.ndarray | None = None, groups: str = "", tile: int | None = None) -> Path:
    """An attached ISIS 3 cube, band-sequential or in tiles; `groups` is PVL text inside `IsisCube`."""
    pixels = ramp("float32") if pixels is None else pixels
    height, width = pixels.shape
    layout = f"Format = Tile\n TileSamples = {tile}\n TileLines = {tile}" if tile else "Format = BandSequential"
    label = f"""Object = IsisCube
  Object = Core
    StartByte = 4097
    {layout}
    Group = Dimensions
      Samples = {width}
      Lines = {height}
      Bands = 1
    End_Group
    Group = Pixels
      Type = {_ISIS_TYPES[str(pixels.dtype)]}
      ByteOrder = Lsb
      Base = 0.0
      Multiplier = 1.0
    End_Group
  End_Object
{groups}
End_Object
Object = Label
  Bytes = 4096
End_Object
End
"""
    data = _in_tiles(pixels, tile) if tile else pixels
    path.write_bytes(label.encode().ljust(4096, b"\0") + data.astype(pixels.dtype.newbyteorder("<")).tobytes())
    return path


NAC_GROUPS = """
  Group = Instrument
    SpacecraftName = "LUNAR RECONNAISSANCE ORBITER"
    InstrumentId = NACL
    TargetName = MOON
    StartTime = 2010-11-09T13:06:40.356
    LineExposureDuration = 0.3632 <ms>
    TemperatureFPA = 19.18 <degC>
    SpatialSumming = 2
  End_Group
  Group = Archive
    ProductId = M143947267LE
  End_Group
  Group = Radiometry
    RadiometricType = IOF
  End_Group
"""

GEOMETRY_GROUP = """
  Group = Geometry
    SampleResolution = 0.5 <meters/pixel>
    PhaseAngle = 70.5 <degrees>
    EmissionAngle = 1.5 <degrees>
    IncidenceAngle = 69.25 <degrees>
    SubSolarAzimuth = 200.0 <degrees>
    SubSolarGroundAzimuth = 88.0 <degrees>
  End_Group
"""

MAPPING_GROUP = """
  Group = Mapping
    ProjectionName = SimpleCylindrical
    TargetName = Moon
    EquatorialRadius = 1737400.0 <meters>
    PolarRadius = 1737400.0 <meters>
    LatitudeType = Planetocentric
    LongitudeDirection = PositiveEast
    LongitudeDomain = 360
    CenterLongitude = 0.0
    UpperLeftCornerX = 30000.0 <meters>
    UpperLeftCornerY = 60000.0 <meters>
    PixelResolution = 5.0 <meters/pixel>
    Scale = 6064.67 <pixels/degree>
  End_Group
"""


def _in_tiles(pixels: np.ndarray, tile: int) -> np.ndarray:
    down, across = -(-pixels.shape[0] // tile), -(-pixels.shape[1] // tile)
    full = np.zeros((down * tile, across * tile), pixels.dtype)
    full[: pixels.shape[0], : pixels.shape[1]] = pixels
    return full.reshape(down, tile, across, tile).swapaxes(1, 2)


# ---- PDS3 ------------------------------------------------------------------------------------------------


def pds3(path: Path, pixels: np.ndarray, header: str, image: str = "", start: int = 4096) -> Path:
    """An attached PDS3 image; `header` is the label without pointers, `image` more keywords of the IMAGE object."""
    height, width = pixels.shape
    kind = {"u": "LSB_UNSIGNED_INTEGER", "i": "LSB_INTEGER", "f": "PC_REAL"}[pixels.dtype.kind]
    label = f"""PDS_VERSION_ID = PDS3
RECORD_TYPE = FIXED_LENGTH
RECORD_BYTES = {width * pixels.dtype.itemsize}
FILE_RECORDS = {height + 1}
LABEL_RECORDS = 1
^IMAGE = {start + 1} <BYTES>
{header}
OBJECT = IMAGE
  LINES = {height}
  LINE_SAMPLES = {width}
  SAMPLE_BITS = {8 * pixels.dtype.itemsize}
  SAMPLE_TYPE = {kind}
{image}
END_OBJECT = IMAGE
END
"""
    assert len(label) <= start, f"label of {len(label)} bytes"
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    path.write_bytes(label.replace("\n", "\r\n").encode().ljust(start, b" ")[:start] + data)
    return path


_NAC_HEADER = """DATA_SET_ID = "{data_set}"
ORIGINAL_PRODUCT_ID = "nacl00015d79"
PRODUCT_ID = "{product}"
MISSION_NAME = "LUNAR RECONNAISSANCE ORBITER"
INSTRUMENT_HOST_ID = LRO
INSTRUMENT_NAME = "LUNAR RECONNAISSANCE ORBITER CAMERA"
INSTRUMENT_ID = LROC
START_TIME = 2009-07-25T20:01:02.123
PRODUCT_TYPE = {kind}
TARGET_NAME = MOON
FRAME_ID = {frame}
DATA_QUALITY_ID = "{errors}"
LRO:TEMPERATURE_SCS = 3.88 <degC>
LRO:TEMPERATURE_FPA = 17.73 <degC>
LRO:TEMPERATURE_FPA_RAW = 2115
CROSSTRACK_SUMMING = 2
BANDWIDTH = 300 <nm>
LINE_EXPOSURE_DURATION = 0.3376 <ms>
LRO:COMPAND_CODE = 3"""


def nac_edr(path: Path, pixels: np.ndarray | None = None, product: str = "M104318871LE", errors: int = 0) -> Path:
    """A raw LROC NAC image: 8 bit, companded, no constant for missing data; a 0 is a dark pixel."""
    pixels = ramp("uint8") if pixels is None else pixels
    header = _NAC_HEADER.format(
        data_set="LRO-L-LROC-2-EDR-V1.0", product=product, kind="EDR", frame="LEFT", errors=errors
    )
    return pds3(path, pixels, header, "  UNIT = RAW_INSTRUMENT_COUNT")


CDR_SCALE = 3.0518509475997199e-05


def nac_cdr(path: Path, pixels: np.ndarray | None = None, product: str = "M104318871RC") -> Path:
    """A calibrated LROC NAC image: int16, I/F by a scale, five special values."""
    pixels = ramp("int16") if pixels is None else pixels
    header = _NAC_HEADER.format(data_set="LRO-L-LROC-3-CDR-V1.0", product=product, kind="CDR", frame="RIGHT", errors=0)
    return pds3(
        path,
        pixels,
        header,
        f"""  UNIT = "Scaled I/F"
  SCALING_FACTOR = {CDR_SCALE!r}
  VALID_MINIMUM = -32752
  NULL = -32768
  LOW_REPR_SATURATION = -32767
  LOW_INSTR_SATURATION = -32766
  HIGH_INSTR_SATURATION = -32765
  HIGH_REPR_SATURATION = -32764""",
    )


def kaguya_tc(folder: Path, pixels: np.ndarray | None = None, north_up: bool = True) -> Path:
    """A Kaguya Terrain Camera strip: detached label, big-endian int16, four invalid values, angles and corners."""
    pixels = ramp("int16") if pixels is None else pixels
    top, bottom = (21.0, 20.0) if north_up else (20.0, 21.0)
    (folder / "TC1S2B0_01.img").write_bytes(pixels.astype(">i2").tobytes())
    label = folder / "TC1S2B0_01.lbl"
    label.write_text(
        f"""PDS_VERSION_ID = "PDS3"
RECORD_TYPE = "UNDEFINED"
^IMAGE = ("TC1S2B0_01.img", 1 <BYTES>)
DATA_SET_ID = "SLN-L-TC-3-S-LEVEL2B0-V1.0"
PRODUCT_ID = "TC1S2B0_01_05186N225E0040"
INSTRUMENT_ID = "TC1"
TARGET_NAME = "MOON"
LINE_EXPOSURE_DURATION = (3.25 <ms>)
UPPER_LEFT_LATITUDE = {top} <deg>
UPPER_LEFT_LONGITUDE = 3.0 <deg>
UPPER_RIGHT_LATITUDE = {top} <deg>
UPPER_RIGHT_LONGITUDE = 4.0 <deg>
LOWER_LEFT_LATITUDE = {bottom} <deg>
LOWER_LEFT_LONGITUDE = 3.0 <deg>
INCIDENCE_ANGLE = 65.012 <deg>
EMISSION_ANGLE = 15.912 <deg>
PHASE_ANGLE = 67.161 <deg>
SOLAR_AZIMUTH_ANGLE = 100.0 <deg>
OBJECT = IMAGE
  LINES = {pixels.shape[0]}
  LINE_SAMPLES = {pixels.shape[1]}
  SAMPLE_TYPE = MSB_INTEGER
  SAMPLE_BITS = 16
  UNIT = "W/m**2/micron/sr"
  SCALING_FACTOR = 0.013
  OFFSET = 0.0
  INVALID_TYPE = (SATURATION, MINUS, DUMMY_DEFECT, OTHER)
  INVALID_VALUE = (-20000, -21000, -22000, -23000)
END_OBJECT
END
"""
    )
    return label


# ---- PDS4 ------------------------------------------------------------------------------------------------


def pds4(
    path: Path, pixels: np.ndarray | None = None, discipline: str = "", specials: str = "", **options: Any
) -> Path:
    """An XML label and its raw file; `discipline` and `specials` are XML put into the areas of these names."""
    options = {"nodata": -32768, "VAR_TARGET": "Moon", "VAR_TARGET_TYPE": "Satellite"} | options
    options.setdefault("VAR_LOGICAL_IDENTIFIER", "urn:nasa:pds:lro-l-lroc-2-edr:lrolrc_0001_data:nac.m102600893le")
    geotiff(path, ramp("int16") if pixels is None else pixels, driver="PDS4", **options)
    text = path.read_text()
    text = text.replace("<Discipline_Area>", f"<Discipline_Area>{discipline}", 1)
    path.write_text(text.replace("<Special_Constants>", f"<Special_Constants>{specials}", 1))
    return path


PDS4_GEOMETRY = """
<geom:Geometry xmlns:geom="http://pds.nasa.gov/pds4/geom/v1"><geom:Illumination_Geometry>
  <geom:incidence_angle unit="deg">71.5</geom:incidence_angle>
  <geom:emission_angle unit="deg">2.25</geom:emission_angle>
  <geom:phase_angle unit="rad">1.25</geom:phase_angle>
  <geom:subsolar_azimuth unit="deg">350.0</geom:subsolar_azimuth>
</geom:Illumination_Geometry></geom:Geometry>
"""


# ---- broken ----------------------------------------------------------------------------------------------


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cut a file short, as a broken download leaves it."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def not_an_image(path: Path) -> Path:
    path.write_text("To whom it may concern: this is a letter.\n" * 40)
    return path
