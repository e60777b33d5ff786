"""What QGIS starts: the Processing provider and, where there is a window, settings page, review panel and a hint."""

from __future__ import annotations

from qgis.core import Qgis, QgsApplication
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QMenu, QPushButton

from . import engine
from .provider import LunarProvider, icon


class LunarPlugin:
    """Registers what the plugin brings and takes all of it away again."""

    def __init__(self, iface) -> None:
        self.iface = iface
        self.provider: LunarProvider | None = None
        self.settings_page = None
        self.menu: QMenu | None = None
        self.panel = None

    def initProcessing(self) -> None:
        """Called by qgis_process, where there is no window."""
        self.provider = LunarProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)
        self.provider.refreshAlgorithms()  # the examples find the algorithms they chain only now

    def initGui(self) -> None:
        """Called by QGIS with a window."""
        self.initProcessing()
        if self.iface is None:
            return
        from .settings import SettingsPageFactory

        self.settings_page = SettingsPageFactory()
        self.iface.registerOptionsWidgetFactory(self.settings_page)
        self.menu = self.iface.pluginMenu().addMenu(icon("lunar"), "Lunar")
        self.menu.addAction(icon("anomalies"), "Review anomalies", self.review)
        self.menu.addAction(icon("setup"), "Set up the engine…", self.set_up)
        if not engine.is_set_up():
            self._hint()

    def unload(self) -> None:
        """Take away all that initGui brought."""
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
        if self.settings_page is not None:
            self.iface.unregisterOptionsWidgetFactory(self.settings_page)
            self.settings_page = None
        if self.panel is not None:
            self.panel.leave()
            self.iface.removeDockWidget(self.panel)
            self.panel.deleteLater()
            self.panel = None
        if self.menu is not None:
            self.iface.pluginMenu().removeAction(self.menu.menuAction())
            self.menu = None

    def set_up(self) -> None:
        """Open the dialog of “Set up the engine…”."""
        import processing

        processing.execAlgorithmDialog("lunar:setupengine", {})

    def review(self) -> None:
        """Open the panel for going through anomalies."""
        if self.panel is None:
            from .review import ReviewPanel

            self.panel = ReviewPanel(self.iface.mapCanvas(), self.iface.mainWindow())
            self.iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.panel)
        self.panel.setUserVisible(True)
        self.panel.setFocus()

    def _hint(self) -> None:
        """Say once a session what is missing, with a button that cures it."""
        bar = self.iface.messageBar()
        message = bar.createMessage("Lunar", "The engine is not set up yet; it needs a Python of its own, once.")
        button = QPushButton("Set up the engine…", message)
        button.clicked.connect(self.set_up)
        message.layout().addWidget(button)
        bar.pushWidget(message, Qgis.MessageLevel.Info)
