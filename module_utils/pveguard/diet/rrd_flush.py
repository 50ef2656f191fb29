#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
# Managed by pveguard: has rrdcached write every value that waits in it, and waits until it has.
"""Before rrdcached stops: the values that wait in it are written to their files, however long that takes.

Debian's start script kills the daemon five seconds after it asked it to stop, flushed or not, and a journal in RAM does not
outlive a reboot. Installed on the node as one file of its own, so it imports nothing of pveguard.

Usage: rrd_flush.py SOCKET [SECONDS]; exit code 0 when nothing waits any more.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable

#: Files that are being written have left the queue; what they still need is far below the seconds that a stop gives.
DEADLINE_S = 240.0
#: A flush that took no longer has left nothing that a stop could not write.
QUICK_S = 2.0


class Daemon:
    """A connection to rrdcached's socket. Raises ``OSError`` where nobody answers."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8", errors="replace", newline="\n")

    def ask(self, command: str) -> list[str]:
        """The lines after the status line. Raises ``OSError`` for an error of the daemon."""
        self.socket.sendall(f"{command}\n".encode())
        status = self.lines.readline().strip()
        count = status.partition(" ")[0]
        if not count.lstrip("-").isdigit() or int(count) < 0:
            raise OSError(f"rrdcached answered {command} with {status or 'nothing'}")
        return [self.lines.readline().strip() for _ in range(int(count))]

    def stats(self) -> dict[str, int]:
        """STATS as ``{name: number}``."""
        found = {}
        for line in self.ask("STATS"):
            name, _, value = line.partition(":")
            if value.strip().isdigit():
                found[name] = int(value)
        return found

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def flush(
    path: str,
    seconds: float = DEADLINE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write all values; returns how many files were written. Raises ``OSError`` where that did not end in time.

    What comes while a long flush goes on is written by another one.
    """
    daemon = Daemon(path)
    try:
        before = daemon.stats().get("UpdatesWritten", 0)
        end = clock() + seconds
        while True:
            began = clock()
            daemon.ask("FLUSHALL")
            while (now := daemon.stats()).get("QueueLength"):
                if clock() > end:
                    raise OSError(f"{now['QueueLength']} files still wait to be written after {seconds:g} s")
                sleep(0.2)
            if clock() - began < QUICK_S or clock() > end:
                return max(0, now.get("UpdatesWritten", 0) - before)
    finally:
        daemon.close()


def main(arguments: list[str]) -> int:
    try:
        flush(arguments[0], float(arguments[1]) if arguments[1:] else DEADLINE_S)
    except (OSError, IndexError, ValueError) as error:
        print(f"rrdcached was not flushed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
