"""Take the pictures of the tour in a real QGIS window: `make screenshots`. Needs what `make demo` left in demo_output/.

The window stands on a virtual screen (Xvfb), with a profile of its own; `tour.py` works in it as a user would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import OUTPUT, REPOSITORY, prepare_qgis
from PIL import Image

SCREEN = "1500x940x24"
WIDTH, QUALITY = 1100, 78  # px; as the pages show them


def main() -> int:
    if not (OUTPUT / "rocks.gpkg").exists():
        sys.exit(f"{OUTPUT} holds no results. Cure: make demo")
    with tempfile.TemporaryDirectory(prefix="lunar-tour-") as name:
        folder = Path(name)
        (folder / "shots").mkdir()
        environment = {**prepare_qgis(folder), "QT_QPA_PLATFORM": "xcb"}
        environment.update(LUNAR_TOUR=str(OUTPUT), LUNAR_SHOTS=str(folder / "shots"))
        window = ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN}", "qgis", "--nologo", "--noversioncheck"]
        subprocess.run(
            [*window, "--code", str(REPOSITORY / ".ci" / "tour.py")], env=environment, timeout=300, check=False
        )
        shots = sorted((folder / "shots").glob("*.png"))
        if not shots or (folder / "shots" / "error.txt").exists():
            sys.exit("\n".join(path.read_text() for path in (folder / "shots").glob("error.txt")) or "No picture came.")
        for shot in shots:
            kept = REPOSITORY / "docs" / "images" / f"tour_{shot.stem}.jpg"
            picture = Image.open(shot).convert("RGB")
            picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
            picture.save(kept, quality=QUALITY)
            print(f"   {os.path.relpath(kept)}  {kept.stat().st_size / 1e3:,.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
