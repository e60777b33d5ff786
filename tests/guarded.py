"""A reader in a process of its own, whose memory and time are bounded: what a stranger sends may kill it.

reader.read("image", path)      {"read": …}, {"refused": code} or {"broken": why}; see `fuzzed.py`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from lunar_processing.modelpack import CARD, WEIGHTS, Card, save_pack, sha256_of
from lunar_processing.networks.convnet import ConvNet

PATIENCE_S = 300.0  # by the clock, for what waits without computing


class Reader:
    """The process; another one takes its place when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, reader: str, path: Path) -> dict[str, str]:
        """What came of a file."""
        if self._process is None:
            command = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("fuzzed.py"))]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CPL_LOG": os.devnull,
                "SOURCE_DATE_EPOCH": "1700000000",
            }
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"reader": reader, "path": str(path)}) + "\n")
        self._process.stdin.flush()
        waits = threading.Timer(PATIENCE_S, self._process.kill)
        waits.start()
        answer = self._process.stdout.readline()
        waits.cancel()
        if answer:
            return json.loads(answer)
        died = self._process.wait()
        self.close()
        return {"broken": f"the process has died: {died}"}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def weights(folder: Path, **changes: object) -> Path:
    """A small model; its card may say something else."""
    import torch

    torch.manual_seed(0)
    sizes = {"channels": 2, "depth": 1, "outputs": 1}
    card = Card(
        "quiet", "enhance", "convnet", settings=sizes, tile=64, halo=4, pixel_size_m=(0.5, 2.0), license="CC0-1.0"
    )
    save_pack(folder, card, ConvNet(**sizes))
    card_of(folder, **changes)
    return folder / "weights.safetensors"


def card_of(folder: Path, **changes: object) -> None:
    """Change a card, which anybody can: the checksum of the weights is that of those that are there."""
    path = folder / CARD
    said = {**json.loads(path.read_text()), "sha256": sha256_of(folder / WEIGHTS), **changes}
    path.write_text(json.dumps(said))
