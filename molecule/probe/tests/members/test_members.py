# SPDX-License-Identifier: Apache-2.0
"""A probe joins, observes, dies, returns and leaves, and the members have their quorum and their processes all the time."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from corosync_nodes import Look, Playbook, changed, plain

from lab.labs import Lab

Console = Callable[..., str]
MEMBERS = ("pve1", "pve2", "pve3")
PROBE, PROBE_ID = "pve4", 1004
#: Writes of the test, each one transaction, while the probe and a member count.
BURST = 20
#: The quorum of a member every second, one line each, until its script is removed.
WATCH = r"""
date +%s > /run/probe-watch.since
cat > /run/probe-watch <<'EOF'
while [ -e /run/probe-watch ]; do
    LC_ALL=C corosync-quorumtool -s 2>/dev/null | awk '
        /^Quorate:/ { q = $2 } /^Expected votes:/ { e = $3 } /^Total votes:/ { t = $3 } /^Quorum:/ { n = $2 }
        /^ +[0-9]+ +[0-9]+ / { i = i "," $1 } END { print q, e, t, n, substr(i, 2) }' >> /run/probe-watch.log
    sleep 1
done
EOF
setsid bash /run/probe-watch > /dev/null 2>&1 < /dev/null &
"""
PROCESSES = "systemctl show -p Id,MainPID,ExecMainStartTimestampMonotonic corosync pve-cluster"


def everywhere(console: Console, script: str, seconds: float = 120) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(MEMBERS, pool.map(lambda node: console(node, script, seconds), MEMBERS), strict=True))


def until(console: Console, node: str, what: str, condition: str, seconds: int = 180) -> None:
    """Wait for a shell condition on a node, on the node."""
    script = f"for i in $(seq {seconds}); do {{ {condition}; }} && exit 0; sleep 1; done; echo 'in vain: {what}'; exit 1"
    console(node, f"( {script} )", 3 * seconds)


def in_membership(number: int) -> str:
    return f"corosync-quorumtool -s 2>/dev/null | grep -Eq '^ +{number} +[0-9]+ '"


@pytest.fixture(scope="module")
def watched(lab: Lab, in_order: Look, console: Console) -> dict[str, str]:
    """The members are watched from here on; the processes of each of them."""
    in_order()
    everywhere(console, WATCH)
    before = everywhere(console, PROCESSES)
    lab.up(nodes=4, plain=[PROBE])
    return before


@pytest.fixture(scope="module")
def joined(watched: dict[str, str], playbook: Playbook) -> None:
    done = playbook("playbooks/probe.yml", probe_state="present")
    assert done.returncode == 0, plain(done)[-4000:]


def test_it_is_a_member_without_a_vote(joined: None, look: Look, console: Console) -> None:
    seen = look(*MEMBERS, PROBE)
    assert {tuple(each.live) for each in seen.values()} == {(1, 2, 3, PROBE_ID)}
    assert len({each.key for each in seen.values()}) == 1 and len({each.cluster for each in seen.values()}) == 1
    said = console("pve2", "LC_ALL=C corosync-quorumtool -s")
    votes = {line.split(":")[0]: line.split()[-1] for line in said.splitlines() if line.startswith(("Expected", "Total"))}
    assert votes == {"Expected votes": "3", "Total votes": "3"}
    console(
        PROBE,
        "openssl x509 -noout -in /etc/pve/nodes/pve4/pve-ssl.pem && test -d /var/lib/rrdcached/db/pve-node-9.0 && "
        "! systemctl list-unit-files | grep -Eq '^(pve-ha-|watchdog-mux)' && test ! -e /run/watchdog-mux.active",
    )


def test_a_second_run_changes_nothing(joined: None, playbook: Playbook) -> None:
    again = playbook("playbooks/probe.yml", probe_state="present")
    assert again.returncode == 0 and changed(again) == 0, plain(again)[-4000:]


@pytest.fixture(scope="module")
def figures(joined: None, console: Console, ephemeral: Path, playbook: Playbook) -> dict[str, Any]:
    """The windows of the probe (from the report) and of a member, with the same writes of pve2 in both."""
    kept = ephemeral / "member.json"
    with ThreadPoolExecutor() as pool:
        observing = pool.submit(playbook, "playbooks/observe.yml", probe_observe_minutes=2.5)
        until(console, PROBE, "the probe to count", "grep -qx 1 /etc/pve/.debug")
        counting = pool.submit(playbook, "molecule/probe/figures.yml", figures_file=str(kept))
        until(console, "pve1", "the member to count", "grep -qx 1 /etc/pve/.debug", 90)
        console("pve2", f"touch /etc/pve/molecule-burst; for i in $(seq {BURST}); do echo $i >> /etc/pve/molecule-burst; done")
        counted = counting.result()
        assert counted.returncode == 0, plain(counted)[-3000:]
        observed = observing.result()
    assert observed.returncode == 0 and changed(observed) == 0, plain(observed)[-4000:]
    report = json.loads((ephemeral / "reports/latest.json").read_text())
    return {
        "member": json.loads(kept.read_text()),
        "report": report,
        "probe": report["nodes"][PROBE]["writes"]["observed"],
        "page": (ephemeral / "reports/index.html").read_text(),
    }


def burst(window: dict[str, Any]) -> tuple[Any, ...]:
    (found,) = [each for each in window["files"] if each["path"] == "molecule-burst"]
    return found["node"], found["transactions_at_least"], found["exact"]


def test_the_figures_of_the_probe_are_those_of_a_member(figures: dict[str, Any]) -> None:
    probe, member = figures["probe"], figures["member"]
    assert probe["attribution"] == member["attribution"] == "journal"
    assert burst(probe) == burst(member) and burst(probe)[0] == "pve2" and burst(probe)[1] >= BURST and burst(probe)[2] is True
    # The same nodes and causes, as long as both counted.
    for key, name in (("writers", "node"), ("classes", "class")):
        assert {each[name] for each in member[key]} <= {each[name] for each in probe[key]}
    assert probe["transactions"] >= member["transactions"] > BURST


def test_the_report_has_the_view_of_the_cluster(figures: dict[str, Any]) -> None:
    node = figures["report"]["nodes"][PROBE]
    assert node["cluster"]["probe"] is True and figures["report"]["nodes"]["pve1"]["cluster"]["members"] == 3
    ring = node["ring"]
    assert ring["seconds"] >= 150 and ring["left"] == [] and ring["counts"]["quorum_lost"] == 0
    assert f"The ring as {PROBE} saw it for" in figures["page"] and f"now from {PROBE}" in figures["page"]


def test_no_member_had_its_debug_log_on_for_it(figures: dict[str, Any], console: Console) -> None:
    for node in ("pve2", "pve3"):
        console(node, "grep -qx 0 /etc/pve/.debug && ! journalctl -q -b -t pmxcfs -o cat | grep -q backend_write_inode")
    console(PROBE, "grep -qx 0 /etc/pve/.debug")


@pytest.fixture(scope="module")
def returned(joined: None, lab: Lab, console: Console) -> None:
    lab.power_cut([PROBE])
    until(console, "pve1", "the members to miss it", f"! {in_membership(PROBE_ID)}")
    console("pve1", "echo without it > /etc/pve/molecule-meanwhile")
    lab.start([PROBE])
    until(console, "pve1", "its return", in_membership(PROBE_ID))


def test_it_catches_up_after_a_power_cut(returned: None, console: Console) -> None:
    until(console, PROBE, "what was written meanwhile", "grep -qx 'without it' /etc/pve/molecule-meanwhile")


@pytest.fixture(scope="module")
def left(returned: None, playbook: Playbook) -> None:
    done = playbook("playbooks/probe.yml", probe_state="absent")
    assert done.returncode == 0, plain(done)[-4000:]


def test_nothing_of_it_stays(left: None, in_order: Look, console: Console, playbook: Playbook) -> None:
    for seen in in_order(*MEMBERS).values():
        assert PROBE not in (seen.cluster or "")
    console("pve1", f"test ! -e /etc/pve/nodes/{PROBE}")
    console(
        PROBE,
        "mountpoint -q /etc/pve && test ! -e /etc/pve/corosync.conf && test ! -e /etc/pve/molecule-meanwhile && "
        "test ! -e /etc/corosync/authkey && ! systemctl is-active --quiet corosync && "
        "test ! -e /var/lib/rrdcached/db/pve-node-9.0",
    )
    again = playbook("playbooks/probe.yml", probe_state="absent")
    assert again.returncode == 0 and changed(again) == 0, plain(again)[-3000:]


def test_the_members_noticed_nothing(watched: dict[str, str], left: None, console: Console) -> None:
    samples = everywhere(console, "rm /run/probe-watch; sleep 2; sort /run/probe-watch.log | uniq -c")
    for node, text in samples.items():
        memberships = set()
        for line in text.strip().splitlines():
            _, quorate, expected, total, quorum, live = line.split()
            assert (quorate, expected, total, quorum) == ("Yes", "3", "3", "2"), f"{node}: {text}"
            memberships.add(live)
        assert memberships == {"1,2,3", f"1,2,3,{PROBE_ID}"}, f"{node}: {text}"
    assert everywhere(console, PROCESSES) == watched
    # And what their Corosync says itself since then: quorum was never lost, and nobody but the probe came or went.
    said = everywhere(
        console,
        'since=$(cat /run/probe-watch.since); journalctl -q -b -u corosync -o cat --since "@$since" | '
        "grep -E 'non-primary|A new membership' || true",
    )
    for node, text in said.items():
        assert "non-primary" not in text, f"{node}: {text}"
        for line in text.splitlines():
            assert line.rstrip().endswith((f"joined: {PROBE_ID}", f"left: {PROBE_ID}")), f"{node}: {text}"
