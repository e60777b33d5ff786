"""Going through anomalies in QGIS: from rank to rank, the map follows, and every verdict is in the file at once."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from qgis_helpers import Qgis
from running import lunar, read_layer

PLACES = 5
OPEN = """
    from qgis.PyQt.QtCore import Qt
    from qgis.PyQt.QtTest import QTest
    from qgis.gui import QgsMapCanvas
    from lunar_qgis_plugin.review import ReviewPanel
    canvas = QgsMapCanvas()
    canvas.resize(400, 400)
    layer = QgsVectorLayer(sys.argv[1] + "|layername=anomalies", "anomalies", "ogr")
    other = QgsVectorLayer("Point?field=rank:integer", "other", "memory")
    QgsProject.instance().addMapLayers([other, layer])
    canvas.setDestinationCrs(layer.crs())
    panel = ReviewPanel(canvas)
    panel.show()
    panel.activateWindow()
    QTest.qWaitForWindowActive(panel)  # keys go nowhere else
    def rank():
        return panel._feature()["rank"]
"""


@pytest.fixture(scope="module")
def qgis(tmp_path_factory):
    return Qgis.installed(tmp_path_factory.mktemp("qgis"))


@pytest.fixture
def anomalies(tmp_path):
    """Five places of an image, with their pictures."""
    ground = np.random.default_rng(0).normal(100, 5, (400, 400))
    ground[100:116, 250:266] += 120
    profile = {"driver": "GTiff", "width": 400, "height": 400, "count": 1, "dtype": "uint8", "crs": "IAU_2015:30135"}
    with rasterio.open(tmp_path / "i.tif", "w", **profile, transform=rasterio.Affine(2, 0, 5000, 0, -2, 9000)) as file:
        file.write(ground.clip(1, 255).astype("uint8"), 1)
    found = tmp_path / "anomalies.gpkg"
    words = ["--model", "pca", "--top", PLACES, "--chips", tmp_path / "chips"]
    ran = lunar("anomalies", tmp_path / "i.tif", found, *words)
    assert ran.code == 0, ran.err
    return found


def test_from_rank_to_rank_and_the_map_follows(qgis, anomalies):
    told = qgis.script(
        OPEN
        + """
    seen = [rank()]
    for key in (Qt.Key_N, Qt.Key_N, Qt.Key_P, Qt.Key_P, Qt.Key_P):
        QTest.keyClick(panel, key)
        seen.append(rank())
    centre, point = canvas.extent().center(), panel._feature().geometry().asPoint()
    panel.go(99)
    tell({"seen": seen, "last": rank(), "facts": panel.facts.text(), "state": panel.state.text(),
          "off": [centre.x() - point.x(), centre.y() - point.y()], 
          "wide": min(canvas.extent().width(), canvas.extent().height()),
          "picture": panel.chip.pixmap().width(), "offered": panel.layers.count()})
    """,
        anomalies,
    )
    assert told["seen"] == [1, 2, 3, 2, 1, 1]
    assert told["last"] == PLACES
    assert told["state"] == f"{PLACES} of {PLACES}, open; 0 reviewed"
    assert f"Rank {PLACES}" in told["facts"]
    assert np.allclose(told["off"], 0, atol=0.01)
    assert told["wide"] == pytest.approx(4 * 128, rel=0.02)  # windows of 64 px, 2 m each
    assert told["picture"] == 220
    assert told["offered"] == 1  # points that are no anomalies are not


def test_a_verdict_is_in_the_file_at_once(qgis, anomalies):
    told = qgis.script(
        OPEN
        + """
    seen = []
    panel.label.setText(" fresh crater ")
    panel.name()
    seen.append(rank())
    QTest.keyClick(panel, Qt.Key_Space)
    seen.append(rank())
    panel.go(-1)
    QTest.keyClick(panel, Qt.Key_Space)      # open again
    seen.append(rank())
    QTest.keyClick(panel, Qt.Key_N)
    QTest.keyClick(panel, Qt.Key_Space)
    again = ReviewPanel(canvas)              # another day
    tell({"seen": seen, "state": panel.state.text(), "begins": again._feature()["rank"]})
    """,
        anomalies,
    )
    assert told["seen"] == [2, 3, 2]
    assert told["state"] == f"4 of {PLACES}, open; 2 reviewed"
    assert told["begins"] == 2
    layer = read_layer(anomalies, "anomalies")
    by_rank = dict(zip(layer["rank"], zip(layer["reviewed"], layer["label"])))
    assert by_rank[1] == (1, "fresh crater")
    assert [by_rank[rank][0] for rank in range(1, PLACES + 1)] == [1, 0, 1, 0, 0]


def test_a_verdict_joins_an_edit_session_and_typing_is_no_command(qgis, anomalies):
    told = qgis.script(
        OPEN
        + """
    layer.startEditing()
    panel.label.setFocus()
    QTest.keyClicks(panel.label, "pun n")
    typed, where = panel.label.text(), rank()
    QTest.keyClick(panel.label, Qt.Key_Return)
    inside = [f["label"] for f in layer.getFeatures() if f["label"]]
    layer.rollBack()
    tell({"typed": typed, "where": where, "inside": inside})
    """,
        anomalies,
    )
    assert told == {"typed": "pun n", "where": 1, "inside": ["pun n"]}
    assert not any(read_layer(anomalies, "anomalies")["reviewed"])


def test_without_anomalies_the_panel_says_what_to_do(qgis, anomalies):
    told = qgis.script(
        OPEN
        + """
    QgsProject.instance().removeMapLayer(layer.id())
    for key in (Qt.Key_N, Qt.Key_Space, Qt.Key_U):
        QTest.keyClick(panel, key)
    tell(panel.facts.text())
    """,
        anomalies,
    )
    assert "Add the points" in told
