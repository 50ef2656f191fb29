# SPDX-License-Identifier: Apache-2.0
"""A daemon that hangs hangs nobody: what lies on /etc/pve is not known then, and everything else is told."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import supervised
from ansible.module_utils.pveguard.hardening import hardening_info

from tests.findings import finding
from tests.hardening.node import JUDGES, PACKAGES, Node, clean
from tests.hardening.real_sshd import SSHD
from tests.mounts import own_mounts

#: sysctl looks for zones of SDN, others for members that fail2ban must not ban.
PVE_AREAS = {"accounts", "firewall", "pveproxy", "others", "sysctl", *(("sshd",) if SSHD else ())}
_INIT = 26


class Hanging:
    """A real FUSE file system whose daemon takes every request and answers none, as one that waits for its peers."""

    def __init__(self, point: Path) -> None:
        self.point = point
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"/dev/fuse", str(point).encode(), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        self.taken: list[int] = []
        self.daemon = threading.Thread(target=self._serve, daemon=True)
        self.daemon.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError:
                return
            _, operation, unique, *_ = struct.unpack_from("<IIQ", request)
            if operation == _INIT:
                said = struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 17, 1, 1, 0, 0)
                os.write(self.device, struct.pack("<IiQ", 16 + len(said), 0, unique) + said)
            else:
                self.taken.append(operation)

    def end(self) -> None:
        """Who waits gets an error at last."""
        subprocess.run(["umount", "--force", "--lazy", str(self.point)], check=True)
        self.daemon.join(60)
        os.close(self.device)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[tuple[Node, Hanging]]:
    node = clean(tmp_path)
    node.write("/etc/fail2ban/jail.local", "[DEFAULT]\nbackend = systemd\n[sshd]\nenabled = true\n")
    node.write("/etc/sysctl.d/10-x.conf", "vm.swappiness = 0\n")
    node.write("/etc/login.defs", "UMASK 027\n")
    node.write("/proc/self/mountinfo", "".join(f"{line}\n" for line in node.mounts))
    with own_mounts():
        mount = Hanging(tmp_path / "etc/pve")
        try:
            yield node, mount
        finally:
            mount.end()


def found(facts: dict[str, Any]) -> Any:
    said = {"packages": PACKAGES, "hardening": json.loads(json.dumps(facts))}
    return [each for judge in JUDGES for each in judge.of_node(said, {})]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
def test_a_daemon_that_hangs(hanging: tuple[Node, Hanging]) -> None:
    node, mount = hanging
    facts = hardening_info.collect((), node.root, node.run, answer_s=1.0)
    assert mount.taken, "it was asked, and by nobody but a child"
    assert {area for area, each in facts.items() if not each["known"]} == PVE_AREAS
    assert {facts[area]["error"] for area in PVE_AREAS} == {"/etc/pve: no answer within 1 s"}
    assert {each.id for each in found(facts) if each.severity == "unknown"} == {f"hardening-{area}-unread" for area in PVE_AREAS}
    # Of what is not known nothing is judged, neither good nor bad.
    assert not {each.id for each in found(facts)} & {"hardening-accounts-root-without-factor", "hardening-pveproxy-peer-refused"}
    # What does not lie there is told all the same.
    finding(found(facts), "hardening-sysctl-swappiness-zero")
    finding(found(facts), "hardening-others-umask")


def test_an_area_that_stalls_is_unknown_and_pve_is_asked_again(tmp_path: Path) -> None:
    """As where the daemon begins to hang in between."""
    node, asked = clean(tmp_path), []

    def ask(work: Any, seconds: float) -> Any:
        asked.append(seconds)
        # /etc/pve answers, the second area and then /etc/pve do not.
        if len(asked) in (3, 4):
            raise supervised.Stalled
        return work()

    facts = hardening_info.collect(["updates", "accounts", "pveproxy", "auditd"], node.root, node.run, ask=ask)
    assert [area for area, each in facts.items() if each["known"]] == ["updates", "auditd"]
    assert facts["accounts"] == {"known": False, "error": "no answer within 90 s"}
    assert facts["pveproxy"]["error"] == "/etc/pve: no answer within 10 s"
    assert asked == [10, 90, 90, 10, 90, 90]


@pytest.mark.parametrize(("said", "error"), [({}, "ended"), (OSError(12, "x"), "x"), (OSError(), "OSError")])
def test_an_area_whose_child_is_gone_is_unknown(tmp_path: Path, said: Any, error: str) -> None:
    def ask(work: Any, seconds: float) -> Any:
        if isinstance(said, OSError):
            raise said
        return said

    facts = hardening_info.collect((), tmp_path, Node(tmp_path).run, ask=ask)
    assert facts.keys() == hardening_info.AREAS.keys()
    assert all(not each["known"] and error in each["error"] for each in facts.values())


def test_children_bring_the_same_facts(tmp_path: Path) -> None:
    node = clean(tmp_path)
    here = json.loads(json.dumps(node.look()))
    there = hardening_info.collect((), node.root, node.run)
    here["accounts"].pop("now"), there["accounts"].pop("now")
    assert there == here
