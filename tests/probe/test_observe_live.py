# SPDX-License-Identifier: Apache-2.0
"""What a probe sees is what the members see: real corosync and the double of pmxcfs in namespaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.tests.doubles.harness import wait_for
from tests.corosync.nodes import Member
from tests.corosync.test_leave_end_to_end import changed

from .cluster import NAME, NUMBER, make, members, place, run, watch1

__all__ = ["members", "place", "watch1"]  # the fixtures
pytestmark = [pytest.mark.slow, pytest.mark.root]

#: The window begins with a first sample and ends one sample after it is told to.
MEASURE = """
import functools, pathlib
from pveguard.writes import pmxcfs_writes
sample = pmxcfs_writes.Sampler.sample
pmxcfs_writes.Sampler.sample = lambda self: (sample(self), pathlib.Path('/run/observing').touch())[0]
looks = 0
def clock():
    global looks
    looks += pathlib.Path('/run/enough').exists()
    return float(looks > 2)  # it is read twice before each sample
pmxcfs_writes.observe = functools.partial(pmxcfs_writes.observe, clock=clock)
result = pmxcfs_writes.measure(window_seconds=1, window_on='any', method='database', sample_seconds=0.2)['window']
"""


def a_probe(nodes: list[Member], watch1: Callable[[list[Member]], Member]) -> Member:
    probe = watch1(nodes)
    node = {**probe.listed(), "votes": 0}
    listed = nodes[0].change(cluster_name="pvelab", nodes=[node])
    assert listed.get("error") is None, listed
    result = probe.member(
        state="joined", conf=listed["after"], authkey=nodes[0].authkey(), expected_ids=[*listed["live"], NUMBER], tree_sha256=None
    )
    assert result.get("error") is None, result
    return probe


def test_the_figures_of_the_probe_are_those_of_the_members(
    members: Callable[..., Member], watch1: Callable[[list[Member]], Member]
) -> None:
    nodes = make(members, 2)
    probe = a_probe(nodes, watch1)
    everyone = [*nodes, probe]
    for node in nodes:
        (node.pve / f"nodes/{node.name}").mkdir(parents=True)
    wait_for("the same versions", lambda: len({node.version() for node in everyone}) == 1)
    before = probe.version()
    with ThreadPoolExecutor() as pool:
        windows = [pool.submit(node.python, MEASURE) for node in everyone]
        # Said after the first reading.
        wait_for("all windows", lambda: all((node.root / "run/observing").exists() for node in everyone))
        for number in range(5):
            for node in nodes:
                (node.pve / f"nodes/{node.name}/lrm_status").write_text(f"{number}\n")
        (nodes[1].pve / "user.cfg").write_text("user:x@pve:1:0:::::\n")
        wait_for("the same versions", lambda: len({node.version() for node in everyone}) == 1)
        for node in everyone:
            (node.root / "run/enough").touch()
        seen = [window.result() for window in windows]

    def told(window: dict[str, Any]) -> dict[str, Any]:
        files = sorted((each["path"], each["node"]) for each in window["files"])
        return {"transactions": window["transactions"], "files": files}

    assert told(seen[2])["transactions"] == probe.version() - before > 10
    assert told(seen[0]) == told(seen[1]) == told(seen[2])
    assert told(seen[2])["files"] == [
        ("nodes/pve1/lrm_status", "pve1"), ("nodes/pve2/lrm_status", "pve2"), ("user.cfg", "pve2"),
    ]  # fmt: skip


@pytest.mark.campaign
def test_observe_yml_reports_the_cluster_as_the_probe_sees_it(
    members: Callable[..., Member], watch1: Callable[[list[Member]], Member], place: Path
) -> None:
    nodes = make(members, 2)
    probe = a_probe(nodes, watch1)
    (nodes[0].pve / "nodes/pve1").mkdir(parents=True)
    nodes[0].spawn("bash", "-c", "while :; do date > /etc/pve/nodes/pve1/lrm_status; sleep 0.5; done")
    said = json.dumps({
        "SYSLOG_IDENTIFIER": "corosync", "__MONOTONIC_TIMESTAMP": str(10**17), "MESSAGE": "  [TOTEM ] Retransmit List: 5",
    })  # fmt: skip
    (probe.root / "run/bin/journalctl").write_text(f"#!/bin/sh\n[ \"$1\" = --sync ] || echo '{said}'\n")

    options = {"probe_observe_minutes": 0.2, "probe_observe_method": "database", "write_report_disks": False}
    code, output = run(place, nodes, probe, playbook="observe.yml", **options)
    assert code == 0 and changed(output) == 0, output
    report = json.loads((place / "reports/latest.json").read_text())
    assert set(report["nodes"]) == {"pve1", "pve2", NAME}
    seen = report["nodes"][NAME]
    window = seen["writes"]["observed"]
    assert window["seconds"] >= 12 and window["transactions"] > 0
    assert [each["node"] for each in window["writers"]] == ["pve1"]
    assert seen["ring"]["counts"]["retransmit"] == 1 and seen["cluster"]["probe"] is True
    assert report["nodes"]["pve1"]["cluster"]["members"] == 2 and report["nodes"]["pve1"]["ring"] is None
    page = (place / "reports/index.html").read_text()
    assert f"The ring as {NAME} saw it for" in page and f"now from {NAME}" in page
    metrics = (place / "reports/pveguard.prom").read_text()
    assert f'pveguard_ring_events{{node="{NAME}",kind="retransmit"}} 1' in metrics
    # A window of seconds gives no rate.
    assert "pveguard_writer_transactions_per_second{" not in metrics
    assert f'pveguard_pmxcfs_transactions{{node="{NAME}",when="after"' in metrics

    # A probe that is no member has nothing to tell.
    probe.systemctl("stop", "corosync.service")
    code, output = run(place, nodes, probe, playbook="observe.yml", **options)
    assert code != 0 and f"{NAME} is not a live member of pvelab" in output, output
