# SPDX-License-Identifier: Apache-2.0
"""A cluster as its first node sees it: the daemons copy, Corosync reloads as version 3.1 does, time is made up.

What a reload takes was seen with corosync 3.1.7: a link whose addresses or transport differ makes the whole reload
fail and the former configuration stays; a link may come and go while another one stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import Result, run
from ansible.module_utils.pveguard.corosync import corosync_change
from ansible.module_utils.pveguard.corosync.corosync_change import Outcome, Wanted
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit
from ansible.module_utils.pveguard.pmxcfs import pve_file


def text_of(nodes: int, links: int = 1, version: int = 4) -> str:
    listed = [
        {"name": f"pve{n}", "node_id": n, "links": [f"10.{70 + link}.0.{n}" for link in range(links)]}
        for n in range(1, nodes + 1)
    ]
    return corosync_edit.render_new("lab", listed, config_version=version)


class Cluster:
    """``accept`` says whether members take a text that reload would take (None: all do); ``effect`` is called with
    each text that runs and may change ``live`` or ``down``, the links that do not carry anything. ``answer`` may change
    what a command says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, nodes: int = 3, links: int = 1) -> None:
        self.root = root
        self.pve = root / "etc/pve/corosync.conf"
        self.host = root / "etc/corosync/corosync.conf"
        for directory in ("etc/pve", "etc/corosync", "usr/sbin", "run"):
            (root / directory).mkdir(parents=True)
        (root / "usr/sbin/corosync").touch()
        (root / "etc/corosync/authkey").write_bytes(b"k" * 128)
        self.now = 0.0
        self.takes_locks: Callable[[], bool] = lambda: True  # whether the file system takes mkdir and rmdir
        self.live = set(range(1, nodes + 1))
        self.down: set[int] = set()
        self.accept: Callable[[str], bool] = lambda _text: True
        self.effect: Callable[[str], None] = lambda _text: None
        self.answer: Callable[[list[str], str], str] = lambda _argv, said: said
        self.valid: Callable[[str], str] = lambda _text: ""
        self.later: list[tuple[float, Callable[[], None]]] = []  # what happens when its time has come
        self.journal: list[str] = []
        self.expected: int | None = None
        self.restarts = 0
        self.start_fails = ""
        self.version = "3.1.9"
        self.texts: list[str] = []  # every text that ran
        self.calls: list[list[str]] = []
        text = text_of(nodes, links)
        for path in (self.pve, self.host):
            path.write_text(text)
        self.running = text
        monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
        monkeypatch.setattr(pve_file, "has_quorum", lambda _root: self.quorate)

    def change(self, deadline_s: float = 20, expected_ids: Sequence[int] = (), **wanted: Any) -> Outcome:
        return corosync_change.apply(
            Wanted(**wanted), deadline_s, expected_ids, self.run, self.root, self.sleep, lambda: self.now
        )

    def plan(self, **wanted: Any) -> Outcome:
        return corosync_change.plan(Wanted(**wanted), self.run, self.root)

    @property
    def text(self) -> str:
        return self.pve.read_text()

    @property
    def quorate(self) -> bool:
        nodes = corosync_conf.parse(self.running).nodes()
        live = sum(node.votes for node in nodes if node.node_id in self.live)
        total = sum(node.votes for node in nodes) if self.expected is None else self.expected
        return live * 2 > total

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for at, event in self.later if at <= self.now]
        self.later = [(at, event) for at, event in self.later if at > self.now]
        for event in due:
            event()
        if self.quorate and self.pve.read_bytes() != self.host.read_bytes():
            shutil.copyfile(self.pve, self.host)
        self.reload()

    def reload(self) -> None:
        text = self.host.read_bytes().decode("utf-8", "surrogateescape")
        if text == self.running:
            return
        old, new = corosync_conf.parse(self.running), corosync_conf.parse(text)
        both = set(old.link_numbers()) & set(new.link_numbers())
        if both - corosync_edit.unchanged_links(old, new):
            self.journal.append("corosync[1]: error [CFG] To reconfigure an interface it must be deleted and recreated.")
            return
        if not self.accept(text):
            return
        self.running = text
        self.expected = None
        self.texts.append(text)
        self.effect(text)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        self.calls.append(list(argv))
        result = self._run(argv)
        return Result(result.rc, self.answer(list(argv), result.stdout), result.stderr)

    def _run(self, argv: Sequence[str]) -> Result:
        document = corosync_conf.parse(self.running)
        ids = sorted(self.live)
        match list(argv):
            case ["corosync-cmapctl"]:
                lines = [f"totem.config_version (u64) = {document.config_version}", "totem.cluster_name (str) = lab"]
                for number in ids:
                    lines.append(f"runtime.members.{number}.config_version (u64) = {document.config_version}")
                    lines.append(f"runtime.members.{number}.status (str) = joined")
                return Result(0, "\n".join(lines) + "\n", "")
            case ["corosync-quorumtool", "-s"]:
                votes = {node.node_id: node.votes for node in document.nodes()}
                lines = ["Node ID:          1", f"Quorate:          {'Yes' if self.quorate else 'No'}", ""]
                lines += [f"Expected votes:   {sum(votes.values())}", f"Total votes: {sum(votes[i] for i in ids)}"]
                lines += ["", "Membership information", "----"]
                lines += [f"         {number}          1 pve{number}" for number in ids]
                return Result(0 if self.quorate else 2, "\n".join(lines) + "\n", "")
            case ["corosync-quorumtool", "-e", votes]:
                self.expected = int(votes)
                return Result(0, "", "")
            case ["corosync-cfgtool", "-s"]:
                lines = []
                for number in document.link_numbers():
                    lines += [f"LINK ID {number} udp", "\taddr\t= x", "\tstatus:"]
                    state = "disconnected" if number in self.down else "connected"
                    lines += [f"\t\tnodeid: {i}:\t{'localhost' if i == 1 else state}" for i in ids]
                return Result(0, "\n".join(lines) + "\n", "")
            case ["corosync-cfgtool", "-R"]:
                return Result(0, "", "")
            case ["corosync", "-c", path, "-t"]:
                said = self.valid(Path(path).read_bytes().decode("utf-8", "surrogateescape"))
                return Result(8 if said else 0, "", said)
            case ["corosync", "-v"]:
                return Result(0, f"Corosync Cluster Engine, version '{self.version}'\n", "")
            case ["journalctl", *_]:
                return Result(0, "\n".join(self.journal) + "\n", "")
            case ["systemctl", "restart", "corosync.service"]:
                return Result(1, "", self.start_fails) if self.start_fails else self._restart()
            case ["systemctl", "show", *_] | ["ss" | "ha-manager", *_]:
                return Result(0, "", "")
            case ["mkdir" | "rmdir" | "touch", *_]:
                return run(argv) if self.takes_locks() else Result(1, "", f"{argv[0]}: cannot do '{argv[-1]}': Permission denied")
        raise AssertionError(f"unexpected command: {' '.join(argv)}")

    def _restart(self) -> Result:
        self.running = self.host.read_text()
        self.restarts += 1
        self.effect(self.running)
        return Result(0, "", "")
