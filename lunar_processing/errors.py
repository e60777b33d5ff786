"""What can go wrong, in plain words: what is wrong, where, and the cure.

Every error the engine raises on purpose is a `LunarError`. The second parent is the builtin a Python
programmer would expect, so that `except OSError` or `except ValueError` keep working in scripts.
"""

from __future__ import annotations


class LunarError(Exception):
    """The one root. `message` says what is wrong and where, `cure` what to do about it."""

    code = "error"

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message, cure)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} Cure: {self.cure}" if self.cure else self.message


class ImageError(LunarError, OSError):
    """An input image cannot be read, or is not what the tool needs."""

    code = "image"


class NothingValid(ImageError):
    """An input image has no valid pixel at all."""


class GridError(LunarError, ValueError):
    """A window, tile or transform makes no sense."""

    code = "grid"


class PlanetError(LunarError, ValueError):
    """The body or the coordinate system is not one to measure in."""

    code = "planet"


class ModelError(LunarError, ValueError):
    """A model is missing, damaged, or made for another task or scale."""

    code = "model"


class ParameterError(LunarError, ValueError):
    """A parameter is out of its range or missing."""

    code = "parameter"


class OutputError(LunarError, OSError):
    """A result cannot be written where the user wants it."""

    code = "output"


class DeviceError(LunarError, RuntimeError):
    """The computing device is not there or has failed."""

    code = "device"


class DataError(LunarError, ValueError):
    """Images or labels to learn from are missing, too few, or do not belong together."""

    code = "data"


class TrainingError(LunarError, RuntimeError):
    """Training cannot go on: it diverged, or a checkpoint is of another training."""

    code = "training"


class Cancelled(LunarError):
    """The user stopped the run; nothing was left behind."""

    code = "cancelled"
