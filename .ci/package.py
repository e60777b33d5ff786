"""Make the plugin's installable zip and the archive of models, or lay the plugin out in a folder for QGIS_PLUGINPATH.

    python3 .ci/package.py                 writes dist/lunar_qgis_plugin-VERSION.zip, dist/lunar-models-VERSION.zip
    python3 .ci/package.py --stage DIR     lays out DIR/lunar_qgis_plugin

The same tree gives the same bytes: names are sorted, times fixed. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import configparser
import re
import shutil
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PLUGIN = "lunar_qgis_plugin"
LIMIT_BYTES = 25_000_000  # the QGIS plugin repository takes no more
KINDS = {".py", ".qml", ".svg", ".model3", ".txt", ".toml", ".json", ".typed", ".md", ""}  # text, all of it
WHEN = (1980, 1, 1, 0, 0, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", type=Path, metavar="DIR", help="lay out DIR/lunar_qgis_plugin and write no zip")
    given = parser.parse_args()
    check_version()
    if given.stage:
        print(stage(given.stage))
        return 0
    dist = REPOSITORY / "dist"
    plugin = pack(dist / f"{PLUGIN}-{version()}.zip", {f"{PLUGIN}/{name}": path for name, path in contents().items()})
    if plugin.stat().st_size > LIMIT_BYTES:
        sys.exit(f"{plugin} is larger than {LIMIT_BYTES / 1e6:.0f} MB: look for what does not belong there.")
    pack(dist / f"lunar-models-{version()}.zip", models())
    return 0


def contents() -> dict[str, Path]:
    """Path below the plugin's folder → file in the checkout. No weights, no binaries, no caches."""
    found = {
        "metadata.txt": REPOSITORY / "metadata.txt",
        "LICENSE": REPOSITORY / "LICENSE",
        "engine/pyproject.toml": REPOSITORY / "pyproject.toml",  # says what the engine needs
    }
    for package, below in ((PLUGIN, ""), ("lunar_processing", "engine/lunar_processing/")):
        root = REPOSITORY / package
        for path in root.rglob("*"):
            parts = path.relative_to(root).parts
            hidden = any(p.startswith(".") or p == "__pycache__" for p in parts)
            if path.is_file() and not hidden and path.suffix in KINDS:
                found[below + "/".join(parts)] = path
    return dict(sorted(found.items()))


def stage(folder: Path) -> Path:
    """Lay out the plugin as it will be installed; what was there before is replaced."""
    target = folder.absolute() / PLUGIN
    shutil.rmtree(target, ignore_errors=True)
    for name, path in contents().items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    return target


def models() -> dict[str, Path]:
    """Name in the archive of models, which `lunar install-models` takes → file in the checkout."""
    cards = sorted((REPOSITORY / "models").glob("*/model.json"))
    return {f"{card.parent.name}/{path.name}": path for card in cards for path in sorted(card.parent.iterdir())}


def pack(path: Path, files: dict[str, Path]) -> Path:
    """Write an archive and say what came of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in files.items():
            entry = zipfile.ZipInfo(name, WHEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, source.read_bytes())
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1e3:.0f} kB, {len(files)} files")
    return path


def version() -> str:
    metadata = configparser.ConfigParser()
    metadata.read(REPOSITORY / "metadata.txt", encoding="utf-8")
    return metadata["general"]["version"]


def check_version() -> None:
    """The plugin and its engine are released together."""
    text = (REPOSITORY / "lunar_processing" / "__init__.py").read_text(encoding="utf-8")
    engine = re.search(r'__version__ = "(.+?)"', text)
    if engine is None or engine.group(1) != version():
        sys.exit(f"metadata.txt says version {version()}, lunar_processing/__init__.py says otherwise: make them one.")


if __name__ == "__main__":
    sys.exit(main())
