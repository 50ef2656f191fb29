# SPDX-License-Identifier: Apache-2.0
"""What bench/write_diet_faults.py asks on a node. Standard library only; an answer is one line of JSON.

    look    the node: time, jobs, failed units, rrdcached, its journal's mount, every RRD file
    flush   the same, after rrdcached has written every value that waits
    stops   {unit: when the boot before began to stop it}, in seconds since 1970
    tree    the files below /etc and /usr/local but /etc/pve: path, type and mode, owner, size, hash
    fill P  keeps the file system of folder P full, root's reserve as well, until it is ended
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import time
from typing import Any

DB, JOURNAL, SOCKET = "/var/lib/rrdcached/db", "/var/lib/rrdcached/journal", "/run/rrdcached.sock"
FILL = ".write-diet-fill"
#: systemd's id of "Stopping UNIT...".
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
UNITS = ("rrdcached.service", "pvestatd.service")


def parse(data: bytes) -> tuple[int, int]:
    """``(size, last)`` of an RRD file by its own header on this architecture (64 bit, little endian): the bytes that the whole
    file has, and when the last value in it was taken, in seconds since 1970. Raises ValueError.
    """
    if data[:4] != b"RRD\0" or len(data) < 128:
        raise ValueError("no header")
    sources, archives = struct.unpack_from("<QQ", data, 24)
    live = 128 + 120 * (sources + archives)
    if not 0 < sources < 1000 or not 0 < archives < 1000 or len(data) < live + 16:
        raise ValueError("a damaged header")
    rows = sum(struct.unpack_from("<Q", data, 128 + 120 * (sources + each) + 24)[0] for each in range(archives))
    size = live + 16 + 112 * sources + 80 * sources * archives + 8 * archives + 8 * sources * rows
    return size, struct.unpack_from("<q", data, live)[0]


def files(base: str) -> dict[str, dict[str, Any]]:
    """``{path below base: {size, whole, last}}``; ``whole`` is the size by its header, and with it ``last`` None where that is
    damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for top, _, names in os.walk(base):
        for name in names:
            path = os.path.join(top, name)
            with open(path, "rb") as handle:
                data = handle.read(65536)
                size = os.fstat(handle.fileno()).st_size
            try:
                whole, last = parse(data)
            except ValueError:
                found[os.path.relpath(path, base)] = {"size": size, "whole": None, "last": None}
            else:
                found[os.path.relpath(path, base)] = {"size": size, "whole": whole, "last": last}
    return found


def ask(*commands: str) -> list[str]:
    """Lines of the last answer of rrdcached. Raises OSError and ValueError."""
    lines: list[str] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect(SOCKET)
        stream = connection.makefile("rw")
        for command in commands:
            stream.write(command + "\n")
            stream.flush()
            count = int(stream.readline().split()[0])
            lines = [stream.readline().strip() for _ in range(max(0, count))]
    return lines


def daemon() -> dict[str, Any]:
    """``pid`` and ``arguments`` of rrdcached (None and nothing without one), ``stats`` as it answers (None: it does not)."""
    found: dict[str, Any] = {"pid": None, "arguments": [], "stats": None}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as handle:
                words = handle.read().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == "rrdcached":
            found.update(pid=int(pid), arguments=words[1:])
    try:
        found["stats"] = {key: int(value) for key, _, value in (line.partition(": ") for line in ask("STATS"))}
    except (OSError, ValueError, IndexError):
        pass
    return found


def lines_of(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def look() -> dict[str, Any]:
    with open("/proc/mounts") as handle:
        mounts = [line.split() for line in handle]
    with open("/proc/sys/kernel/random/boot_id") as handle:
        boot = handle.read().strip()
    writeback = []
    for name in ("dirty_expire_centisecs", "dirty_writeback_centisecs"):
        with open(f"/proc/sys/vm/{name}") as handle:
            writeback.append(int(handle.read()) / 100)
    return {
        "boot_id": boot,
        "time": time.time(),
        "jobs": len(lines_of("systemctl", "list-jobs", "--no-legend")),
        "failed": [line.split()[0] for line in lines_of("systemctl", "--failed", "--no-legend", "--plain") if line.strip()],
        "rrdcached": daemon(),
        "journal": next(([words[2], words[3]] for words in reversed(mounts) if words[1] == JOURNAL), None),
        "writeback": writeback,
        "full": [folder for folder in ("/var/lib", "/") if full(folder)],
        "files": files(DB),
    }


def full(folder: str) -> bool:
    """Whether root finds no block there; what statvfs calls free may be the file system's own reserve."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, 4096)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def stops() -> dict[str, float]:
    """The last of each unit."""
    found = {}
    for line in lines_of("journalctl", "-b", "-1", "--no-pager", "-o", "json", f"MESSAGE_ID={STOPPING}"):
        entry = json.loads(line)
        if entry.get("UNIT") in UNITS:
            found[str(entry["UNIT"])] = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    return found


def tree() -> list[str]:
    found = []
    for base in ("/etc", "/usr/local"):
        for top, folders, names in os.walk(base):
            if top == "/etc":
                folders.remove("pve")
            for name in [*folders, *names]:
                path = os.path.join(top, name)
                about = os.lstat(path)
                words = [path, f"{about.st_mode:o}", f"{about.st_uid}:{about.st_gid}"]
                if stat.S_ISLNK(about.st_mode):
                    words.append(os.readlink(path))
                elif stat.S_ISREG(about.st_mode):
                    with open(path, "rb") as handle:
                        words += [str(about.st_size), hashlib.sha256(handle.read()).hexdigest()]
                found.append(" ".join(words))
    return sorted(found)


def fill(folder: str) -> None:
    """Blocks are taken, not written: what others free meanwhile is taken as well."""
    fd = os.open(os.path.join(folder, FILL), os.O_CREAT | os.O_RDWR, 0o600)
    end = 0
    while True:
        for size in (1 << 28, 1 << 24, 1 << 20, 1 << 16, 1 << 12):
            while True:
                try:
                    os.posix_fallocate(fd, end, size)
                except OSError:
                    break
                end += size
        time.sleep(0.1)


def main() -> None:
    command = sys.argv[1]
    if command == "fill":
        fill(sys.argv[2])
    if command == "flush":
        ask("FLUSHALL", *(f"FLUSH {name}" for name in files(DB)))
    answer: Any = {"look": look, "flush": look, "stops": stops, "tree": tree}[command]()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
