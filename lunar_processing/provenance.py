"""What made this file: inputs, model, parameters, versions, device, counts and time. Enough to make it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import lunar_processing
from lunar_processing.modelpack import sha256_of

TAG = "LUNAR_PROVENANCE"
# Above this size a hash of the whole file would cost more than the work: head, middle, tail and size stand for it.
HUGE = 256 << 20
PROBE = 4 << 20


def file_facts(path: Path) -> dict[str, Any]:
    """Path, size and hash of an input; `quick-sha256` covers 4 MiB at head, middle and tail, and the size."""
    size = path.stat().st_size
    if size <= HUGE:
        return {"path": str(path.absolute()), "bytes": size, "sha256": sha256_of(path)}
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, (size - PROBE) // 2, size - PROBE):
            file.seek(start)
            digest.update(file.read(PROBE))
    return {"path": str(path.absolute()), "bytes": size, "quick-sha256": digest.hexdigest()}


def record(
    tool: str,
    inputs: list[dict[str, Any]],
    model: Mapping[str, Any],
    parameters: Mapping[str, Any],
    device: str,
    counts: Mapping[str, Any],
    seconds: float,
    warnings: list[str],
) -> str:
    """The whole record as JSON.

    With `SOURCE_DATE_EPOCH` set, as for reproducible builds, date and wall time are left out: the same input,
    model, parameters and device then give the same bytes.
    """
    facts: dict[str, Any] = {
        "tool": tool,
        "engine": f"lunar_processing {lunar_processing.__version__}",
        "inputs": inputs,
        "model": dict(model),
        "parameters": {key: value for key, value in parameters.items() if value is not None},
        "device": device,
        "counts": dict(counts),
        "warnings": list(warnings),
        "versions": versions(),
    }
    if "SOURCE_DATE_EPOCH" not in os.environ:
        facts["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts["wall_s"] = round(seconds, 3)
    return json.dumps(facts, ensure_ascii=False, sort_keys=True)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return dict(_versions())


@lru_cache(maxsize=1)  # to read them takes longer than to write a small result
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "scikit-image", "rasterio", "pyogrio", "pyproj", "shapely"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
