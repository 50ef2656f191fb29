# SPDX-License-Identifier: Apache-2.0
"""Nodes for the tests of a membership: pmxcfs (the double, or the one that $PMXCFS names) and real corosync in namespaces."""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

from lab.tests.doubles.harness import DAEMON, Node, wait_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "scripts/cluster-member"
PATH = "/run/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Units are processes; a file /run/fail-VERB-UNIT makes that call fail.
SYSTEMCTL = rf"""#!/bin/bash
echo "$*" >> /run/systemctl.log
pid() {{ # of a process of this node: the number in the file of one that was killed may be somebody else's by now
    local p; p=$(cat "$1" 2>/dev/null) && [ -n "$p" ] && [ "/proc/$p/ns/mnt" -ef /proc/self/ns/mnt ] && echo "$p"
}}
file() {{
    case $1 in
    pve-cluster.service) echo /run/pve-cluster.pid;;
    corosync.service) echo /run/corosync.pid;;
    *) echo "/run/$1.pid";;
    esac
}}
lives() {{ [ "/proc/$1/ns/mnt" -ef /proc/self/ns/mnt ]; }} # a zombie has no namespaces
stop() {{ local p; p=$(pid "$(file "$1")") || return 0; kill "$p"
    # The process, not its file: that goes before the process does. In the end as systemd does at TimeoutStopSec.
    for _ in $(seq "$(cat /run/stop-polls 2> /dev/null || echo 1800)"); do lives "$p" || return 0; sleep 0.05; done
    kill -9 "$p"; while lives "$p"; do sleep 0.05; done; }}
start() {{ pid "$(file "$1")" > /dev/null && return 0
    case $1 in
    pve-cluster.service) {DAEMON};;
    corosync.service) corosync;;
    *) setsid sleep 1000 > /dev/null 2>&1 & echo $! > "/run/$1.pid";;
    esac; }}
verb=$1; shift
if [ "$verb" = show ]; then
    shift 2
    for unit; do
        state=inactive; pid "$(file "$unit")" > /dev/null && state=active
        enabled=disabled; case $unit in pve-cluster.service|corosync.service) enabled=enabled;; esac
        printf 'Id=%s\nActiveState=%s\nUnitFileState=%s\n\n' "$unit" "$state" "$enabled"
    done
    exit 0
fi
if [ "$verb" = is-active ]; then
    pid "$(file "$1")" > /dev/null && echo active && exit 0; echo inactive; exit 3
fi
for unit; do
    if [ -e "/run/fail-$verb-$unit" ]; then echo "Job for $unit failed." >&2; exit 1; fi
    case $verb in
    start) start "$unit" || exit 1;;
    stop) stop "$unit" || exit 1;;
    restart) stop "$unit"; start "$unit" || exit 1;;
    esac
done
"""


class Member(Node):
    """A node whose commands see the small systemctl, with the two programs under test as methods.

    It is called ``pveN`` at 10.77.0.N unless it has a ``name`` and the last part of an address (``at``) of its own.
    """

    def __init__(self, number: int, name: str | None = None, at: int | None = None) -> None:
        own = None if name is None else f"10.77.0.{at} {name}"
        super().__init__(name or f"pve{number}", number, own)
        if at is not None:
            self.address = f"10.77.0.{at}"
        tools = self.root / "run/bin"
        tools.mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("journalctl", "#!/bin/sh\n")):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.systemctl("start", "pve-cluster.service")
        wait_for("the mount", (self.pve / ".version").exists)

    def tool(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return self.run("env", f"PATH={PATH}", *command, timeout=timeout)

    def systemctl(self, *arguments: str) -> None:
        done = self.tool("systemctl", *arguments)
        assert done.returncode == 0, done.stderr

    def stop_daemons(self) -> None:
        self.systemctl("stop", "pve-cluster.service", "corosync.service")

    def running(self, unit: str) -> bool:
        return "ActiveState=active" in self.tool("systemctl", "show", "-p", "Id,ActiveState", unit).stdout

    def python(self, script: str, *arguments: Any, timeout: float = 120) -> dict[str, Any]:
        """Run a script in the node with the cores at hand: ``args`` in, ``result`` out."""
        text = (
            f"import json, sys\nsys.path.insert(0, {str(ROOT / 'module_utils')!r})\n"
            "args = json.loads(sys.argv[1])\nfrom pveguard.base.errors import PveguardError\ntry:\n"
            + "".join(f"    {line}\n" for line in script.strip().splitlines())
            + "except PveguardError as error:\n    result = {'error': str(error)}\n"
            + "print(json.dumps(result))\n"
        )
        done = self.tool("/usr/bin/python3", "-B", "-c", text, json.dumps(arguments), timeout=timeout)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def info(self) -> dict[str, Any]:
        return self.python("from pveguard.corosync import corosync_info\nresult = corosync_info.collect()")

    def change(self, *, timeout_s: float = 60, **wanted: Any) -> dict[str, Any]:
        return self.python(
            "from pveguard.corosync import corosync_change as c\n"
            "o = c.apply(c.Wanted(**args[0]), args[1])\n"
            "result = {'changed': o.changed, 'after': o.after, 'live': o.info['live_member_ids'], 'restart': o.restart_needed,\n"
            "          'kept': [each.shown() for each in o.lock_kept]}",
            wanted,
            timeout_s,
            # There and back, a lock and a ring that forms anew.
            timeout=3 * timeout_s + 60,
        )

    def give_back(self, deadline_s: float = 60) -> dict[str, Any]:
        return self.python(
            "from pveguard.pmxcfs import pve_lock\n"
            "o = pve_lock.give_back(args[0])\n"
            "result = {'removed': o.removed, 'kept': [each.shown() for each in o.left]}",
            deadline_s,
            timeout=deadline_s + 60,
        )

    def member(self, deadline_s: float = 60, **request: Any) -> dict[str, Any]:
        """Run cluster-member and return its result."""
        request = {
            "node_name": self.name,
            "node_id": self.number,
            "cluster_name": "pvelab",
            "expected_ids": [self.number],
            "deadline_s": deadline_s,
            **request,
        }
        (self.root / "run/request").write_text(json.dumps(request))
        done = self.tool(str(PROGRAM), "run", "/run/request", "/run/result", timeout=deadline_s + 90)
        assert not (self.root / "run/request").exists(), f"code {done.returncode}: {done.stdout}{done.stderr}"
        result: dict[str, Any] = json.loads((self.root / "run/result").read_text())
        return result

    def authkey(self) -> str:
        return base64.b64encode((self.root / "etc/corosync/authkey").read_bytes()).decode()

    def listed(self) -> dict[str, Any]:
        return {"name": self.name, "node_id": self.number, "links": [self.address]}


class Switch:
    """A bridge in a network namespace of its own, where no filter of this machine sees its traffic."""

    def __init__(self) -> None:
        self.name = f"sw{uuid.uuid4().hex[:8]}"
        self._ip("netns", "add", self.name)
        self._ip("-n", self.name, "link", "add", "br0", "type", "bridge")
        self._ip("-n", self.name, "link", "set", "br0", "up")

    def plug(self, node: Member) -> None:
        port = f"p{node.number}"
        self._ip(
            "-n", self.name, "link", "add", port, "type", "veth", "peer", "name", "e0", "netns", str(node.pid)
        )
        self._ip("-n", self.name, "link", "set", port, "master", "br0", "up")
        node.sh(f"ip link set e0 up; ip addr add {node.address}/24 dev e0")

    def close(self) -> None:
        self._ip("netns", "del", self.name)

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
