"""How a run talks to whoever started it: a bar for people, JSON lines for programs, and an ear for "stop".

JSON lines on standard output, one object a line, in ASCII, for a pipe may have any encoding:
    {"event": "progress", "stage": …, "done": …, "total": …, "fraction": …, "rate_mpx_s": …, "left_s": …}
    {"event": "log", "level": "info" | "warning", "message": …}
    {"event": "error", "code": …, "message": …, "cure": …}
    {"event": "result", …}                                   the last line of a run that went well
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from lunar_processing.draft import discard_all
from lunar_processing.errors import Cancelled, LunarError
from lunar_processing.strict import strict

# Which share of the whole each stage has, as begin and end.
STAGES = {"look": (0.0, 0.05), "profile": (0.05, 0.2), "work": (0.2, 0.95), "finish": (0.95, 1.0)}
STAGES |= {"read": (0.0, 0.05), "train": (0.05, 1.0), "fit": (0.05, 0.95), "products": (0.0, 0.95)}
COUNTED = ("read", "train", "fit", "products", "finish")  # stages that do not count pixels
INTERVAL = 0.2  # seconds between progress lines
# A run that was asked to stop gets this long to stop by itself before it is ended.
PATIENCE = 1.0


class Console:
    """Says what happens in the way `style` asks for: `bar`, `jsonl` or `none`; `auto` is a bar on a terminal."""

    def __init__(self, style: str = "auto", as_json: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # no letter that a console cannot print may end a run
                stream.reconfigure(errors="backslashreplace")
        self.style = ("bar" if sys.stderr.isatty() else "none") if style == "auto" else style
        self.as_json = as_json
        self._stop = threading.Event()
        self._bar: Any = None
        self._bar_stage = self._stage = ""
        self._stage_began = self._last_line = 0.0

    def cancelled(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stop.is_set()

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say how far a stage is, in pixels or in what it counts; a note is for people."""
        now = time.perf_counter()
        if stage != self._stage:
            self._stage, self._stage_began = stage, now
        if self.style == "bar":
            self._show_bar(stage, done, total, note)
        elif self.style == "jsonl" and (now - self._last_line >= INTERVAL or done >= total):
            self._last_line = now
            self._say(event="progress", **self._facts(stage, done, total, now - self._stage_began))

    def log(self, level: str, message: str) -> None:
        """Say something in words."""
        if self.style == "jsonl":
            self._say(event="log", level=level, message=message)
        elif level == "warning" or self.style == "bar":
            self._aside(f"{'Warning: ' if level == 'warning' else ''}{message}")

    def say(self, message: str) -> None:
        """A line for a log file, where no bar can be."""
        if self.style == "none":
            self._aside(message)

    def error(self, error: LunarError) -> None:
        """Say what went wrong and the cure."""
        self.close()
        if self.style == "jsonl":
            self._say(event="error", code=error.code, message=error.message, cure=error.cure)
        else:
            print(f"Error: {error.message}", file=sys.stderr)
            if error.cure:
                print(f"Cure:  {error.cure}", file=sys.stderr)

    def result(self, facts: Mapping[str, Any], words: str) -> None:
        """Say what was made."""
        self.close()
        if self.style == "jsonl":
            self._say(event="result", **facts)
        elif self.as_json:
            self._print(json.dumps(strict(facts), indent=2))
        else:
            self._print(words)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def listen(self, stdin: bool) -> None:
        """Stop on Ctrl-C and on request, and with `stdin` also when standard input closes (our caller is gone)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop())
        if stdin:
            threading.Thread(target=self._await_end_of_input, name="stdin", daemon=True).start()

    def stop(self) -> None:
        """Ask the run to stop; end it if it does not."""
        if not self._stop.is_set():
            self._stop.set()
            threading.Thread(target=self._lose_patience, name="stop", daemon=True).start()

    def _await_end_of_input(self) -> None:
        # There is no `sys.stdin` where it was closed from the beginning.
        while sys.stdin is not None and os.read(sys.stdin.fileno(), 4096):
            pass
        self.stop()

    def _lose_patience(self) -> None:
        time.sleep(PATIENCE)
        discard_all()
        if self.style != "jsonl":  # programs know that they asked for it
            # In a thread, for nothing that a console does may keep the process from its end.
            last_words = threading.Thread(target=self.error, args=(Cancelled("The run was cancelled."),), daemon=True)
            last_words.start()
            last_words.join(0.1)
        os._exit(1)

    def _facts(self, stage: str, done: int, total: int, seconds: float) -> dict[str, Any]:
        begin, end = STAGES.get(stage, (0.0, 1.0))
        share = done / max(total, 1)
        left = seconds / share - seconds if share > 0 else None
        return {
            "stage": stage,
            "done": done,
            "total": total,
            "fraction": round(begin + (end - begin) * share, 4),
            "rate_mpx_s": None if stage in COUNTED else round(done / max(seconds, 1e-9) / 1e6, 2),
            "left_s": None if left is None else round(left, 1),
        }

    def _show_bar(self, stage: str, done: int, total: int, note: str) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar_stage != stage:
            self.close()
            self._bar_stage = stage
            counts, rate = ("", "") if stage in COUNTED else ("{n:.0f}/{total:.0f} Mpx ", ", {rate_noinv_fmt}")
            look = "{l_bar}{bar}| " + counts + "[{elapsed}<{remaining}" + rate + "]{postfix}"
            self._bar = tqdm(total=total / 1e6, desc=stage, unit="Mpx", leave=False, bar_format=look)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done / 1e6 - self._bar.n)

    def _aside(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)

    def _say(self, **facts: Any) -> None:
        if not self._print(json.dumps(strict(facts))):
            self.stop()

    def _print(self, text: str) -> bool:
        """Print to standard output; False when nobody listens there any more."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # Python flushes once more at its end, and would complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return False
        return True
