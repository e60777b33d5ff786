"""The panel in which a person goes through the anomalies of a layer: where, how strange, what is it.

Whatever is said of a place goes into its fields `reviewed` and `label` at once; there is nothing to save. Keys work
while the panel has the focus: N next, P previous, U next that is not reviewed, Space reviewed, L label.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from qgis.core import (
    QgsCoordinateTransform,
    QgsCsException,
    QgsFeature,
    QgsFeatureRequest,
    QgsMapLayerProxyModel,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsDockWidget, QgsMapCanvas, QgsMapLayerComboBox
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QKeySequence, QPixmap
from qgis.PyQt.QtWidgets import (
    QCompleter,
    QGridLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QShortcut,
    QVBoxLayout,
    QWidget,
)

from .provider import icon

NEEDED = {"rank", "reviewed", "label"}
AROUND = 4  # the map shows so many windows beside one another
CHIP = 220  # px


class ReviewPanel(QgsDockWidget):
    """One place at a time, strangest first."""

    def __init__(self, canvas: QgsMapCanvas, parent: QWidget | None = None) -> None:
        super().__init__("Review anomalies", parent)
        self.setObjectName("LunarReview")
        self.canvas = canvas
        self.order: list[int] = []  # ids of the features, by rank
        self.place = 0
        self._build()
        self.layers.layerChanged.connect(self.take)
        project = QgsProject.instance()
        project.layersAdded.connect(self._offer)
        project.layersRemoved.connect(self._offer)
        self._offer()

    # -- what a person does ------------------------------------------------------------------------------------

    def take(self, layer: QgsVectorLayer | None) -> None:
        """Begin with a layer, at the first place that is not reviewed."""
        self.layer = layer if layer is not None and _reviewable(layer) else None
        self.order = [] if self.layer is None else _by_rank(self.layer)
        self.place = 0
        if self.order and self._feature()["reviewed"]:
            self.next_open()
        self._show()

    def go(self, steps: int) -> None:
        """So many places on, or back; not beyond the ends."""
        if self.order:
            self.place = min(max(self.place + steps, 0), len(self.order) - 1)
            self._show()

    def next_open(self) -> None:
        """The next place that is not reviewed, from the top again after the last one; stays if there is none."""
        rest = self.order[self.place + 1 :] + self.order[: self.place]
        still = (
            {f.id() for f in self.layer.getFeatures(_without_geometry(rest)) if not f["reviewed"]} if rest else set()
        )
        following = next((number for number in rest if number in still), None)
        if following is not None:
            self.place = self.order.index(following)
            self._show()

    def mark(self) -> None:
        """Reviewed, with the label that stands there, and on to the next; a reviewed place becomes open again."""
        if not self.order:
            return
        done = not self._feature()["reviewed"]
        if self._write({"reviewed": int(done), "label": self.label.text().strip()}) and done:
            self.next_open()
        self._show()

    def name(self) -> None:
        """Keep the label, and count the place as reviewed."""
        if self.order and self._write({"reviewed": 1, "label": self.label.text().strip()}):
            self.setFocus()
            self.next_open()
            self._show()

    def leave(self) -> None:
        """Hear no more of the project's layers: the panel is about to go."""
        project = QgsProject.instance()
        project.layersAdded.disconnect(self._offer)
        project.layersRemoved.disconnect(self._offer)

    # -- how it looks ------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.layer: QgsVectorLayer | None = None
        self.layers = QgsMapLayerComboBox()
        self.layers.setFilters(QgsMapLayerProxyModel.PointLayer)
        self.facts, self.state, self.chip = QLabel(), QLabel(), QLabel()
        self.facts.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.chip.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.label = QLineEdit()
        self.label.setPlaceholderText("what is it? (L; Enter keeps it)")
        self.label.returnPressed.connect(self.name)
        buttons = QGridLayout()
        for column, (text, key, act, help_text) in enumerate(self._actions()):
            button = QPushButton(text)
            button.setToolTip(f"{help_text} ({key})")
            button.clicked.connect(act)
            buttons.addWidget(button, column // 2, column % 2)
            self._on(key, act)
        self._on("L", self.label.setFocus)
        content = QWidget()
        column_of = QVBoxLayout(content)
        for widget in (self.layers, self.facts, self.chip, self.label):
            column_of.addWidget(widget)
        column_of.addLayout(buttons)
        column_of.addWidget(self.state)
        column_of.addStretch()
        self.setWidget(content)
        self.setWindowIcon(icon("anomalies"))
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def _on(self, key: str, act) -> None:
        shortcut = QShortcut(QKeySequence(key), self)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)  # elsewhere in QGIS the key means nothing
        shortcut.activated.connect(act)

    def _actions(self) -> list[tuple]:
        return [
            ("◀ Previous", "P", lambda: self.go(-1), "one rank up"),
            ("Next ▶", "N", lambda: self.go(1), "one rank down"),
            ("Reviewed", "Space", self.mark, "mark it as reviewed, or as open again"),
            ("Next open", "U", self.next_open, "the next one that nobody has reviewed"),
        ]

    def _offer(self, *_changed: object) -> None:
        """Offer the layers that anomalies came in, no other points."""
        layers = QgsProject.instance().mapLayers().values()
        self.layers.setExceptedLayerList([layer for layer in layers if not _reviewable(layer)])
        if self.layers.currentLayer() is not self.layer:
            self.take(self.layers.currentLayer())

    def _show(self) -> None:
        if not self.order:
            self.facts.setText("Add the points of “Score anomalies” to the map.")
            self.state.setText("")
            self.chip.clear()
            return
        feature = self._feature()
        self.facts.setText(_in_words(feature))
        self.label.setText(feature["label"] or "")
        self.chip.setPixmap(_picture(feature, self.layer))
        done = [f for f in self.layer.getFeatures(_without_geometry(self.order)) if f["reviewed"]]
        self.label.setCompleter(QCompleter(sorted({f["label"] for f in done if f["label"]}), self.label))
        here = "reviewed" if feature["reviewed"] else "open"
        self.state.setText(f"{self.place + 1} of {len(self.order)}, {here}; {len(done)} reviewed")
        self._zoom(feature)

    def _zoom(self, feature: QgsFeature) -> None:
        point = feature.geometry().asPoint()
        side = _number(feature, "window_m") or _number(feature, "window_px") or 64.0
        half = AROUND * side / 2
        box = QgsRectangle(point.x() - half, point.y() - half, point.x() + half, point.y() + half)
        there = self.canvas.mapSettings().destinationCrs()
        with contextlib.suppress(QgsCsException):  # no way between the two systems: the numbers are the best there is
            box = QgsCoordinateTransform(self.layer.crs(), there, QgsProject.instance()).transformBoundingBox(box)
        self.canvas.setExtent(box)
        self.canvas.refresh()

    # -- the layer ---------------------------------------------------------------------------------------------

    def _feature(self) -> QgsFeature:
        return self.layer.getFeature(self.order[self.place])

    def _write(self, values: dict[str, object]) -> bool:
        """Into the file, or into the running edit session; says so where it cannot be."""
        numbers = {self.layer.fields().indexOf(name): value for name, value in values.items()}
        feature = self.order[self.place]
        if self.layer.isEditable():
            kept = self.layer.changeAttributeValues(feature, numbers)
        else:
            kept = self.layer.dataProvider().changeAttributeValues({feature: numbers})
            self.layer.triggerRepaint()
        if not kept:
            self.state.setText(f"{self.layer.name()} cannot be written to. Cure: save it to a place of your own.")
        return bool(kept)


def _reviewable(layer) -> bool:
    return isinstance(layer, QgsVectorLayer) and set(layer.fields().names()) >= NEEDED


def _by_rank(layer: QgsVectorLayer) -> list[int]:
    ranks = {feature.id(): feature["rank"] for feature in layer.getFeatures(_without_geometry())}
    return sorted(ranks, key=ranks.__getitem__)


def _without_geometry(numbers: list[int] | None = None) -> QgsFeatureRequest:
    request = QgsFeatureRequest().setFlags(QgsFeatureRequest.NoGeometry)
    return request if numbers is None else request.setFilterFids(numbers)


def _in_words(feature: QgsFeature) -> str:
    """Rank, strangeness, size and place, a line each."""
    metres, pixels = _number(feature, "window_m"), _number(feature, "window_px")
    lon, lat = _number(feature, "lon"), _number(feature, "lat")
    size = f"{metres:.3g} m" if metres else f"{pixels or 0:.0f} px"
    place = f"{lon:.5f}°, {lat:.5f}°" if lon is not None and lat is not None else "no coordinates"
    score, percentile = (_number(feature, name) for name in ("score", "percentile"))
    lines = [
        f"<b>Rank {feature['rank']}</b> · {size}",
        f"score {score or 0:.4g} · percentile {percentile or 0:.4g}",
        place,
        f"line {_number(feature, 'line') or 0:.0f}, sample {_number(feature, 'sample') or 0:.0f}",
    ]
    return "<br>".join(lines)


def _number(feature: QgsFeature, name: str) -> float | None:
    if name not in feature.fields().names():
        return None
    try:
        return float(feature[name])
    except (TypeError, ValueError):  # NULL
        return None


def _picture(feature: QgsFeature, layer: QgsVectorLayer) -> QPixmap:
    """The picture of the place where one was made: its path is absolute, or counts from the layer's folder."""
    name = feature["chip"] if "chip" in feature.fields().names() else None
    if not name:
        return QPixmap()
    path = Path(layer.source().partition("|")[0]).parent / str(name)
    picture = QPixmap(str(path))
    return (
        picture
        if picture.isNull()
        else picture.scaled(CHIP, CHIP, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation)
    )
