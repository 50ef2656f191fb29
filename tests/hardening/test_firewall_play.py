# SPDX-License-Identifier: Apache-2.0
"""How the role leads three members through a change of the firewall. The modules are doubles, which say what a test lets them
say: what they do on a node has its own tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project.ansible_runs import ROOT, deprecations, environment

pytestmark = pytest.mark.slow
MODULE = """#!/usr/bin/python3
# WANT_JSON
import json, os, sys
args = json.load(open(sys.argv[1]))
name, host, folder = os.path.basename(sys.argv[0]), os.environ["FAKE_HOST"], os.environ["FAKE_FOLDER"]
name = next(each for each in ("hardening_info", "firewall_change", "firewall_proof") if each in name)
state = args.get("state") or ("web" if args.get("logins") in (False, "False") and name == "firewall_proof" else "")
if state == "web" and args.get("web") is None:
    state = "before"
what = " ".join(each for each in (host, name, state) if each)
answers = json.load(open(f"{folder}/answers.json"))
with open(f"{folder}/log", "a") as log:
    log.write(what + (" made=%s" % args["made"] if "made" in args else "") + "\\n")
print(json.dumps({"changed": False, **answers.get(what, {})}))
"""
NAMES = ("pve1", "pve2", "pve3")


def longer(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.campaign)


class Cluster:
    """``said``: what a module says on a host, by "HOST MODULE STATE"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, dict[str, Any]] = {}
        (folder / "library").mkdir()
        for name in ("hardening_info", "firewall_change", "firewall_proof"):
            (folder / f"library/{name}.py").write_text(MODULE)
        members = [{"name": each, "address": f"10.0.0.{each[-1]}"} for each in NAMES]
        for host in NAMES:
            facts = {"known": True, "node": host, "members": [{**each, "own": each["name"] == host} for each in members]}
            self.said[f"{host} hardening_info"] = {"facts": {"firewall": {**facts, "controller": f"192.0.2.{host[-1]}"}}}
            self.said[f"{host} firewall_change armed"] = {
                "digest": "d", "todo": ["set rules"], "unproved": True, "web": [], "node": host, "timer": "armed",
                "members": [each for each in members if each["name"] != host],
            }  # fmt: skip
            self.said[f"{host} firewall_proof before"] = {"web": [host]}
            self.said[f"{host} firewall_change undone"] = {"changed": True, "timer": "rolled_back"}
        self.said["pve1 firewall_change written"] = {"changed": True}

    def fails(self, what: str, why: str, **more: Any) -> None:
        self.said[what] = {"failed": True, "msg": why, **more}

    def run(self, *options: str, lost: str = "") -> tuple[int, str]:
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
        hosts = {name: gone if name == lost else here for name in NAMES}
        (self.folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        (self.folder / "answers.json").write_text(json.dumps(self.said))
        (self.folder / "log").write_text("")
        role = {"name": "node_hardening", "tasks_from": "together.yml"}
        play = {
            "hosts": "all",
            "gather_facts": False,
            "environment": {"FAKE_HOST": "{{ inventory_hostname }}", "FAKE_FOLDER": str(self.folder)},
            "tasks": [{"import_role": role, "vars": {"node_hardening_firewall": "enforce"}}],
        }
        (self.folder / "play.yml").write_text(json.dumps([play]))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.folder / "hosts.json"), *options]
        done = subprocess.run(
            [*command, str(self.folder / "play.yml")], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env=environment(ANSIBLE_LIBRARY=str(self.folder / "library"), ANSIBLE_LOCAL_TEMP=str(self.folder / "tmp")),
        )  # fmt: skip
        assert not deprecations(done), done.stderr
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def did(self, what: str) -> list[str]:
        """The hosts that were asked to do it."""
        return sorted(line.partition(" ")[0] for line in self.log if line.partition(" ")[2] == what)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.campaign
def test_each_step_on_all_before_the_next_and_one_writes(cluster: Cluster) -> None:
    code, said = cluster.run()
    assert code == 0, said
    steps = [line.partition(" ")[2] for line in cluster.log]
    order = ["hardening_info", "firewall_change armed", "firewall_proof before", "firewall_change written"]
    order += ["firewall_change present", "firewall_proof", "firewall_proof web", "firewall_change confirmed"]
    assert list(dict.fromkeys(steps)) == order
    assert cluster.did("firewall_change written") == ["pve1"]
    for step in (*order[:3], *order[4:]):
        assert cluster.did(step) == list(NAMES), step
        places = [place for place, each in enumerate(steps) if each == step]
        assert places == list(range(places[0], places[0] + 3)), step
    assert said.count("changed=1") == 1


@pytest.mark.campaign
def test_where_nothing_is_to_be_done_two_modules_are_asked(cluster: Cluster) -> None:
    for host in NAMES:
        cluster.said[f"{host} firewall_change armed"].update(todo=[], unproved=False)
    code, said = cluster.run()
    assert code == 0 and "changed=1" not in said, said
    assert {line.partition(" ")[2] for line in cluster.log} == {"hardening_info", "firewall_change armed"}


@pytest.mark.campaign
def test_check_judges_alone(cluster: Cluster) -> None:
    code, said = cluster.run("--check")
    assert code == 0, said
    assert {line.partition(" ")[2] for line in cluster.log} <= {"hardening_info", "firewall_change armed"}


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("pve2 firewall_proof", "from pve2: link 1 to pve3: disconnected"),
        longer("pve3 firewall_change present", "the node's firewall has not loaded it in time"),
        longer("pve2 firewall_proof web", "TCP 8006: no answer"),
        longer("pve3 firewall_change confirmed", "this login is older than the change"),
    ],
)
def test_what_one_does_not_prove_all_take_back(cluster: Cluster, what: str, why: str) -> None:
    cluster.fails(what, why)
    code, said = cluster.run()
    assert code == 2 and why in said and cluster.did("firewall_change undone made=True") == list(NAMES), said
    assert all(f"{each}: the change of the firewall was not proved" in said for each in NAMES)
    assert "It was taken back, and cluster.fw is as it was before." in said
    if "confirmed" not in what:
        assert not cluster.did("firewall_change confirmed")


@pytest.mark.campaign
def test_a_member_that_refuses_keeps_all_from_it(cluster: Cluster) -> None:
    cluster.fails("pve2 firewall_change armed", "nothing was changed: no quorum")
    code, said = cluster.run()
    assert code == 2 and "pve1: the firewall stays as it is: pve2: nothing was changed: no quorum" in said, said
    assert cluster.did("firewall_change undone made=False") == ["pve1", "pve3"]
    assert not cluster.did("firewall_change written") and not cluster.did("firewall_change present")


@pytest.mark.campaign
def test_a_member_that_sees_another_file_keeps_all_from_it(cluster: Cluster) -> None:
    cluster.said["pve3 firewall_change armed"]["digest"] = "e"
    code, said = cluster.run()
    assert code == 2 and "pve3 sees another cluster.fw" in said and not cluster.did("firewall_change written"), said


@pytest.mark.campaign
def test_a_member_that_the_run_does_not_reach_keeps_all_from_it(cluster: Cluster) -> None:
    code, said = cluster.run("--limit", "pve1,pve2")
    assert code == 2 and "this run does not reach pve3 of the cluster; run it for all members, without --limit" in said, said
    assert cluster.did("firewall_change undone made=False") == ["pve1", "pve2"]
    code, said = cluster.run(lost="pve3")
    assert code != 0 and "pve1: the firewall stays as it is: pve3: " in said and not cluster.did("firewall_change written"), said


@pytest.mark.campaign
def test_an_edit_in_between_opens_no_firewall(cluster: Cluster) -> None:
    cluster.fails("pve1 firewall_change written", "somebody has edited cluster.fw", untouched=True)
    code, said = cluster.run()
    assert code == 2 and "somebody has edited cluster.fw" in said, said
    assert cluster.did("firewall_change undone made=False") == list(NAMES)
    assert not cluster.did("firewall_change present") and not cluster.did("firewall_proof")


@pytest.mark.campaign
def test_an_undo_that_does_not_answer_is_left_to_the_node(cluster: Cluster) -> None:
    cluster.fails("pve2 firewall_proof", "ssh to pve3: no answer")
    cluster.fails("pve3 firewall_change undone", "no quorum")
    code, said = cluster.run()
    assert code == 2 and "The node opens its firewall and takes it back by itself, at the latest within 300 s." in said, said


@pytest.mark.campaign
def test_one_that_had_kept_it_says_who_takes_it_back(cluster: Cluster) -> None:
    cluster.fails("pve3 firewall_change confirmed", "too late")
    cluster.said["pve1 firewall_change undone"] = {"timer": "confirmed"}
    code, said = cluster.run()
    assert code == 2 and "This node had kept it; the member that had not puts the former cluster.fw back for all." in said, said
