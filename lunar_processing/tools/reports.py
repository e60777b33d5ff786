"""A report and its numbers: a page for people and JSON for programs, each complete under its name or not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lunar_processing.draft import Draft


def publish(stem: Path, page: str, facts: Any, overwrite: bool = True) -> None:
    """Write `STEM.html` and `STEM.json`."""
    with (
        Draft(stem.with_suffix(".html"), overwrite=overwrite) as text,
        Draft(stem.with_suffix(".json"), overwrite=overwrite) as numbers,
    ):
        text.path.write_text(page, encoding="utf-8")
        numbers.path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        text.publish()
        numbers.publish()


def known(facts: Any) -> Any:
    """Without NaN, which JSON does not have."""
    if isinstance(facts, dict):
        return {key: known(value) for key, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [known(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts
