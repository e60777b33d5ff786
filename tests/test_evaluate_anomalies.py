"""`lunar evaluate anomalies`: strange things planted, every scorer asked, one report."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from running import lunar

from lunar_processing.classical.anomalies import METHODS
from lunar_processing.evaluate import report
from lunar_processing.evaluate.planted import KINDS, Facts
from lunar_processing.evaluate.ranking import measure, patch_scores
from lunar_processing.simulate import scenes
from lunar_processing.tools.evaluate_anomalies import (
    TRIVIAL,
    by_surroundings,
    compare,
    planted,
    real_grounds,
    tool_scorer,
    trivial_scorers,
)
from lunar_processing.tools.sheet import write_png

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning", "ignore:Unable to import Axes3D"),
    pytest.mark.usefixtures("one_thread"),
]
SIDE = 400
TAUGHT, JUDGED = "M1266003170_a.png", "M1229577647_b.png"  # products of train and of validation, by their names


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the real one is: images named by their products, boxes of craters beside them."""
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate((TAUGHT, JUDGED)):
        made = scenes.draw(scenes.RECIPES["nac"], 1, seed, size=SIDE)
        image = made.image[0].numpy()
        write_png(folder / name, np.clip(image / np.quantile(image, 0.996) * 255, 1, 255).astype(np.uint8))
        craters, pixel = made.craters, float(made.pixel_size[0])
        wide = (craters.diameter_m / pixel).numpy()
        clear = (wide > 11) & (craters.degradation.numpy() < 0.6)
        boxes = [
            f"{i},{x - d / 2:.1f},{y - d / 2:.1f},{d:.1f},{d:.1f},{x:.1f},{y:.1f}"
            for i, (x, y, d) in enumerate(zip(craters.col.numpy()[clear], craters.row.numpy()[clear], wide[clear]))
        ]
        (folder / name).with_suffix(".txt").write_text("\n".join(["ID,X,Y,W,H,C_X,CY", *boxes]))
    return folder


@pytest.fixture(scope="module")
def report_folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    words = ["--small", "--strips", "planted", "--models", "anomaly-multiscale", "--json"]
    ran = lunar("evaluate", "anomalies", "--real", images, "--out", out, *words)
    assert ran.code == 0, ran.err
    assert ran.result["numbers"] == str(out / "report.json")
    return out


def test_the_model_and_every_trivial_scorer_are_measured_on_every_kind_of_thing(report_folder: Path):
    numbers = json.loads((report_folder / "report.json").read_text())
    measured = numbers["strips"]["planted"]["scorers"]
    plain = {*TRIVIAL, *METHODS, "anomaly-multiscale"}
    assert set(measured) == plain | {f"{name} / around" for name in plain - {"random"}}
    for by_kind in measured.values():
        assert set(by_kind) == {*KINDS, "all"}
        for found in by_kind.values():
            assert 0 < found["ap"] <= 1
            assert found["improvement"] == pytest.approx(found["ap"] / found["base_rate"])
            assert 0 < found["base_rate"] <= found["patr"] + 1e-9
            assert found["eomv"] == pytest.approx(found["patr"] / found["base_rate"])


def test_shipped_models_that_are_not_installed_are_left_out_and_said_to_be_missing(monkeypatch: pytest.MonkeyPatch):
    from lunar_processing import modelpack
    from lunar_processing.tools import evaluate_anomalies as tool

    monkeypatch.setattr(modelpack, "model_folders", lambda folders=(): [])
    assert tool._models(tool.Wishes()) == ({}, list(tool.MODELS))


def test_the_report_is_one_page_with_its_figures_inside(report_folder: Path):
    page = (report_folder / "report.html").read_text()
    assert page.count("<table") >= 10
    assert page.count("data:image/png;base64,") >= 10
    assert "http" not in page
    assert sorted(p.name for p in report_folder.iterdir()) == ["report.html", "report.json"]


def test_a_report_that_exists_is_not_written_over(images: Path, report_folder: Path):
    ran = lunar("evaluate", "anomalies", "--real", images, "--out", report_folder, "--small")
    assert ran.code == 1
    assert "holds a report already" in ran.err


def test_an_empty_folder_is_refused(tmp_path: Path):
    ran = lunar("evaluate", "anomalies", "--real", tmp_path, "--out", tmp_path / "out", "--small")
    assert ran.code == 1
    assert "There is no image" in ran.err


def test_images_of_no_known_product_are_refused(images: Path, tmp_path: Path):
    (tmp_path / "holiday.png").write_bytes((images / JUDGED).read_bytes())
    ran = lunar("evaluate", "anomalies", "--real", tmp_path, "--out", tmp_path / "out", "--small")
    assert ran.code == 1
    assert "is of the part" in ran.err


def test_a_model_that_nobody_knows_is_refused_before_the_work(images: Path, tmp_path: Path):
    ran = lunar("evaluate", "anomalies", "--real", images, "--out", tmp_path / "out", "--models", "nobody")
    assert ran.code == 1
    assert "nobody" in ran.err


def test_images_are_chosen_by_the_part_of_their_product(images: Path):
    assert [ground.facts.name for ground in real_grounds(images, "train")] == [TAUGHT]
    assert [ground.facts.name for ground in real_grounds(images, "validation")] == [JUDGED]


def test_a_scorer_of_ones_own_stands_beside_the_tool(images: Path):
    """A function of image, validity and facts; here one that the benchmark itself could not fool."""
    strips = list(planted(images, "train", 1))

    def knows(image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
        return (strips[0].mask == 1).astype(float)

    measured = measure(compare(strips, {"knows": knows, "mahalanobis": "mahalanobis"}))
    assert measured["knows"]["all"]["ap"] == 1
    assert set(measured) == {"knows", "knows / around", "mahalanobis", "mahalanobis / around"}


def test_the_tool_scores_every_patch_that_lies_inside(images: Path):
    (ground,) = real_grounds(images, "train")
    scores = tool_scorer("pca")(ground.image, ground.valid, ground.facts)
    assert scores.shape == (13, 13)
    assert np.isfinite(patch_scores(scores, ground.image.shape)).all()


def test_trivial_scorers_measure_what_their_names_say(images: Path):
    (ground,) = real_grounds(images, "train")
    scorers = trivial_scorers([ground])
    cell = 3, 4  # the patch from row 80 and column 112 on
    window = ground.image[80:144, 112:176] / np.median(ground.image)
    made = {name: scorers[name](ground.image, ground.valid, ground.facts) for name in TRIVIAL}
    assert made["standard deviation"][cell] == pytest.approx(window.std(), rel=1e-4)
    laplacian = 4 * window[1:-1, 1:-1] - window[:-2, 1:-1] - window[2:, 1:-1] - window[1:-1, :-2] - window[1:-1, 2:]
    assert made["squared Laplacian"][cell] == pytest.approx((laplacian**2).mean(), rel=1e-3)
    assert 0 <= made[TRIVIAL[3]][cell] <= window.var() + 1e-6
    again = scorers["random"](ground.image, ground.valid, ground.facts)
    assert np.array_equal(again, made["random"])


def test_normalised_by_its_surroundings_a_hill_of_scores_is_level():
    slope = np.add.outer(np.arange(40.0), np.zeros(40))
    scores = slope + np.random.default_rng(0).normal(size=(40, 40))
    scores[5, 20] += 30
    assert scores.argmax() != 5 * 40 + 20
    inner = by_surroundings(scores)[3:-3, 3:-3]
    assert np.unravel_index(inner.argmax(), inner.shape) == (2, 17)


# ---- the page ----------------------------------------------------------------------------------------------------


def test_a_table_marks_the_best_of_each_column_and_escapes_words():
    made = report.table(["who", "ap"], [["a < b", 0.25], ["c", 0.5], ["d", float("nan")]], best=True)
    assert "a &lt; b" in made
    assert '<td class="best">0.5</td>' in made
    assert made.count("best") == 1
    assert "<td>–</td>" in made


def test_a_figure_travels_inside_the_page():
    line = np.linspace(0.1, 1, 5)
    part = report.figure(report.curves({"one": {"a": (line, line)}}, ("x", "y")), "A line.")
    data = part.split("base64,")[1].split('"')[0]
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert part.endswith("<figcaption>A line.</figcaption></figure>")


def test_contact_sheets_show_their_chips():
    chips = np.random.default_rng(0).random((3, 8, 8))
    drawn = report.sheets({"left": (chips, ["a", "b", "c"]), "right": (chips[:1], ["d"])})
    shown = [place for place in drawn.axes if place.images]
    assert [place.get_title() for place in shown] == ["a", "b", "c", "d"]
