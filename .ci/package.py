"""Make the plugin's installable zip, or lay the plugin out in a folder for QGIS_PLUGINPATH.

    python3 .ci/package.py                 writes dist/lunar_qgis_plugin-VERSION.zip
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
KINDS = {".py", ".qml", ".svg", ".txt", ".toml", ".json", ".typed", ".md", ""}  # text, all of it
WHEN = (1980, 1, 1, 0, 0, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", type=Path, metavar="DIR", help="lay out DIR/lunar_qgis_plugin and write no zip")
    given = parser.parse_args()
    check_version()
    if given.stage:
        print(stage(given.stage))
        return 0
    path = pack(REPOSITORY / "dist")
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1e3:.0f} kB, {len(contents())} files")
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


def pack(folder: Path) -> Path:
    """Write the zip and return its path; refuses one that the QGIS plugin repository would refuse."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PLUGIN}-{version()}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in contents().items():
            entry = zipfile.ZipInfo(f"{PLUGIN}/{name}", WHEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, source.read_bytes())
    if path.stat().st_size > LIMIT_BYTES:
        sys.exit(f"{path} is larger than {LIMIT_BYTES / 1e6:.0f} MB: look for what does not belong there.")
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
