"""The settings page (Settings ▸ Options ▸ Lunar)."""

from __future__ import annotations

import os

from qgis.core import QgsSettings
from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtWidgets import QComboBox, QFormLayout, QLabel, QPlainTextEdit, QPushButton, QWidget

from . import engine
from .algorithms.base import DEVICES
from .provider import icon


class SettingsPageFactory(QgsOptionsWidgetFactory):
    """Gives QGIS a settings page whenever the options dialog opens."""

    def __init__(self) -> None:
        super().__init__()
        self.setTitle("Lunar")
        self.setIcon(icon("lunar"))

    def createWidget(self, parent: QWidget) -> QgsOptionsPageWidget:
        return SettingsPage(parent)


class SettingsPage(QgsOptionsPageWidget):
    """Which Python runs the engine, where models are, where networks compute."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        settings = QgsSettings()
        self.python = QgsFileWidget(self)
        self.python.setFilePath(settings.value("lunar/engine_python", "") or "")
        self.python.lineEdit().setPlaceholderText(
            os.environ.get("LUNAR_PYTHON") or str(engine.venv_python(engine.venv_folder()))
        )
        self.folders = QPlainTextEdit("\n".join(engine.model_folders()), self)
        self.folders.setPlaceholderText("one folder a line")
        self.folders.setMaximumHeight(90)
        self.device = QComboBox(self)
        self.device.addItems(DEVICES)
        self.device.setCurrentText(settings.value("lunar/device", "auto"))
        self.state = QLabel(self)
        self.state.setWordWrap(True)
        self.python.fileChanged.connect(self._tell)
        set_up = QPushButton("Set up the engine…", self)
        set_up.clicked.connect(self._set_up)
        form = QFormLayout(self)
        form.addRow("Engine's Python", self.python)
        form.addRow("", self.state)
        form.addRow("", set_up)
        form.addRow("Model folders", self.folders)
        form.addRow("Device", self.device)
        self._tell()

    def apply(self) -> None:
        """Called when the user accepts the options."""
        settings = QgsSettings()
        settings.setValue("lunar/engine_python", self.python.filePath().strip())
        lines = self.folders.toPlainText().splitlines()
        settings.setValue("lunar/model_folders", [line.strip() for line in lines if line.strip()])
        settings.setValue("lunar/device", self.device.currentText())

    def _tell(self) -> None:
        path = self.python.filePath().strip()
        if path:
            there = os.path.isfile(path)  # noqa: PTH113
            self.state.setText("" if there else f"{path} is not there.")
        elif engine.is_set_up():
            self.state.setText("Left empty, the engine is found by itself; it is set up.")
        else:
            self.state.setText("The engine is not set up yet.")

    def _set_up(self) -> None:
        import processing

        processing.execAlgorithmDialog("lunar:setupengine", {})
