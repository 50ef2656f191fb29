# SPDX-License-Identifier: Apache-2.0
"""What a real Corosync makes of a corosync.conf: it is started with it in namespaces of its own and asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

#: Addresses of the node.
ADDRESSES = tuple(f"10.{link}.0.1/24" for link in range(8))
ADDRESSES6 = ("2001:db8::1/64", "2001:db8:1::1/64")
HOSTS = "\n".join(f"10.0.0.{number} pve{number} pve{number}.example.org" for number in range(1, 5))
#: Commands whose output is kept, beside the cmap.
ASKED = {"quorum": "corosync-quorumtool -s", "links": "corosync-cfgtool -s"}

# Corosync in the foreground until it answers or ends, then the questions; nothing of it is seen outside.
SCRIPT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs own /run
mkdir -p /run/own/corosync/uidgid.d /run/own/shm
cp "$FOLDER/corosync.conf" /run/own/corosync/
head -c 256 /dev/zero > /run/own/corosync/authkey
mount --bind /run/own/corosync /etc/corosync
mount -t tmpfs own /dev/shm
mount -t tmpfs own /var/lib
mkdir -p /var/lib/corosync /var/log/corosync 2>/dev/null
printf '127.0.0.1 localhost\n%s\n' "$HOSTS" > /run/own/hosts
mount --bind /run/own/hosts /etc/hosts
hostname "$NAME"
ip link set lo up
ip link add e0 type bridge
ip link set e0 up
for address in $ADDRESSES; do ip addr add "$address" dev e0; done
for address in $ADDRESSES6; do ip addr add "$address" dev e0 nodad; done
set +e
corosync -f > "$FOLDER/log" 2>&1 &
pid=$!
for _ in $(seq 1200); do
    kill -0 $pid 2>/dev/null || break
    # The first membership is formed once this is there.
    if corosync-cmapctl > "$FOLDER/cmap" 2>/dev/null && grep -q '^runtime\.members\..*status' "$FOLDER/cmap"; then
        touch "$FOLDER/runs"
        break
    fi
    sleep 0.05
done
if [ -e "$FOLDER/runs" ]; then
    # The members are counted a moment after the membership is formed.
    for _ in $(seq 1200); do corosync-quorumtool -s 2>/dev/null | grep -q '(local)' && break; sleep 0.05; done
    while IFS='	' read -r name command; do $command > "$FOLDER/$name" 2>&1; done < "$FOLDER/asked"
fi
kill $pid 2>/dev/null
wait $pid
exit 0
"""


@dataclass
class Answer:
    """``cmap``: ``{key: value}`` as ``corosync-cmapctl`` shows it, None where Corosync did not run; ``log``: what it said."""

    cmap: dict[str, str] | None
    log: str
    said: dict[str, str] = field(default_factory=dict)

    @property
    def refusal(self) -> str:
        lines = [
            line for line in self.log.splitlines() if "exiting with status" not in line and "error" in line
        ]
        return (
            re.sub(r"^.*?(error +\[\w+ *\]|parser error:) *", "", lines[-1]).strip()
            if lines
            else self.log.strip()[-300:]
        )


def why_not() -> str | None:
    """Why Corosync cannot be asked here; None when it can."""
    if os.geteuid() != 0:
        return "needs root (mounts, namespaces)"
    missing = [
        tool for tool in ("corosync", "corosync-cmapctl", "unshare", "ip") if shutil.which(tool) is None
    ]
    if missing:
        return f"needs {', '.join(missing)}"
    made = subprocess.run(
        [
            "unshare",
            "-m",
            "-u",
            "-i",
            "-n",
            "sh",
            "-c",
            "mount -t tmpfs own /mnt && ip link add e0 type bridge",
        ],
        capture_output=True,
        text=True,
    )
    return None if made.returncode == 0 else f"no namespaces here: {made.stderr.strip()}"


def ask(text: str | bytes, name: str = "pve1", hosts: str = HOSTS) -> Answer:
    """Start Corosync with this corosync.conf on a node of this name and return what it says."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        (folder / "corosync.conf").write_bytes(data)
        (folder / "asked").write_text("".join(f"{key}\t{command}\n" for key, command in ASKED.items()))
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            "FOLDER": place,
            "NAME": name,
            "HOSTS": hosts,
            "ADDRESSES": " ".join(ADDRESSES),
            "ADDRESSES6": " ".join(ADDRESSES6),
        }
        done = subprocess.run(
            ["unshare", "-m", "-u", "-i", "-n", "bash", "-c", SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=180,
        )
        log = (
            (folder / "log").read_bytes().decode("utf-8", "replace")
            if (folder / "log").exists()
            else done.stderr
        )
        if not (folder / "runs").exists():
            return Answer(None, log)
        cmap = (folder / "cmap").read_bytes().decode("utf-8", "surrogateescape")
        found = re.findall(r"^(\S.*?) \(([a-z0-9]+)\) = (.*)$", cmap, flags=re.MULTILINE)
        said = {key: (folder / key).read_text(errors="replace") for key in ASKED}
        return Answer({key: value for key, _, value in found}, log, said)
