"""Which models there are to choose from, told without starting the engine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from . import engine

# The best network of each task: the default where it is installed. The engine's DEFAULT says the same.
BEST = {"enhance": "psr-physics", "anomalies": "anomaly-multiscale", "rocks": "rocks-orbital"}
# The training-free methods of the engine: task → id → what it does. The first of each task is the default otherwise.
CLASSICAL = {
    "enhance": {
        "destripe-nlm": "removes detector stripes, then noise by non-local means; keeps craters of a few pixels",
        "stretch": "percentile stretch; changes contrast only",
        "clahe": "contrast-limited adaptive histogram equalisation; strong local contrast, amplifies noise",
        "retinex": "multi-scale Retinex; evens out illumination across the terminator",
    },
    "anomalies": {
        "pca": "error of rebuilding each window from the principal components of all windows",
        "mahalanobis": "Mahalanobis distance of simple texture features from those of all windows",
    },
    "rocks": {
        "shadow-pairs": "pairs of bright and dark along the direction of the sun",
    },
}


def choices(task: str) -> dict[str, str]:
    """Model id → description for a task, the default first: classical methods and networks found in model folders."""
    found = dict(CLASSICAL[task])
    folders = (*engine.model_folders(), *_environment_folders(), str(engine.home() / "models"), str(own_folder()))
    for folder in folders:
        for card in _cards(Path(folder)):
            if card.get("task") == task:
                found.setdefault(str(card["id"]), str(card.get("title") or card.get("description") or ""))
    best = BEST[task]
    return {best: found[best], **found} if best in found else found


def own_folder() -> Path:
    """Where “Set up the engine…” and `lunar install-models` put models: `modelpack.own_folder` of the engine."""
    home = Path.home()
    if os.name == "nt":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "lunar" / "models"


def _environment_folders() -> list[str]:
    return [f for f in os.environ.get("LUNAR_MODELS", "").split(os.pathsep) if f]


def _cards(folder: Path) -> list[dict]:
    """The readable model cards in a folder of models."""
    cards = []
    for path in sorted(folder.glob("*/model.json")):
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # the engine complains of a damaged model when it is asked for
        if isinstance(card, dict):
            cards.append({"id": path.parent.name, **card})
    return cards
