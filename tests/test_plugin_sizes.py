"""Rock sizes in QGIS: what the command line says, from layers, into a folder and onto the map."""

from __future__ import annotations

import json

import numpy as np
import pytest
from qgis_helpers import Qgis
from test_size_frequency import Site, diameters

from lunar_processing.vector import target, write_layers


@pytest.fixture(scope="module")
def qgis(tmp_path_factory):
    return Qgis.installed(tmp_path_factory.mktemp("qgis"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orte") / "Süd pol"
    folder.mkdir()
    return Site().write(folder / "blöcke.gpkg")


def test_the_sizes_of_a_layer_of_rocks(qgis, site, tmp_path):
    folder = tmp_path / "Größen"
    run = qgis.run("lunar:rocksizefrequency", INPUT=f"{site}|layername=rocks", FOLDER=folder, CELL=20)
    assert run.returncode == 0, run.log
    d = diameters(400, seed=2)
    large = d[d >= 2]
    assert run.results["ROCK_COUNT"] == len(large)
    assert run.results["EXPONENT"] == pytest.approx(len(large) / np.log(large / 2).sum())
    assert run.results["FIGURE"] == str(folder / "blöcke_sizes.png")
    report = json.loads(run.results["REPORT"])
    assert report["area"]["value"] == pytest.approx(300.0**2, rel=1e-3)
    assert all((folder / name).is_file() for name in ("blöcke_sizes.csv", "blöcke.scc", "blöcke_CRATER.shp"))
    assert (folder / "blöcke_abundance.qml").is_file()


def test_every_parameter_reaches_the_engine(qgis, site, tmp_path):
    write_layers([(Site(side=200.0).area(), target(tmp_path / "part.gpkg"))])
    run = qgis.run(
        "lunar:rocksizefrequency",
        INPUT=f"{site}|layername=rocks",
        AREA=tmp_path / "part.gpkg",
        DIAMETER_FIELD="diam_eq_px",
        UNIT="px",
        MIN_DIAMETER=3,
        MAX_DIAMETER=30,
        EDGE="count",
        PIXEL_SIZE=0.6,
        BODY="Moon",
        BINS=5,
        CELL=50,
        CONFIDENCE=0.9,
        FOLDER=tmp_path / "out",
    )
    assert run.returncode == 0, run.log
    report = json.loads(run.results["REPORT"])
    assert report["min_diameter"]["value"] == 3
    assert report["power_law"]["d_max"] == 30
    assert report["confidence"] == 0.9
    assert report["counts"]["outside"] > 0
    fits = json.loads((tmp_path / "out" / "blöcke_sizes.json").read_text(encoding="utf-8"))
    said = fits["provenance"]["parameters"]
    assert {k: said[k] for k in ("diameter_field", "unit", "edge", "pixel_size", "body", "bins", "cell")} == {
        "diameter_field": "diam_eq_px",
        "unit": "px",
        "edge": "count",
        "pixel_size": 0.6,
        "body": "Moon",
        "bins": 5,
        "cell": 50,
    }
    lost = qgis.run("lunar:rocksizefrequency", INPUT=f"{site}|layername=rocks", AREA_M2=5e4, FOLDER=tmp_path / "number")
    assert lost.returncode == 0
    assert json.loads(lost.results["REPORT"])["area"]["value"] == 50_000
    assert "ABUNDANCE" not in lost.results


def test_layers_of_a_project_are_taken_as_saved_and_the_raster_is_loaded(qgis, site, tmp_path):
    told = qgis.script(
        """
        import processing
        from qgis.core import QgsProcessingContext, QgsProject
        source, folder = sys.argv[1:]
        rocks = QgsVectorLayer(source + "|layername=rocks", "rocks", "ogr")
        area = QgsVectorLayer(source + "|layername=searched_area", "area", "ogr")
        QgsProject.instance().addMapLayers([rocks, area])
        answer = {"refused": []}
        def run(**more):
            context = QgsProcessingContext()
            context.setProject(QgsProject.instance())
            parameters = {"INPUT": rocks, "AREA": area, "FOLDER": folder, **more}
            results = processing.run("lunar:rocksizefrequency", parameters, context=context)
            return [d.name for d in context.layersToLoadOnCompletion().values()], results
        answer["loaded"], results = run()
        answer["number"] = results["ROCK_COUNT"]
        answer["not"], _ = run(LOAD=False)
        memory = QgsVectorLayer("Point?crs=IAU_2015:30135&field=diam_eq_m:double", "sketch", "memory")
        for more in ({"INPUT": memory}, {"AREA_M2": 3.0}):
            try:
                run(**more)
            except QgsProcessingException as error:
                answer["refused"].append(str(error))
        rocks.setSubsetString("diam_eq_m > 3")
        try:
            run()
        except QgsProcessingException as error:
            answer["refused"].append(str(error))
        tell(answer)
        """,
        site,
        tmp_path / "out",
    )
    assert told["loaded"] == ["Rock abundance – blöcke"]
    assert told["not"] == []
    assert told["number"] == (diameters(400, seed=2) >= 2).sum()
    for error, why in zip(told["refused"], ("no file of its own", "given twice", "has a filter")):
        assert why in error
        assert "Cure" in error
    assert len(told["refused"]) == 3


def test_errors_of_the_engine_come_with_their_cure(qgis, tmp_path):
    alone = tmp_path / "alone.gpkg"
    write_layers([(Site(n=20).rocks(), target(alone))])
    run = qgis.run("lunar:rocksizefrequency", INPUT=alone, FOLDER=tmp_path / "out")
    assert run.returncode != 0
    assert "searched area is not known" in run.log
    assert "--area-layer" in run.log
