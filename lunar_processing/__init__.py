"""Images of the Moon: see into shadow, find what is strange, count rocks. Headless; never imports QGIS."""

__version__ = "0.1.0"
