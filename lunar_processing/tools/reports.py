"""A report and its numbers: a page for people and JSON for programs, each complete under its name or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lunar_processing.draft import Draft
from lunar_processing.strict import strict


def publish(stem: Path, page: str, facts: Any, overwrite: bool = True) -> None:
    """Write `STEM.html` and `STEM.json`, where what is not known is null."""
    with (
        Draft(stem.with_suffix(".html"), overwrite=overwrite) as text,
        Draft(stem.with_suffix(".json"), overwrite=overwrite) as numbers,
    ):
        text.path.write_text(page, encoding="utf-8")
        numbers.path.write_text(json.dumps(strict(facts), indent=1) + "\n", encoding="utf-8")
        text.publish()
        numbers.publish()
