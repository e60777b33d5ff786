"""Simulated scenes in QGIS: an image and its truth, in their place, from the same seed the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from qgis_helpers import Qgis

from lunar_processing.simulate.objects import OBJECTS
from lunar_processing.simulate.scenes import RECIPES


@pytest.fixture(scope="module")
def qgis(tmp_path_factory):
    return Qgis.installed(tmp_path_factory.mktemp("qgis"))


def test_qgis_offers_the_recipes_and_things_that_the_engine_knows(qgis):
    told = qgis.script("""
        algorithm = QgsApplication.processingRegistry().algorithmById("lunar:simulatescene")
        tell({p.name(): p.options() for p in algorithm.parameterDefinitions() if p.type() == "enum"})
    """)
    assert told["RECIPE"] == list(RECIPES)
    assert told["OBJECTS"] == list(OBJECTS)


def test_a_scene_with_its_truth_lies_where_it_was_asked_for(qgis, tmp_path):
    folder = tmp_path / "scènes"
    run = qgis.run(
        "lunar:simulatescene",
        FOLDER=folder,
        SIZE=128,
        SEED=7,
        OBJECTS="pit",
        PIXEL_SIZE=0.75,
        INCIDENCE=60,
        SUN_AZIMUTH=120,
        LONGITUDE=45,
        LATITUDE=-88,
        DTYPE="uint16",
        CONTACT_SHEET=True,
    )
    assert run.returncode == 0, run.log
    report = json.loads(run.results["REPORT"])
    assert (folder / "contact_sheet.png").is_file()
    with rasterio.open(report["outputs"]["image"]) as image, rasterio.open(report["outputs"]["objects"]) as things:
        assert image.dtypes == ("uint16",)
        assert things.transform == image.transform
        kinds = set(np.unique(things.read(1))) - {0}
        assert kinds <= {list(OBJECTS).index("pit") + 1}, "nothing but what was asked for"
        assert bool(kinds) == (run.results["OBJECTS_COUNT"] > 0)
    counts, latitudes = qgis.script(
        """
        counts = {}
        for name in ("rocks", "craters", "objects"):
            layer = QgsVectorLayer(f"{sys.argv[1]}|layername={name}")
            assert layer.isValid() and layer.crs().isValid(), name
            counts[name] = layer.featureCount()
        craters = QgsVectorLayer(f"{sys.argv[1]}|layername=craters")
        tell([counts, [f["lat"] for f in craters.getFeatures()]])
        """,
        report["outputs"]["layers"],
    )
    assert counts == {name: run.results[f"{name.upper()}_COUNT"] for name in counts}
    assert latitudes == pytest.approx([-88] * len(latitudes), abs=0.01)


def test_what_is_simulated_is_loaded_as_image_and_truth(qgis, tmp_path):
    names = qgis.script(
        """
        import processing
        from qgis.core import QgsProcessingContext, QgsProcessingFeedback, QgsProject
        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        processing.run("lunar:simulatescene", {"FOLDER": sys.argv[1], "SIZE": 64}, context=context)
        tell(sorted(d.name for d in context.layersToLoadOnCompletion().values()))
        """,
        tmp_path / "out",
    )
    assert names == ["Simulated image", "True craters", "True objects", "True rocks"]


def test_the_same_seed_gives_the_same_scene(qgis, tmp_path):
    for name in ("a", "b"):
        assert qgis.run("lunar:simulatescene", FOLDER=tmp_path / name, SIZE=64, SEED=3).returncode == 0
    images = [rasterio.open(next((tmp_path / name).glob("nac_?????.tif"))).read(1) for name in ("a", "b")]
    np.testing.assert_array_equal(*images)


def test_a_place_that_a_map_does_not_reach_is_refused(qgis, tmp_path):
    run = qgis.run("lunar:simulatescene", FOLDER=tmp_path / "out", SIZE=64, CRS="EPSG:4326")
    assert run.returncode != 0
    assert "Earth" in run.log
