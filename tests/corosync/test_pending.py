# SPDX-License-Identifier: Apache-2.0
"""What waits for a restart of Corosync is known until that restart, however the run ended that wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.corosync import corosync_info, corosync_pending, corosync_restart

from .cluster import text_of

KEYS = ["totem.link_mode"]


class Node:
    """A node whose file has a version and whose Corosync runs since ``starts`` starts; 0: it does not run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.starts = 1
        self.asked = 0
        (root / "etc/corosync").mkdir(parents=True)
        self.write(4)

    def write(self, version: int) -> None:
        (self.root / corosync_pending.CONF).write_text(text_of(3, version=version))

    def run(self, argv: Any, **_: Any) -> Result:
        assert argv[:3] == ["systemctl", "show", "corosync.service"]
        self.asked += 1
        state = "active" if self.starts else "inactive"
        return Result(0, f"InvocationID={'abcdef'[self.starts] if self.starts else ''}\nActiveState={state}\n", "")

    def announce(self, keys: list[str] = KEYS) -> bool:
        return corosync_pending.announce(keys, self.run, self.root)

    def withdraw(self) -> bool:
        return corosync_pending.withdraw(self.run, self.root)

    @property
    def waiting(self) -> list[str]:
        return corosync_pending.waiting(self.run, self.root)

    @property
    def note(self) -> Path:
        return self.root / corosync_pending.NOTE


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_it_waits_from_the_text_until_the_restart(node: Node) -> None:
    assert node.waiting == [] and node.asked == 0, "systemd is asked only where there is a note"
    assert node.announce()
    assert node.waiting == [], "the text has not come yet"
    node.write(5)
    assert node.waiting == KEYS
    node.write(7)
    assert node.waiting == KEYS
    node.starts += 1
    assert node.waiting == []


def test_a_corosync_that_does_not_run_takes_everything_at_its_start(node: Node) -> None:
    node.starts = 0
    assert not node.announce() and not node.note.exists()
    node.starts = 1
    node.announce()
    node.write(5)
    node.starts = 0
    assert node.waiting == []


def test_what_was_put_back_waits_where_it_had_been_taken(node: Node) -> None:
    node.announce()
    node.write(5)
    node.write(6)  # the former text again
    assert node.withdraw() and node.waiting == [] and not node.note.exists()
    assert not node.withdraw()

    node.announce()
    node.write(7)
    node.starts += 1  # it took the change
    node.write(8)
    assert node.withdraw() and node.waiting == KEYS
    node.starts += 1
    assert node.waiting == []


def test_what_waited_before_goes_on_waiting(node: Node) -> None:
    node.announce(["quorum.wait_for_all"])
    node.write(5)
    node.announce()
    assert node.waiting == ["quorum.wait_for_all"]
    node.write(6)
    assert node.waiting == ["quorum.wait_for_all", "totem.link_mode"]
    node.write(7)
    node.withdraw()
    assert node.waiting == ["quorum.wait_for_all"]
    # What a restart has settled is not carried on.
    node.starts += 1
    node.announce()
    node.write(8)
    assert node.waiting == KEYS


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"keys": [1]}', json.dumps({"keys": [], "config_version": 1, "invocation": "b", "former": 3})]
)
def test_a_note_of_another_form_says_nothing(node: Node, content: str) -> None:
    node.announce()
    node.write(5)
    node.note.write_text(content)
    assert node.waiting == [] and not node.withdraw()
    node.announce()
    node.write(6)
    assert node.waiting == KEYS


def test_without_a_readable_file_or_systemd_nothing_waits(node: Node) -> None:
    node.announce()
    (node.root / corosync_pending.CONF).write_text("totem {\n")
    assert node.waiting == []

    def missing(*_: Any, **__: Any) -> Result:
        raise CommandMissing("systemctl")

    assert corosync_pending.waiting(missing, node.root) == [] and not corosync_pending.announce(KEYS, missing, node.root)


def test_the_facts_of_the_node_say_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Any, **more: Any) -> Result:
        return node.run(argv) if argv[0] == "systemctl" else Result(1, "", "")

    (node.root / "usr/sbin").mkdir(parents=True)
    (node.root / "usr/sbin/corosync").touch()
    assert corosync_info.collect(run=run, root=node.root)["restart_pending"] == []
    node.announce()
    node.write(5)
    assert corosync_info.collect(run=run, root=node.root)["restart_pending"] == KEYS


def test_the_module(run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(corosync_pending, "announce", lambda keys: said.append(keys))
    monkeypatch.setattr(corosync_pending, "withdraw", lambda: said.append("withdraw"))
    for name in ("judge", "restart"):
        monkeypatch.setattr(corosync_restart, name, lambda *_: pytest.fail("it restarts"))
    for check_mode in (True, False):
        for state in ("announced", "withdrawn"):
            done = run_module("corosync_restart", _ansible_check_mode=check_mode, state=state, keys=KEYS)
            assert done == {**done, "changed": False} and "failed" not in done
        assert said == ([] if check_mode else [KEYS, "withdraw"])
