"""Images that are too poor to learn from are known by their labels, and left out of a training that asks for it."""

from __future__ import annotations

import formats
import numpy as np
import pytest
import running

from lunar_processing.raster.image import open_image
from lunar_processing.raster.product import Product
from lunar_processing.raster.quality import Limits, faults

GOOD = Product("a", "label", incidence_deg=60.0, emission_deg=2.0, errors=0)


@pytest.mark.parametrize(
    ("facts", "pixel_size", "fault"),
    [
        ({"incidence_deg": 85.0}, 0.5, "incidence 85.0°, not 10–80°"),
        ({"incidence_deg": 3.0}, 0.5, "incidence 3.0°, not 10–80°"),
        ({"emission_deg": 31.0}, 0.5, "emission 31.0°, over 20°"),
        ({}, 5.0, "pixels of 5 m, over 2 m"),
        ({"errors": 0b1000}, 0.5, "telemetry packets missing"),
        ({"errors": 0b100_0000}, 0.5, "errors 64 that are not explained"),
    ],
)
def test_each_fault_is_told(facts, pixel_size, fault):
    assert faults(Product(**{**GOOD.__dict__, **facts}), pixel_size) == [fault]


def test_a_good_image_and_one_that_nothing_is_known_of_have_no_fault():
    assert faults(GOOD, 0.5) == faults(Product("b", "file name"), None) == []


def test_limits_are_a_choice():
    assert faults(GOOD, 0.5, Limits(incidence_deg=(20.0, 50.0))) == ["incidence 60.0°, not 20–50°"]


def test_several_faults_are_all_told():
    bad = Product("c", "label", incidence_deg=89.0, errors=0b11)
    assert len(faults(bad, 0.5)) == 3


def test_error_flags_are_read_from_the_label_of_a_nac_image(real_data):
    with open_image(real_data / "formats" / "nacl.img") as image:
        assert image.product.errors == 0


def test_a_training_can_leave_poor_images_out(tmp_path):
    ground = np.random.default_rng(0).integers(40, 200, (80, 80)).astype(np.uint8)
    for product, errors in (("M100000001LE", 0), ("M100000002LE", 0), ("M100000003LE", 8)):
        formats.nac_edr(tmp_path / f"{product}.IMG", ground, product, errors)
    ran = running.lunar("train", "anomalies", "--images", tmp_path, "--out", tmp_path / "model", "--steps", 1,
                        "--batch", 2, "--size", 32, "--quality", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    products = {name for some in ran.result["products"].values() for name in some}
    assert products == {"M100000001", "M100000002"}
    assert "M100000003LE.IMG is left out: telemetry packets missing." in ran.result["warnings"]
