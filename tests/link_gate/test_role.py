# SPDX-License-Identifier: Apache-2.0
"""The role itself, run by ansible-playbook on three nodes that are network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.link_gate import network
from tests.link_gate.network import Faults

pytestmark = [pytest.mark.root, pytest.mark.slow]

HOSTS = {"n1": "10.99.8.1", "n2": "10.99.8.2", "n3": "10.99.8.3"}
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Look at the links
      ansible.builtin.include_role:
        name: link_gate
      vars:
        link_gate_duration: 3
    - name: Go on
      ansible.builtin.debug:
        msg: joined
    - name: Advise
      ansible.builtin.debug:
        var: hostvars | pveguard_token_advice(ansible_play_hosts_all)
      run_once: true
  # Also of a host that was refused.
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Keep the results
      ansible.builtin.copy:
        dest: "{{ results }}"
        mode: "0600"
        content: "{{ dict(groups.all | zip(groups.all | map('extract', hostvars, 'link_gate_result'))) | to_json }}"
      check_mode: false
"""

Run = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, Any]]]


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def spaces(faults: Faults) -> Iterator[dict[str, str]]:
    with network.ring("lgs", HOSTS, {"n3": faults}) as made:
        yield made


@pytest.fixture
def run(spaces: dict[str, str], faults: Faults, tmp_path: Path) -> Run:
    """Run the role: ``run("--check", n1="adopt", n2="join")`` names what the plan says of each node."""
    faults.__dict__.update(Faults().__dict__)

    def play(*arguments: str, **actions: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        hosts: dict[str, Any] = {}
        for host, address in HOSTS.items():
            python = tmp_path / f"python-{host}"
            python.write_text(f'#!/bin/sh\nexec ip netns exec {spaces[host]} {sys.executable} "$@"\n')
            python.chmod(0o700)
            hosts[host] = {
                "ansible_connection": "local",
                "ansible_python_interpreter": str(python),
                "corosync_cluster_name": "ring",
                "corosync_links": [address],
                **({"pveguard_plan": {"action": actions[host]}} if host in actions else {}),
            }
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        (tmp_path / "play.yml").write_text(PLAY)
        results = tmp_path / "results.json"
        command = [
            *(str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(tmp_path / "hosts.yml")),
            *(str(tmp_path / "play.yml"), "-e", f"results={results}", *arguments),
        ]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(network.ROOT / "ansible.cfg"), "NO_COLOR": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert results.exists(), done.stdout + done.stderr
        return done, json.loads(results.read_text())

    return play


#: Bounds that a busy machine keeps.
BOUNDS = ("-e", '{"link_gate_rtt_fail_ms": 600, "link_gate_jitter_fail_ms": 600, "link_gate_duration": 6}')


def test_of_three_new_nodes_only_the_one_behind_the_bad_link_is_refused(run: Run, faults: Faults) -> None:
    """The third is out and the others go on; without the fault it goes on too."""
    faults.delay_ms = 400
    done, results = run(*BOUNDS, n1="bootstrap", n2="join", n3="join")
    assert done.returncode == 2
    assert results["n3"]["verdict"] == "fail" and results["n3"]["under_load"]
    for part in ("n3: link 0 to n1", "round-trip time p99", "wanted at most 600 ms", "link_gate_rtt_fail_ms"):
        assert part in results["n3"]["message"]
    for host in ("n1", "n2"):
        assert results[host]["verdict"] == "warn" and "n3 is refused for it" in results[host]["message"]
    assert done.stdout.count("joined") == 2
    assert "changed=0" in done.stdout and "Traceback" not in done.stdout + done.stderr

    faults.delay_ms = 0
    done, results = run(*BOUNDS, n1="bootstrap", n2="join", n3="join")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("joined") == 3 and "needed_ms" in done.stdout
    assert "fail" not in {result["verdict"] for result in results.values()}
    assert len({frozenset(result) for result in results.values()}) == 1, "one shape"


def test_members_are_left_alone_and_a_dry_run_measures(run: Run, faults: Faults) -> None:
    faults.delay_ms = 20
    done, results = run("--check", n1="adopt", n2="adopt", n3="join")
    assert done.returncode == 2
    assert (results["n1"]["verdict"], results["n1"]["reason"]) == ("not measured", "not_asked")
    assert results["n3"]["verdict"] == "fail" and results["n3"]["samples"] > 0
    done, results = run("--check", "-e", '{"link_gate_in_check_mode": false}', n1="adopt", n2="adopt", n3="join")
    assert done.returncode == 0
    assert (results["n3"]["verdict"], results["n3"]["reason"]) == ("not measured", "check_mode")
    assert "n3: the links are not measured in check mode" in " ".join(done.stdout.split())
    assert set(results["n3"]) == set(results["n1"])


def test_never_measures_nobody_and_always_measures_members_at_rest(run: Run, faults: Faults) -> None:
    faults.drop_icmp = True
    done, results = run("-e", "pveguard_gate_enforce=never", n1="adopt", n2="join", n3="join")
    assert done.returncode == 0
    assert {result["reason"] for result in results.values()} == {"not_asked"}
    done, results = run(*BOUNDS, "-e", "pveguard_gate_enforce=always", n1="adopt", n2="adopt", n3="adopt")
    assert done.returncode == 2
    assert not any(result["under_load"] for result in results.values())
    assert {host for host, result in results.items() if result["verdict"] == "fail"} == {"n3"}
    assert results["n3"]["reason"] == "icmp_filtered"


def test_without_a_plan_it_measures_and_warns(run: Run, faults: Faults) -> None:
    faults.drop_icmp = True
    done, results = run()
    assert done.returncode == 0
    assert results["n3"]["verdict"] == "fail" and not results["n3"]["under_load"]
    assert "WARNING" in done.stderr and "ICMP echo is filtered" in done.stderr
