# SPDX-License-Identifier: Apache-2.0
"""A member whose Corosync has not run since its daemon started, with a daemon: what is seen, and that nothing is written."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.pveguard.cluster import corosync_compare, recovery_plan
from ansible.module_utils.pveguard.formats import corosync_edit

from lab.tests.doubles.harness import wait_for, why_not

from .cluster_facts import NAME, conf
from .nodes import Member, Switch

pytestmark = [pytest.mark.slow, pytest.mark.root]

FACTS = (
    "import socket\nfrom pveguard.corosync import corosync_info\nfrom pveguard.pmxcfs import pmxcfs\n"
    "result = {'hostname': socket.gethostname(), 'pmxcfs': pmxcfs.collect(), 'corosync': corosync_info.collect(),\n"
    "          'packages': {'pve-cluster': '9', 'corosync': '3'}}"
)


def facts(node: Member) -> dict[str, Any]:
    return node.python(FACTS)


def judged(node: Member) -> tuple[Any, ...]:
    found = node.python("from pveguard.pmxcfs import pmxcfs\nresult = pmxcfs.collect()")
    assert found["error"] is None, found
    return found["mode"], found["quorate"], found["writable"], found["met_corosync"]


def restart(node: Member, *options: str) -> None:
    node.systemctl("stop", "pve-cluster.service")
    node.start(*options)
    wait_for("the mount", (node.pve / ".version").exists)


def unconnected(number: int) -> Member:
    """A node with content of its own and a corosync.conf in its database, its daemon started and its Corosync not."""
    node = Member(number)
    (node.pve / "storage.cfg").write_text(f"of pve{number}\n")
    node.cluster_conf.write_text(conf())
    restart(node)
    return node


@pytest.fixture
def nodes() -> Iterator[list[Member]]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made: list[Member] = []
    try:
        made += [unconnected(number) for number in (1, 2, 3)]
        yield made
    finally:
        for node in made:
            node.close()


def test_the_facts_and_the_lock(nodes: list[Member]) -> None:
    node = nodes[0]
    assert judged(node) == ("cluster", False, False, False)
    version = node.version()
    taken = node.python(
        "from pveguard.pmxcfs import run_lock\n"
        "holder = {'run_id': 'one', 'who': 'ann@desk'}\n"
        "o = run_lock.acquire(holder)\nresult = {'acquired': o.acquired, 'changed': o.changed}"
    )
    assert taken == {"acquired": True, "changed": True}
    assert (node.root / "run/pveguard/run.lock").exists() and node.version() == version
    released = node.python("from pveguard.pmxcfs import run_lock\nresult = {'released': run_lock.release('one')}")
    assert released == {"released": True}
    refused = node.python("from pveguard.pmxcfs import pve_file\npve_file.require_writable()\nresult = {}")
    assert "read-only" in refused["error"]
    # The same node in local mode, as an operator may start it.
    restart(node, "-l")
    assert judged(node) == ("local", None, True, None)
    # The file that is there counts from the next start on, and so does its removal.
    node.cluster_conf.unlink()
    assert judged(node) == ("local", None, True, None)
    restart(node)
    assert judged(node) == ("local", None, True, None)


def test_nodes_of_different_content_are_not_brought_together(nodes: list[Member]) -> None:
    """Each wrote the same number of times, so that the clock would decide whose content stays."""
    for node in nodes:
        (node.root / "etc/corosync/authkey").write_bytes(b"key")
    versions = {node.version() for node in nodes}
    assert len(versions) == 1
    known = {node.name: facts(node) for node in nodes}
    wanted = dict.fromkeys(known, NAME)
    (compared,) = corosync_compare.compare(known, wanted)
    text = "\n".join(compared["lines"])
    assert "corosync does not run, nor has it since the daemon started" in text
    assert "works alone" not in text and "aside" not in text
    (plan,) = recovery_plan.plan(known, wanted)
    assert plan["steps"] == []
    assert any("have the same root version" in each and "the clock decides" in each for each in plan["open"])


def test_a_daemon_that_hangs_is_not_writable_and_holds_nobody(nodes: list[Member]) -> None:
    node = nodes[0]
    os.kill(node.pid_of_daemon, signal.SIGSTOP)
    try:
        found = node.python(
            "from pveguard.pmxcfs import members, pmxcfs\nmembers.ANSWER_S = 1.0\nresult = pmxcfs.collect()"
        )
    finally:
        os.kill(node.pid_of_daemon, signal.SIGCONT)
    assert "no answer within 1 s" in found["error"]
    assert (found["mode"], found["quorate"], found["writable"]) == ("cluster", None, False)


@pytest.mark.skipif(shutil.which("corosync") is None, reason="needs corosync")
def test_once_it_has_met_its_corosync(nodes: list[Member]) -> None:
    switch = Switch()
    try:
        node = nodes[0]
        for each in nodes:
            switch.plug(each)
        # Above the version that its host has by now.
        text = corosync_edit.render_new(NAME, [node.listed()], config_version=9)
        restart(node, "-l")
        node.cluster_conf.write_text(text)
        restart(node)
        assert judged(node) == ("cluster", False, False, False)
        (node.root / "etc/corosync/authkey").write_bytes(os.urandom(256))
        node.systemctl("start", "corosync.service")
        wait_for("quorum", node.quorate)
        wait_for("the file system to take writes", lambda: judged(node) == ("cluster", True, True, True))
        node.systemctl("stop", "corosync.service")
        wait_for("the loss of quorum", lambda: judged(node) == ("cluster", False, False, True))
    finally:
        switch.close()
