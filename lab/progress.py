"""Progress on stderr with the time since the command began, so that stdout stays machine-readable."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_BEGIN = time.monotonic()
_quiet = False


def silence(quiet: bool = True) -> None:
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    if not _quiet:
        print(f"[{time.monotonic() - _BEGIN:6.1f}s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say ``text`` before and its duration after the block."""
    say(f"{text} ...")
    begin = time.monotonic()
    yield
    say(f"{text}: done in {time.monotonic() - begin:.1f} s")
