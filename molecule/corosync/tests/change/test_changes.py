# SPDX-License-Identifier: Apache-2.0
"""Changes of corosync.conf on three live members: refused with nothing changed, done everywhere, or undone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corosync_nodes import Done, Look, Playbook, changed, plain

from lab.labs import Lab
from pveguard.formats import corosync_conf

CHANGE = "playbooks/corosync.yml"
#: Longer than CI has, which does the same with the real Corosync in namespaces (tests/corosync/test_membership.py).
pytestmark = pytest.mark.campaign
#: A member more than two adds this to the token (lab/cluster.py).
COEFFICIENT_MS = 125


def refused(done: Done, words: str, before: dict[str, Any], look: Look) -> None:
    assert done.returncode != 0 and words in plain(done), plain(done)[-3000:]
    after = look(*before)
    for name, seen in before.items():
        assert (after[name].cluster, after[name].host, after[name].running) == (seen.cluster, seen.host, seen.running), name


def test_hosts_of_two_clusters_in_one_group(in_order: Look, look: Look, playbook: Playbook, tmp_path: Path) -> None:
    before = in_order()
    both = tmp_path / "hosts.yml"
    both.write_text("second:\n  vars:\n    corosync_cluster_name: second\n  hosts:\n    pve3:\n")
    refused(playbook(CHANGE, inventory=both, corosync_token=5000), "pve3", before, look)
    # And where the members themselves say that they belong to another one.
    done = playbook(CHANGE, corosync_token=5000, corosync_cluster_name="second")
    refused(done, "pvelab", before, look)


def test_what_corosync_refuses_is_not_written(in_order: Look, look: Look, playbook: Playbook) -> None:
    done = playbook(CHANGE, corosync_logging={"debug": "banana"})
    refused(done, "corosync refuses the new corosync.conf", in_order(), look)


def test_a_wrong_address_is_not_written(in_order: Look, look: Look, playbook: Playbook) -> None:
    done = playbook(CHANGE, corosync_link_options=[{"number": 0, "addresses": {"pve3": "10.77.0.133"}}])
    refused(done, "link 0", in_order(), look)


def test_the_encryption_changes_only_on_demand(in_order: Look, look: Look, playbook: Playbook) -> None:
    before = in_order()
    wish = {"cipher": "aes256", "hash": "sha512"}
    refused(playbook(CHANGE, corosync_crypto=wish), "corosync_allow_crypto_change=true", before, look)
    done = playbook(CHANGE, corosync_crypto=wish, corosync_allow_crypto_change=True)
    assert done.returncode == 0, plain(done)[-3000:]
    assert all(corosync_conf.parse(seen.cluster or "").crypto == ("aes256", "sha512") for seen in in_order().values())


def test_the_key_is_rotated(in_order: Look, playbook: Playbook) -> None:
    (before,) = {seen.key for seen in in_order().values()}
    refused_ = playbook("playbooks/authkey.yml")
    assert refused_.returncode != 0 and "authkey_confirm=pvelab" in plain(refused_)
    done = playbook("playbooks/authkey.yml", authkey_confirm="pvelab")
    assert done.returncode == 0, plain(done)[-3000:]
    (after,) = {seen.key for seen in in_order().values()}
    assert after != before


def test_one_node_alone_may_change_all(in_order: Look, look: Look, playbook: Playbook) -> None:
    before = in_order()
    # What needs a restart of every member is refused with --limit.
    done = playbook(CHANGE, "--limit", "pve1", corosync_totem={"link_mode": "active"})
    refused(done, "are not in this run", before, look)
    done = playbook(CHANGE, "--limit", "pve1", corosync_token=3500)
    assert done.returncode == 0, plain(done)[-3000:]
    assert {seen.token_ms for seen in in_order().values()} == {3500 + COEFFICIENT_MS}


def wait_until_written(console: Callable[..., str], version: int) -> None:
    """Until a text with this config_version is on the first member's /etc/pve."""
    console(
        "pve1",
        f"for i in $(seq 6000); do grep -q 'config_version: {version}$' /etc/pve/corosync.conf && exit 0; sleep 0.05; done; "
        "exit 1",
        400,
    )


def cut_when_written(lab: Lab, console: Callable[..., str], version: int, nodes: list[str]) -> None:
    """Cut the ring of nodes as soon as a text with this config_version is on the first member's /etc/pve."""
    wait_until_written(console, version)
    lab.set_ring(nodes, False)


def test_a_run_that_is_killed_before_the_restarts_is_finished_by_the_next(
    in_order: Look, console: Callable[..., str], background: Any, playbook: Playbook
) -> None:
    def invocations() -> list[str]:
        shown = [console(name, "systemctl show corosync -p InvocationID") for name in before]
        return [re.findall(r"InvocationID=(\w+)", text)[-1] for text in shown]

    before = in_order()
    wish = {"link_mode": "rr"}
    started = invocations()
    change = background(CHANGE, corosync_totem=wish)
    wait_until_written(console, before["pve1"].version + 1)
    os.killpg(change.pid, signal.SIGKILL)
    change.communicate()
    in_order()
    assert invocations() == started, "it was killed too late"
    said = plain(playbook(CHANGE))
    for name in before:
        assert f"totem.link_mode is in corosync.conf and takes effect on {name} when" in said, said[-3000:]
    done = playbook(CHANGE, corosync_totem=wish)
    assert done.returncode == 0 and changed(done) == len(before), plain(done)[-3000:]
    assert not set(invocations()) & set(started)
    again = playbook(CHANGE, corosync_totem=wish)
    assert again.returncode == 0 and changed(again) == 0 and "WARNING" not in plain(again), plain(again)[-3000:]
    in_order()


def all_live(look: Look) -> None:
    """Wait until all three are members, with one text on /etc/pve."""
    end = time.monotonic() + 120
    while True:
        seen = look().values()
        if all(each.quorate and each.live == [1, 2, 3] for each in seen) and len({each.host for each in seen}) == 1:
            return
        assert time.monotonic() < end, [each.live for each in seen]
        time.sleep(1)


def test_the_ring_of_one_is_cut_during_a_change(
    lab: Lab, in_order: Look, look: Look, console: Callable[..., str], background: Any, playbook: Playbook
) -> None:
    before = in_order()["pve1"]
    change = background(CHANGE, corosync_token=4000)
    try:
        cut_when_written(lab, console, before.version + 1, ["pve3"])
        output, _ = change.communicate(timeout=600)
    finally:
        lab.set_ring(["pve3"], True)
    assert change.returncode != 0, output
    assert "The former text was" in " ".join(output.split()), output
    # The one that was cut off got the text at its return, and nobody told its Corosync.
    all_live(look)
    again = playbook(CHANGE)
    assert again.returncode == 0, plain(again)[-3000:]
    after = in_order(seconds=30)
    assert {seen.token_ms for seen in after.values()} == {before.token_ms}
    # The same text but for its config_version, which no member has seen before.
    assert after["pve1"].version > before.version + 1
    old, new = corosync_conf.parse(before.cluster or ""), corosync_conf.parse(after["pve1"].cluster or "")
    old.set("totem", "config_version", new.config_version or 0)
    assert old.text() == new.text()


def test_the_quorum_is_lost_during_a_change(
    lab: Lab, in_order: Look, look: Look, console: Callable[..., str], background: Any, playbook: Playbook
) -> None:
    before = in_order()["pve1"]
    change = background(CHANGE, corosync_token=4500)
    try:
        cut_when_written(lab, console, before.version + 1, ["pve1"])
        output, _ = change.communicate(timeout=600)
        kept = console("pve1", "cat /var/lib/pveguard/corosync.conf.rollback")
    finally:
        lab.set_ring(["pve1"], True)
    said = " ".join(output.split())
    assert change.returncode != 0 and "could NOT be put back" in said and "corosync.conf.rollback" in said, output
    assert corosync_conf.parse(kept).token_ms == corosync_conf.parse(before.cluster or "").token_ms
    # All have the new text, and not all run it: the second run finishes it.
    all_live(look)
    again = playbook(CHANGE, corosync_token=4500)
    assert again.returncode == 0, plain(again)[-3000:]
    assert {seen.token_ms for seen in in_order().values()} == {4500 + COEFFICIENT_MS}


