"""What every test may lean on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from guarded import Reader

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real lunar images; the tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LUNAR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "formats").is_dir():
        pytest.skip(f"real lunar images are not in {folder}; set LUNAR_TEST_DATA to their folder")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: tiny networks lose more time to waiting for threads than they take to compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    """A reader in a process of its own; one for all tests, for it takes seconds to begin."""
    from guarded import Reader

    if os.name == "nt":
        pytest.skip("memory and time of a process cannot be bounded here")
    one = Reader()
    yield one
    one.close()
