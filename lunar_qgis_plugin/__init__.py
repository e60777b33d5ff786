"""Images of the Moon in QGIS: see into shadow, find what is strange, count rocks."""


def classFactory(iface):
    """Give QGIS the plugin; `iface` is None without a window (qgis_process)."""
    from .plugin import LunarPlugin

    return LunarPlugin(iface)
