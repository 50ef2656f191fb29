# SPDX-License-Identifier: Apache-2.0
"""Copies that have drifted apart, and what recover.yml mends after it was asked."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest
from corosync_nodes import Done, Look, Playbook, plain

from lab.labs import Lab
from pveguard.formats import corosync_conf

Console = Callable[..., str]
HOST = "/etc/corosync/corosync.conf"


def edit(console: Console, node: str, text: str) -> None:
    """The documented way by hand, on /etc/pve."""
    console(
        node,
        f"printf %s {shlex.quote(text)} > /etc/pve/corosync.conf.new && mv /etc/pve/corosync.conf.new /etc/pve/corosync.conf",
    )


def with_version(text: str, version: int, note: str = "") -> str:
    document = corosync_conf.parse(text)
    document.set("totem", "config_version", version)
    return document.text() + (f"# {note}\n" if note else "")


def differences(playbook: Playbook) -> str:
    return plain(playbook("playbooks/assess.yml"))


@pytest.mark.campaign
def test_one_that_was_away_during_three_edits(
    lab: Lab, in_order: Look, console: Console, playbook: Playbook, recover: Callable[[], Done]
) -> None:
    before = in_order()["pve1"]
    lab.power_cut(["pve3"])
    for number in (1, 2, 3):
        edit(console, "pve1", with_version(before.cluster or "", before.version + number, f"edit {number}"))
    lab.start(["pve3"])
    # It meets the others with its old text, and Corosync gives up ("Received config version ... Exiting"): without quorum
    # the daemon gets no newer one.
    console("pve3", "for i in $(seq 150); do systemctl is-failed -q corosync && exit 0; sleep 1; done; exit 1", 180)
    done = recover()
    assert done.returncode == 0, plain(done)[-4000:]
    after = in_order()
    assert all(seen.version == before.version + 3 for seen in after.values())
    assert (after["pve3"].host or "").endswith("# edit 3\n")


@pytest.fixture(scope="module")
def recovered(
    in_order: Look, look: Look, console: Console, playbook: Playbook, recover: Callable[[], Done]
) -> dict[str, Any]:
    """Planted at once: another text of the same version, a newer one, and one with which Corosync cannot start."""
    before = in_order()["pve1"]
    text = before.cluster or ""
    broken = text.replace("}", "", 1)
    console(
        "pve3",
        f"printf %s {shlex.quote(broken)} > {HOST}; corosync -c {HOST} -t && exit 1; systemctl restart corosync; true",
    )
    # A daemon copies after every change of the membership: the other two are planted behind it. A write that is
    # answered tells that it has finished with the change.
    end = time.monotonic() + 120
    while not all(seen.quorate and seen.live == [1, 2] for seen in look("pve1", "pve2").values()):
        assert time.monotonic() < end
        time.sleep(1)
    for node, planted in (
        ("pve1", with_version(text, before.version, "equal version, another text")),
        ("pve2", with_version(text, before.version + 4, "newer than the cluster's")),
    ):
        path = f"/etc/pve/molecule-{node}"
        answered = f"for i in $(seq 60); do mkdir -p {path} && rmdir {path} && break; sleep 1; done; [ ! -e {path} ]"
        console(node, f"{answered} && printf %s {shlex.quote(planted)} > {HOST}")
    return {"before": before, "said": differences(playbook), "done": recover()}


def test_each_difference_is_named(recovered: dict[str, Any]) -> None:
    said = recovered["said"]
    version = recovered["before"].version
    assert str(version + 4) in said and all(name in said for name in ("pve1", "pve2", "pve3")), said[-3000:]


def test_it_is_mended_with_a_version_above_all(recovered: dict[str, Any], in_order: Look) -> None:
    done = recovered["done"]
    assert done.returncode == 0, plain(done)[-4000:]
    after = in_order(seconds=300)
    before = recovered["before"]
    assert after["pve1"].version > before.version + 4
    assert with_version(after["pve1"].cluster or "", before.version) == before.cluster


def test_a_second_time_there_is_nothing_to_recover(recovered: dict[str, Any], in_order: Look, playbook: Playbook) -> None:
    in_order()
    again = playbook("playbooks/recover.yml")
    assert again.returncode == 0 and "nothing to recover" in plain(again), plain(again)[-3000:]


@pytest.mark.campaign
def test_an_address_that_was_pushed_by_hand_cuts_nobody_off(
    in_order: Look, look: Look, console: Console, playbook: Playbook
) -> None:
    before = in_order()["pve1"]
    edit(console, "pve1", with_version(before.cluster or "", before.version + 1).replace("10.77.0.3\n", "10.77.0.133\n"))
    # The daemons take it everywhere; Corosync refuses to give a link another address while it runs.
    console("pve1", f"for i in $(seq 120); do grep -q 10.77.0.133 {HOST} && break; sleep 0.5; done; corosync-cfgtool -R; true")
    seen = look()
    assert all(each.quorate and each.live == [1, 2, 3] for each in seen.values())
    assert str(before.version + 1) in differences(playbook)
    # The former text with a higher version is the way back.
    edit(console, "pve1", with_version(before.cluster or "", before.version + 2))
    console(
        "pve1",
        f"for i in $(seq 60); do corosync-cmapctl -g totem.config_version | grep -q '= {before.version + 2}$' && exit 0\n"
        f"sleep 1; cmp -s /etc/pve/corosync.conf {HOST} && corosync-cfgtool -R; done; exit 1",
        180,
    )
    after = in_order()
    assert after["pve3"].version == before.version + 2 and "10.77.0.133" not in (after["pve3"].host or "")
