# SPDX-License-Identifier: Apache-2.0
"""Print as JSON how rrdcached runs on a node, and what its files hold.

``arguments`` of the daemon; ``journal``: type and options of the mount below it, None on the disk; ``files``: ``{name: time of
the last value}``, in seconds of the epoch; ``answers``: whether it does; ``stopped``: when systemd last stopped it in the boot
before this one; ``failed``: units.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path

BASE = Path("/var/lib/rrdcached/db")
JOURNAL = "/var/lib/rrdcached/journal"
SOCKET = "/run/rrdcached.sock"


def output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout


def last_value(path: Path) -> int:
    """The time in the live head, which comes after the header and its definitions of sources and archives."""
    data = path.read_bytes()[:65536]
    assert data[:4] == b"RRD\0", path
    sources, archives = (int.from_bytes(data[at : at + 8], "little") for at in (24, 32))
    head = 128 + 120 * (sources + archives)
    return int.from_bytes(data[head : head + 8], "little")


def arguments() -> list[str]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == "rrdcached":
            return words[1:-1]
    return []


def answers() -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(SOCKET)
        connection.sendall(b"STATS\n")
        return connection.recv(4096)[:1].isdigit()


def main() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    log = output("journalctl", "-b", "-1", "-o", "short-unix", "-u", "rrdcached")
    stops = re.findall(r"(?m)^(\d+)\.\d+ .*systemd\[1\]: Stopped rrdcached", log)
    failed = output("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    print(
        json.dumps(
            {
                "arguments": arguments(),
                "journal": next(({"type": each[2], "options": each[3]} for each in mounts if each[1] == JOURNAL), None),
                "files": {str(each.relative_to(BASE)): last_value(each) for each in sorted(BASE.rglob("*")) if each.is_file()},
                "answers": answers(),
                "stopped": int(stops[-1]) if stops else None,
                "failed": [line.split()[0] for line in failed.splitlines()],
            }
        )
    )


if __name__ == "__main__":
    main()
