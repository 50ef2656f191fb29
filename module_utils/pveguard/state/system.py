# SPDX-License-Identifier: Apache-2.0
"""Commands, the journal, the clock, and words for people."""

from __future__ import annotations

import os
import re
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Done:
    """What a command returned."""

    def __init__(self, rc: int, out: str = "", err: str = "") -> None:
        self.rc, self.out, self.err = rc, out, err


def run(argv: Sequence[str], timeout: float = 60.0) -> Done:
    """Run a command and return :class:`Done`; 127 when it does not exist, 124 when it gave no answer in
    time.
    """
    import subprocess

    env = {**os.environ, "LC_ALL": "C"}
    env["PATH"] = env.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=env,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        return Done(127, "", f"{argv[0]}: not installed")
    except subprocess.TimeoutExpired:
        return Done(124, "", f"{argv[0]}: no answer within {timeout:g} s")
    return Done(done.returncode, done.stdout, done.stderr)


_LEVELS = {"error": 3, "warning": 4, "info": 6}


def log(level: str, message: str) -> None:
    """One line to standard error, with a priority for the journal when systemd runs us."""
    prefix = f"<{_LEVELS[level]}>" if "JOURNAL_STREAM" in os.environ else f"pve-state: {level}: "
    print(prefix + message.replace("\n", "; "), file=sys.stderr, flush=True)


def notify(message: str) -> None:
    """Tell systemd (sd_notify); a no-op outside of a service."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(message.encode())
        except OSError:
            pass


def utc(seconds: float | None = None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def epoch(text: str | None) -> int | None:
    """Seconds since 1970 of a time that :func:`utc` wrote, None for anything else.

    By hand, because strptime and calendar would be the largest imports of the watcher.
    """
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)Z", text or "")
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    # Years that begin in March: the leap day is the last one.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def printable(text: str, keep: str = "\n\t") -> str:
    """Text without the control characters that could command a terminal."""
    return "".join(c if c in keep or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
