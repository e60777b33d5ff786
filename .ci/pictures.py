"""The pictures of the README, from the maps of the demo: `make pictures`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
MAPS, PICTURES = REPOSITORY / "demo_output" / "maps", REPOSITORY / "docs" / "images"
CHOSEN = {"overview": "overview.jpg", "2_enhanced": "enhanced.jpg", "5_rocks": "rocks.jpg"}
WIDTH = 1400

if __name__ == "__main__":
    if not MAPS.is_dir():
        sys.exit("There are no maps yet. Cure: make demo")
    for name, picture in CHOSEN.items():
        with Image.open(MAPS / f"{name}.png") as page:
            small = page.convert("RGB").resize((WIDTH, page.height * WIDTH // page.width), Image.Resampling.LANCZOS)
        small.save(PICTURES / picture, quality=80, optimize=True, progressive=True)
        print(f"docs/images/{picture}  {(PICTURES / picture).stat().st_size / 1e3:.0f} kB")
