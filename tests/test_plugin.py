"""The plugin as a user meets it: real QGIS, real qgis_process, the packaged plugin, a profile of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import moon
import numpy as np
import pytest
import rasterio
from affine import Affine
from qgis_helpers import Qgis, children_of, left_in

SUN = 300.0
EXAMPLE = "lunar:Enhance shadow, then find rocks"
TOOLS = ("lunar:enhancepsr", "lunar:scoreanomalies", "lunar:segmentrocks")


@pytest.fixture(scope="module")
def qgis(tmp_path_factory):
    return Qgis.installed(tmp_path_factory.mktemp("qgis"))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A small view of the Moon's south pole, with a nodata border and a name that is hard on programs."""
    folder = tmp_path_factory.mktemp("bilder") / "Süd pol – 1"
    folder.mkdir()
    view = moon.scene(420, 420, seed=3, sun_azimuth=SUN, sun_elevation=25, dark=True)
    pixels = np.pad(np.maximum(moon.digitise(view.image, bits=16), 1), ((0, 0), (0, 40)))
    return _write(folder / "M104318871 (Ü).tif", pixels, nodata=0, crs="IAU_2015:30135")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An image that takes seconds, to be stopped in the middle."""
    noise = np.random.default_rng(1).integers(20, 200, (6000, 4000), np.uint8)
    return _write(tmp_path_factory.mktemp("large") / "large.tif", noise, crs="IAU_2015:30135", tiled=True)


@pytest.fixture(scope="module")
def results(qgis, image, tmp_path_factory):
    """One run of each tool with every output, through qgis_process."""
    folder = tmp_path_factory.mktemp("ergebnisse") / "mit Leer zeichen"
    folder.mkdir()
    runs = {
        "lunar:enhancepsr": qgis.run("lunar:enhancepsr", INPUT=image, OUTPUT=folder / "enhanced.tif"),
        "lunar:scoreanomalies": qgis.run(
            "lunar:scoreanomalies",
            INPUT=image,
            OUTPUT=folder / "anomalies.gpkg",
            SCORES=folder / "scores.tif",
            HEAT=folder / "heat.tif",
            CHIPS=folder / "chips",
            TOP=7,
        ),
        "lunar:segmentrocks": qgis.run(
            "lunar:segmentrocks",
            INPUT=image,
            OUTPUT=folder / "rocks.gpkg",
            OUTLINES=folder / "outlines.fgb",
            AREA=folder / "area.shp",
            MASK=folder / "mask.tif",
            SUN_AZIMUTH=SUN,
        ),
    }
    # QGIS itself leaves files beside rasters that it shows: look before it does.
    return folder, runs, left_in(folder)


# -- what there is ---------------------------------------------------------------------------------------------------


def test_the_provider_and_its_algorithms_are_listed(qgis):
    told = qgis.process("--json", "list")
    lunar = json.loads(told.stdout)["providers"]["lunar"]["algorithms"]
    others = ("lunar:rocksizefrequency", "lunar:simulatescene", "lunar:batch", "lunar:setupengine", EXAMPLE)
    assert sorted(lunar) == sorted([*TOOLS, *others])
    assert {name: lunar[name]["group"] for name in lunar} == {
        **dict.fromkeys(TOOLS, "Images"),
        "lunar:rocksizefrequency": "Rocks",
        "lunar:simulatescene": "Simulation",
        "lunar:batch": "Batch",
        "lunar:setupengine": "Engine",
        EXAMPLE: "Examples",
    }


def test_help_explains_every_parameter_and_every_output(qgis):
    told = qgis.script("""
        answer = {}
        for algorithm in QgsApplication.processingRegistry().providerById("lunar").algorithms():
            answer[algorithm.id()] = {
                "help": algorithm.shortHelpString(),
                "parameters": [
                    (p.name(), p.description(), p.help(), bool(p.flags() & p.Flag.FlagAdvanced), p.defaultValue())
                    for p in algorithm.parameterDefinitions()
                ],
                "icon": not algorithm.icon().isNull() and os.path.isfile(algorithm.svgIconPath()),
            }
        tell(answer)
    """)
    for algorithm, facts in told.items():
        if algorithm == EXAMPLE:  # QGIS itself draws its icon and lays out its help
            assert "WARNING" in facts["help"]
            assert "rocks:Rock candidates" in [name for name, *_ in facts["parameters"]]
            continue
        assert facts["icon"], algorithm
        for name, title, text, _, _ in facts["parameters"]:
            assert len(text) > 20, f"{algorithm} {name} has no help"
            assert f"<b>{title}</b>: {text}" in facts["help"]
    for algorithm in TOOLS:
        advanced = {name for name, _, _, is_advanced, _ in told[algorithm]["parameters"] if is_advanced}
        assert {"DEVICE", "BODY", "PIXEL_SIZE", "MODEL_FOLDER"} <= advanced
        assert {"INPUT", "MODEL", "OUTPUT"}.isdisjoint(advanced)
        assert ("SUN_AZIMUTH" in advanced) == (algorithm != "lunar:segmentrocks")


def test_help_explains_every_field_and_band_that_is_written(qgis, results):
    folder, _, _ = results
    told = qgis.script(
        """
        folder, answer = sys.argv[1], {}
        for tool, files in {
            "enhancepsr": ["enhanced.tif"],
            "scoreanomalies": ["anomalies.gpkg", "scores.tif", "heat.tif"],
            "segmentrocks": ["rocks.gpkg", "outlines.fgb", "area.shp"],
        }.items():
            text = QgsApplication.processingRegistry().algorithmById("lunar:" + tool).shortHelpString()
            for name in files:
                path = os.path.join(folder, name)
                if name.endswith(".tif"):
                    layer = QgsRasterLayer(path)
                    words = [layer.bandName(b).split(": ")[1].split(" ")[0] for b in range(1, layer.bandCount() + 1)]
                else:
                    words = [n for n in QgsVectorLayer(path).fields().names() if n != "fid"]
                answer[name] = {"words": words, "help": text}
        tell(answer)
        """,
        folder,
    )
    for name, facts in told.items():
        explained = [
            w for part in facts["help"].split("<b>")[1:] for w in part.split("</b>")[0].replace(",", " ").split()
        ]
        assert facts["words"], name
        assert set(facts["words"]) <= set(explained), name


def test_the_choices_are_those_of_the_engine(qgis):
    """The plugin tells the models without starting the engine: both must tell the same."""
    told = qgis.script("""
        from lunar_qgis_plugin import engine, models
        from lunar_qgis_plugin.algorithms.base import BODIES
        said = json.loads(engine.ask(["models", "--json"], engine.find_python()[0]).stdout)["models"]
        tell({"plugin": {task: list(models.choices(task)) for task in models.CLASSICAL}, "engine": said,
              "bodies": BODIES})
    """)
    for task, names in told["plugin"].items():
        assert set(names) == {m["id"] for m in told["engine"] if m["task"] == task}
        assert names[0] == next(m["id"] for m in told["engine"] if m["task"] == task and m["default"])
    from lunar_processing.planet import BODIES

    assert set(told["bodies"]) == {"auto", *BODIES}


# -- what comes out --------------------------------------------------------------------------------------------------


def test_each_tool_runs_and_says_what_it_made(results):
    folder, runs, written = results
    for run in runs.values():
        assert run.returncode == 0, run.log
        assert json.loads(str(run.results["REPORT"]))["device"] in ("cpu", "cuda", "mps")
    assert runs["lunar:scoreanomalies"].results["ANOMALY_COUNT"] == 7
    assert len(left_in(folder / "chips")) == 7
    assert runs["lunar:segmentrocks"].results["ROCK_COUNT"] > 3
    assert runs["lunar:segmentrocks"].results["OUTPUT"] == f"{folder / 'rocks.gpkg'}|layername=rocks"
    wanted = {"enhanced.tif", "anomalies.gpkg", "scores.tif", "heat.tif", "rocks.gpkg", "outlines.fgb", "mask.tif"}
    assert wanted | {"area.shp", "area.dbf", "area.shx", "area.prj"} <= set(written)
    assert not [n for n in written if "partial" in n or n.endswith(".aux.xml")]


def test_the_example_chains_two_tools_and_warns_of_it(qgis, image, tmp_path):
    """A graphical model, as the designer draws them and every QGIS since 3.22 reads them."""
    run = qgis.run(
        EXAMPLE,
        image=image,
        sun_azimuth=SUN,
        **{
            "enhance:Enhanced image": tmp_path / "enhanced.tif",
            "rocks:Rock candidates": tmp_path / "rocks.gpkg",
            "rocks:Searched area": tmp_path / "area.gpkg",
        },
    )
    assert run.returncode == 0, run.log
    assert "--model" not in run.log, "the best model is the engine's choice"
    assert {"enhanced.tif", "rocks.gpkg", "area.gpkg"} <= set(left_in(tmp_path))
    assert "candidates, not a count" in run.log, "the model says it"
    assert "enhanced.tif is an enhanced image: what is found on it are candidates" in run.log, "and the engine"
    with sqlite3.connect(tmp_path / "rocks.gpkg") as database:
        (record,) = database.execute("SELECT metadata FROM gpkg_metadata WHERE metadata LIKE '%candidates%'").fetchone()
    assert "enhanced image" in record, "whoever opens the rocks later is told, too"


def test_results_lie_on_the_moon_and_on_the_image(qgis, image, results):
    folder, _, _ = results
    told = qgis.script(
        """
        image = QgsRasterLayer(sys.argv[1])
        answer = {}
        for name in sys.argv[3:]:
            path = os.path.join(sys.argv[2], name)
            layer = QgsRasterLayer(path) if name.endswith(".tif") else QgsVectorLayer(path)
            inside = image.extent().buffered(100).contains(layer.extent())
            answer[name] = [layer.isValid(), layer.crs().isValid(), layer.crs().toProj(), inside]
        tell(answer)
        """,
        image,
        folder,
        *("enhanced.tif", "mask.tif", "scores.tif", "anomalies.gpkg", "rocks.gpkg", "outlines.fgb", "area.shp"),
    )
    for name, (valid, crs_valid, proj, inside) in told.items():
        assert valid, name
        assert crs_valid, name
        assert "+lat_0=-90" in proj, name
        assert "+R=1737400" in proj, name
        assert inside, name


def test_what_the_engine_doubts_is_in_the_log(qgis, image, tmp_path):
    run = qgis.run("lunar:segmentrocks", INPUT=image, OUTPUT=tmp_path / "rocks.gpkg")
    assert run.returncode == 0
    assert "estimated from the image" in run.log  # the sun, which nobody told
    assert "--sun-azimuth" in run.log


def test_json_output_is_json_only(results):
    for run in results[1].values():
        assert json.loads(run.stdout)["algorithm_details"]["id"] in TOOLS


def test_a_layer_of_a_geopackage_is_added_beside_others(qgis, image, tmp_path):
    """QGIS names such a destination in its own way; the layers that are there must survive."""
    package = tmp_path / "mein Paket.gpkg"
    assert qgis.run("lunar:scoreanomalies", INPUT=image, OUTPUT=package, TOP=3).returncode == 0
    before = _table(package, "anomalies")
    run = qgis.run(
        "lunar:segmentrocks",
        INPUT=image,
        OUTPUT=f"ogr:dbname='{package}' table=\"Felsen\" (geom)",
        AREA=f"ogr:dbname='{package}' table=\"area\" (geom)",
        SUN_AZIMUTH=SUN,
    )
    assert run.returncode == 0, run.log
    assert run.results["OUTPUT"] == f"{package}|layername=Felsen"
    assert _table(package, "anomalies") == before
    assert len(_table(package, "Felsen")) == run.results["ROCK_COUNT"]
    assert len(_table(package, "area")) == 1
    # A second run replaces its own layer only.
    again = qgis.run(
        "lunar:segmentrocks",
        INPUT=image,
        OUTPUT=f"ogr:dbname='{package}' table=\"Felsen\" (geom)",
        SUN_AZIMUTH=SUN,
        MIN_DIAMETER=6,
    )
    assert 0 < again.results["ROCK_COUNT"] < run.results["ROCK_COUNT"]
    assert len(_table(package, "Felsen")) == again.results["ROCK_COUNT"]
    assert len(_table(package, "area")) == 1


def test_temporary_layers_come_back_named_and_styled(qgis, image):
    told = qgis.script(
        """
        image, sun = sys.argv[1], float(sys.argv[2])
        temporary = QgsProcessing.TEMPORARY_OUTPUT
        for algorithm, more in (
            ("lunar:scoreanomalies", {"HEAT": temporary}),  # the same tool, the same style, again
            ("lunar:scoreanomalies", {"SCORES": temporary, "HEAT": temporary}),
            ("lunar:enhancepsr", {}),
            ("lunar:segmentrocks", {"AREA": temporary, "OUTLINES": temporary, "MASK": temporary, "SUN_AZIMUTH": sun}),
        ):
            processing.runAndLoadResults(algorithm, {"INPUT": image, "OUTPUT": temporary, **more}, feedback=Log())
        answer = {}
        for layer in QgsProject.instance().mapLayers().values():
            facts = {"kind": layer.renderer().type(), "crs": layer.crs().isValid(), "source": layer.source()}
            if isinstance(layer, QgsVectorLayer):
                facts |= {"aliases": layer.attributeAliases(), "labels": layer.labelsEnabled()}
                parts = [p for s in layer.renderer().symbols(QgsRenderContext()) for p in s.symbolLayers()]
                if layer.geometryType() == QgsWkbTypes.GeometryType.PointGeometry:
                    sizes = [p.dataDefinedProperties().property(p.Property.PropertySize) for p in parts]
                    facts["sizes"] = [size.asExpression() for size in sizes]
                    metres = QgsUnitTypes.RenderUnit.RenderMetersInMapUnits
                    facts["metres"] = all(p.sizeUnit() == metres for p in parts)
            elif layer.renderer().type() == "singlebandpseudocolor":
                facts["range"] = [layer.renderer().classificationMin(), layer.renderer().classificationMax()]
                facts["items"] = [i.value for i in layer.renderer().shader().rasterShaderFunction().colorRampItemList()]
                facts["bands"] = {}
                for title in layer.styleManager().styles():
                    layer.styleManager().setCurrentStyle(title)
                    facts["bands"][title] = layer.renderer().band()
                layer.styleManager().setCurrentStyle("default")
            answer[layer.name()] = facts
        tell(answer)
        """,
        image,
        SUN,
    )
    stem = image.stem
    assert {name: facts["kind"] for name, facts in told.items()} == {
        f"Enhanced image – {stem}": "singlebandpseudocolor",
        f"Anomalies – {stem}": "graduatedSymbol",
        f"Anomaly scores – {stem}": "singlebandpseudocolor",
        f"Anomaly heat – {stem}": "singlebandpseudocolor",
        f"Rocks – {stem}": "RuleRenderer",
        f"Rock outlines – {stem}": "singleSymbol",
        f"Searched area – {stem}": "singleSymbol",
        f"Rock mask – {stem}": "paletted",
    }
    assert all(facts["crs"] for facts in told.values())
    rocks, anomalies = told[f"Rocks – {stem}"], told[f"Anomalies – {stem}"]
    assert rocks["aliases"]["diam_eq_m"] == "Diameter (m)"
    assert (set(rocks["sizes"]), rocks["metres"]) == ({'"diam_eq_m"'}, True)
    assert (set(anomalies["sizes"]), anomalies["metres"]) == ({'"window_m"'}, True)
    assert anomalies["labels"]
    with rasterio.open(told[f"Enhanced image – {stem}"]["source"]) as enhanced:
        pixels, flags = enhanced.read(1), enhanced.read(3).astype(int)
    shadow, sunlit = pixels[np.isfinite(pixels) & (flags & 4 == 0)], pixels[np.isfinite(pixels) & (flags & 4 > 0)]
    (darkest, brightest_shadow), brightest = np.percentile(shadow, (2, 98)), np.percentile(sunlit, 98)
    tones = told[f"Enhanced image – {stem}"]["items"]  # black, mid-grey, white: half of the greys are for the shadow
    assert tones[:2] == pytest.approx([darkest, brightest_shadow], abs=0.05 * (brightest_shadow - darkest))
    assert tones[2] == pytest.approx(brightest, rel=0.05)
    assert told[f"Enhanced image – {stem}"]["bands"] == {"default": 1, "Sigma": 2, "Resolvable size": 4}
    scores = told[f"Anomaly scores – {stem}"]
    assert scores["range"][0] < scores["range"][1]
    assert [scores["items"][0], scores["items"][-1]] == pytest.approx(scores["range"])


def test_without_a_coordinate_system_sizes_are_drawn_in_pixels(qgis, image, tmp_path):
    with rasterio.open(image) as source:
        plain = _write(tmp_path / "plain.tif", source.read(1), nodata=0)
    told = qgis.script(
        """
        image, sun = sys.argv[1], float(sys.argv[2])
        processing.runAndLoadResults(
            "lunar:segmentrocks", {"INPUT": image, "OUTPUT": "TEMPORARY_OUTPUT", "SUN_AZIMUTH": sun}, feedback=Log())
        (layer,) = QgsProject.instance().mapLayers().values()
        part = layer.renderer().symbols(QgsRenderContext())[0].symbolLayer(0)
        first = next(layer.getFeatures())
        point = first.geometry().asPoint()
        tell({"size": part.dataDefinedProperties().property(part.Property.PropertySize).asExpression(),
              "map_units": part.sizeUnit() == QgsUnitTypes.RenderUnit.RenderMapUnits, 
              "place": [point.x(), point.y()], "sample_line": [first["sample"], first["line"]],
              "diam_eq_px": first["diam_eq_px"], "metres": str(first["diam_eq_m"])})
        """,
        plain,
        SUN,
    )
    assert told["size"].strip('"') == "diam_eq_px"
    assert told["map_units"]
    assert told["place"] == pytest.approx([told["sample_line"][0], -told["sample_line"][1]])
    assert told["diam_eq_px"] > 1
    assert told["metres"] == "NULL"


def test_styles_lie_beside_the_files_for_later(qgis, image, results):
    folder, _, _ = results
    for name in ("enhanced", "anomalies", "scores", "rocks", "outlines", "area", "mask"):
        assert (folder / f"{name}.qml").is_file(), name
    kinds = qgis.script(
        """
        scores = QgsRasterLayer(sys.argv[1] + "/scores.tif")
        rocks = QgsVectorLayer(sys.argv[1] + "/rocks.gpkg|layername=rocks")
        tell([scores.renderer().type(), rocks.renderer().type()])
        """,
        folder,
    )
    assert kinds == ["singlebandpseudocolor", "RuleRenderer"]


def test_a_style_that_the_user_saved_is_kept(qgis, image, tmp_path):
    own = tmp_path / "view.qml"
    own.write_text("<qgis><!-- mine --></qgis>")
    assert qgis.run("lunar:enhancepsr", INPUT=image, OUTPUT=tmp_path / "view.tif", MODEL="stretch").returncode == 0
    assert own.read_text() == "<qgis><!-- mine --></qgis>"


# -- models ----------------------------------------------------------------------------------------------------------


def test_a_chosen_method_and_an_unknown_one(qgis, image, tmp_path):
    run = qgis.run("lunar:enhancepsr", INPUT=image, OUTPUT=tmp_path / "a.tif", MODEL="clahe", FORMAT="cog")
    assert json.loads(str(run.results["REPORT"]))["model"] == "clahe"
    with rasterio.open(tmp_path / "a.tif") as made:
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    refused = qgis.process(
        "run", "lunar:enhancepsr", "--", f"INPUT={image}", f"OUTPUT={tmp_path / 'b.tif'}", "MODEL=no-such"
    )
    assert refused.returncode != 0
    assert "There is no model “no-such”" in refused.stdout + refused.stderr
    assert "clahe" in refused.stdout + refused.stderr
    assert not (tmp_path / "b.tif").exists()


def test_networks_in_model_folders_are_offered_and_damaged_ones_refused(qgis, image, tmp_path):
    pack = tmp_path / "models" / "deep-shadow"
    pack.mkdir(parents=True)
    card = {"format": 1, "id": "deep-shadow", "task": "enhance", "family": "convnet", "sha256": "0" * 64}
    (pack / "model.json").write_text(json.dumps({**card, "title": "A network"}))
    (pack / "weights.safetensors").write_bytes(b"damaged")
    with_models = qgis.but(LUNAR_MODELS=str(tmp_path / "models"))
    help_text = with_models.process("help", "lunar:enhancepsr").stdout
    assert "deep-shadow" in help_text
    assert "A network" in help_text
    for model in ("deep-shadow", pack):  # by its id, and by its folder
        run = with_models.run("lunar:enhancepsr", INPUT=image, OUTPUT=tmp_path / "a.tif", MODEL=model)
        assert run.returncode != 0
        assert "damaged" in run.log
    assert left_in(tmp_path) == ["models"]


# -- when it goes wrong ----------------------------------------------------------------------------------------------


def test_cancel_within_two_seconds_leaves_nothing(qgis, large, tmp_path):
    run = qgis.start("lunar:enhancepsr", INPUT=large, OUTPUT=tmp_path / "enhanced.tif")
    (engine,) = _wait_for_work(run, tmp_path)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    told, _ = run.communicate(timeout=30)
    assert time.monotonic() - began < 2
    assert "Cancelled. Nothing was written." in told
    assert run.returncode != 0
    assert left_in(tmp_path) == []
    assert not Path(f"/proc/{engine}").exists()


def test_cancel_in_a_window_thread_leaves_nothing(qgis, large, tmp_path):
    """As the dialog of a tool does it: the algorithm in a thread, cancel from outside."""
    told = qgis.script(
        """
        import threading, time
        feedback, outcome, folder = Log(), {}, sys.argv[2]
        algorithm = QgsApplication.processingRegistry().algorithmById("lunar:enhancepsr").create()
        context = QgsProcessingContext()
        parameters = {"INPUT": QgsRasterLayer(sys.argv[1]), "OUTPUT": os.path.join(folder, "e.tif")}
        assert algorithm.prepare(parameters, context, feedback)
        def run():
            try:
                algorithm.runPrepared(parameters, context, feedback)
            except QgsProcessingException as error:
                outcome["error"] = str(error)
        thread = threading.Thread(target=run)
        thread.start()
        while not any("partial" in name for name in os.listdir(folder)):
            time.sleep(0.02)
        began = time.monotonic()
        feedback.cancel()
        thread.join()
        tell({**outcome, "seconds": time.monotonic() - began, "left": os.listdir(folder)})
        """,
        large,
        tmp_path,
    )
    assert told["error"] == "Cancelled. Nothing was written."
    assert told["seconds"] < 2
    assert told["left"] == []


def test_an_engine_killed_in_the_middle_is_an_error_that_says_so(qgis, large, tmp_path):
    run = qgis.start("lunar:enhancepsr", INPUT=large, OUTPUT=tmp_path / "enhanced.tif")
    (engine,) = _wait_for_work(run, tmp_path)
    os.kill(engine, signal.SIGKILL)
    told, _ = run.communicate(timeout=30)
    assert run.returncode != 0
    assert "The engine was killed in the middle (SIGKILL)" in told
    assert "memory" in told
    assert left_in(tmp_path) == []


def test_the_engine_ends_when_qgis_is_killed(qgis, large, tmp_path):
    run = qgis.start("lunar:enhancepsr", INPUT=large, OUTPUT=tmp_path / "enhanced.tif")
    (engine,) = _wait_for_work(run, tmp_path)
    run.kill()
    run.communicate()
    for _ in range(40):
        if not Path(f"/proc/{engine}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{engine}").exists()
    assert left_in(tmp_path) == []


def test_a_stubborn_command_is_ended_all_the_same(qgis):
    """One that ignores its closed input and the order to end, and talks while it does."""
    told = qgis.script("""
        import threading, time
        from lunar_qgis_plugin import engine
        stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(7, flush=True); time.sleep(60)"
        feedback, heard = Log(), []
        def hear(line):
            heard.append(line)
            feedback.cancel()
            heard.append(time.monotonic())
        try:
            engine.run_process([sys.executable, "-c", stubborn], feedback, hear)
            error = ""
        except QgsProcessingException as problem:
            error = str(problem)
        tell({"error": error, "heard": heard[0], "seconds": time.monotonic() - heard[1]})
    """)
    assert told["heard"] == "7"
    assert told["error"].startswith("Cancelled")
    assert told["seconds"] < 2


def test_an_engine_that_ends_without_a_result_has_failed(qgis, image, tmp_path):
    """The exit code alone is not believed. The engine here is the packaged one, broken on purpose."""
    broken = Qgis.installed(tmp_path)
    main = broken.plugin / "engine" / "lunar_processing" / "__main__.py"
    main.write_text("import sys\nprint('not JSON')\nprint('last words', file=sys.stderr)\n")
    run = broken.run("lunar:enhancepsr", INPUT=image, OUTPUT=tmp_path / "e.tif")
    assert run.returncode != 0
    assert "The engine ended without a result" in run.log
    assert "last words" in run.log


def test_without_an_engine_the_error_says_how_to_set_it_up(qgis, image, tmp_path):
    for python, words in (
        ("", "The engine is not set up yet"),
        ("/no/such/python", "the environment variable LUNAR_PYTHON names /no/such/python, which is not there"),
    ):
        run = qgis.but(LUNAR_PYTHON=python).run("lunar:enhancepsr", INPUT=image, OUTPUT=tmp_path / "e.tif")
        assert run.returncode != 0
        assert words in run.log
        assert "Set up the engine…" in run.log
    assert left_in(tmp_path) == []


def test_a_python_without_the_engines_packages_is_named(qgis, image, tmp_path):
    import venv

    venv.create(tmp_path / "bare")
    bare = tmp_path / "bare" / "bin" / "python"
    run = qgis.but(LUNAR_PYTHON=str(bare)).run("lunar:enhancepsr", INPUT=image, OUTPUT=tmp_path / "e.tif")
    assert run.returncode != 0
    assert str(bare) in run.log
    assert "numpy" in run.log
    assert "Set up the engine…" in run.log


def test_errors_of_the_engine_come_with_their_cure(qgis, tmp_path):
    earth = _write(tmp_path / "earth.tif", np.ones((50, 50), np.uint8), crs="EPSG:32633")
    run = qgis.run("lunar:enhancepsr", INPUT=earth, OUTPUT=tmp_path / "e.tif")
    assert run.returncode != 0
    assert "Earth" in run.log
    assert "Cure:" in run.log
    assert not [name for name in left_in(tmp_path) if name.startswith((".", "e."))]


def test_an_image_is_never_its_own_output(qgis, tmp_path):
    path = _write(tmp_path / "a.tif", np.ones((50, 50), np.uint8), crs="IAU_2015:30135")
    before = path.read_bytes()
    assert qgis.run("lunar:enhancepsr", INPUT=path, OUTPUT=path).returncode != 0
    assert path.read_bytes() == before


def test_a_layer_that_is_no_file_is_refused(qgis, tmp_path):
    told = qgis.script("""
        web = QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/{z}/{x}/{y}.png&zmax=1&zmin=0", "web", "wms")
        QgsProject.instance().addMapLayer(web)
        try:
            processing.run("lunar:enhancepsr", {"INPUT": web, "OUTPUT": "TEMPORARY_OUTPUT"}, feedback=Log())
            tell("it ran")
        except QgsProcessingException as error:
            tell(str(error))
    """)
    assert "comes from “wms”, not from a file" in told
    assert "GeoTIFF" in told


def test_geojson_is_refused_before_any_work(qgis, image, tmp_path):
    run = qgis.process("run", "lunar:segmentrocks", "--", f"INPUT={image}", f"OUTPUT={tmp_path / 'rocks.geojson'}")
    assert run.returncode != 0
    assert left_in(tmp_path) == []


# -- helpers ---------------------------------------------------------------------------------------------------------


def _write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    place = {"transform": Affine(1, 0, 10_000, 0, -1, 20_000)} if "crs" in options else {}
    height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=height, width=width, dtype=pixels.dtype, **place, **options
    ) as file:
        file.write(pixels, 1)
    return path


def _table(package: Path, name: str) -> list[tuple]:
    with sqlite3.connect(package) as database:
        return database.execute(f'SELECT * FROM "{name}" ORDER BY 1').fetchall()


def _wait_for_work(run, folder: Path) -> list[int]:
    """Wait until the engine writes; return its process."""
    for _ in range(3000):
        if any("partial" in name for name in left_in(folder)):
            return children_of(run.pid)
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("the engine did not begin to write within 150 s")
