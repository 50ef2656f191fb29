# SPDX-License-Identifier: Apache-2.0
"""playbooks/recover.yml: what it shows, asks, does in which order, and leaves alone.

The play runs under ansible-playbook; modules before the project's own answer in the place of the nodes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster_facts import NAME, conf, healthy, node

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

#: A node says what its file holds; a step leaves the cluster as the file of that step says.
MODULE = """#!/usr/bin/python
import json, pathlib
from ansible.module_utils.basic import AnsibleModule
OPTIONS = ("holder takeover cluster state step seen text live_member_ids max_root_version votes others mode program "
           "deadline_seconds resync allow_offline_members shown")
module = AnsibleModule({name: {"type": "raw", "no_log": False} for name in OPTIONS.split()}, supports_check_mode=True)
place = pathlib.Path(module._remote_tmp)
kind, given = "NAME", {name: value for name, value in module.params.items() if value is not None}
if kind == "node_info":
    module.exit_json(changed=False, node=json.loads((place / "facts").read_text()))
given.pop("program", None)
with open(place.parent / "calls", "a") as calls:
    calls.write(json.dumps([place.name, kind, module.check_mode, given]) + "\\n")
if kind == "run_lock":
    held = (place / "held").exists()
    holder = {"run_id": "other", "who": "somebody"} if held else {}
    module.exit_json(
        changed=False, acquired=not held, where="/run/pveguard/lock", holder=holder,
        refusal="Another run works on this node: somebody" if held else "",
    )
step = given.get("step") or given.get("state") or "looked"
if step == "looked":
    module.exit_json(changed=False, restore={"refusals": [], "shown": "x"})
if not module.check_mode:
    after = place.parent / f"after-{step}"
    for host, facts in (json.loads(after.read_text()) if after.exists() else {}).items():
        (place.parent / host / "facts").write_text(json.dumps(facts))
kept = [{"path": "LOCK", "reason": "x"}] if step == "publish" and (place / "left").exists() else []
module.exit_json(changed=True, directory="/var/lib/pveguard/recover/20261121T164000Z", lock_kept=kept)
"""


class Site:
    def __init__(self, folder: Path, nodes: Mapping[str, Any]) -> None:
        self.folder, self.hosts = folder, {}
        (folder / "library").mkdir()
        for name in ("node_info", "run_lock", "corosync_recover", "ram_state_restore", "pve_lock"):
            (folder / f"library/{name}.py").write_text(MODULE.replace("NAME", name))
        for name, facts in nodes.items():
            (folder / name).mkdir()
            self.hosts[name] = {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "ansible_remote_tmp": str(folder / name),
                "corosync_cluster_name": NAME,
                "corosync_node_id": int(name[-1]),
                "corosync_links": [f"10.0.0.{name[-1]}"],
            }
            if facts is None:
                self.hosts[name] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
        self.say(nodes)

    def say(self, nodes: Mapping[str, Any]) -> None:
        for name, facts in nodes.items():
            (self.folder / name / "facts").write_text(json.dumps(facts))

    def after(self, step: str, nodes: Mapping[str, Any]) -> None:
        (self.folder / f"after-{step}").write_text(json.dumps(nodes))

    def command(self, *arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": self.hosts}}))
        (self.folder / "calls").write_text("")
        values = {"pveguard_reports_dir": str(self.folder / "reports"), **variables}
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_LIBRARY": f"{self.folder / 'library'}:{ROOT / 'library'}",
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "200",
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "-i", str(self.folder / "hosts.yml"), str(ROOT / "playbooks/recover.yml")]
        return [*command, "-e", json.dumps(values), *arguments], environment

    def play(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and output, its line breaks taken back."""
        command, environment = self.command(*arguments, **variables)
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)

    def locks(self) -> list[Any]:
        """``[host, with that of the cluster]`` of every lock that was taken, and the hosts that gave it back."""
        found = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        locks = [(host, given) for host, kind, _, given in found if kind == "run_lock"]
        taken = sorted([host, given["cluster"]] for host, given in locks if given.get("state") is None)
        return [taken, sorted({host for host, given in locks if given.get("state") == "released"})]

    def calls(self) -> list[str]:
        """``HOST STEP`` of every call that changes something."""
        found = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        steps = [
            f"{host} {'give back' if kind == 'pve_lock' else given.get('step') or given.get('state')}"
            for host, kind, _, given in found
            if kind != "run_lock"
        ]
        return [step for step in steps if not step.endswith("None")]


def changed(text: str) -> int:
    return sum(int(number) for number in re.findall(r"changed=(\d+)", text))


def same_version() -> dict[str, Any]:
    return healthy() | {"pve2": node(2, conf(), conf(note="by hand").replace("totem {", "totem {\n  key: geheim"))}


def published() -> dict[str, Any]:
    return {f"pve{n}": node(n, conf(6), conf(6), runs=6) for n in (1, 2, 3)}


def test_a_healthy_cluster_is_left_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, healthy())
    code, text = site.play()
    assert code == 0 and changed(text) == 0 and "nothing to recover" in text, text
    assert site.calls() == [] and not (tmp_path / "reports").exists()


def test_shown_refused_and_done_by_its_word(tmp_path: Path) -> None:
    site = Site(tmp_path, same_version())
    site.after("publish", published())
    word = f"publish:{NAME}"

    # Nobody to ask, and check mode: shown and refused.
    for arguments in ((), ("--check",), ("-e", "recover_confirm=publish:other,quorum:pve1")):
        code, text = site.play(*arguments)
        assert code and f'wanted "{word}"' in text and f"-e recover_confirm={word}" in text, text
        assert "both copies have config_version 5 and different text" in text and "with config_version 6, on pve1" in text
        assert sorted(site.calls()) == ["pve1 save", "pve2 save", "pve3 save"] and "geheim" not in text
        assert site.locks() == [[[f"pve{n}", True] for n in (1, 2, 3)], ["pve1", "pve2", "pve3"]], "also when it was refused"
    kept = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "reports").rglob("*.conf"))
    assert len(kept) == 6 and kept[0] == "reports/recover/pve1/20261121T164000Z/etc-corosync-corosync.conf"
    assert "key: (not shown)" in (tmp_path / "reports/recover/pve2/20261121T164000Z/etc-corosync-corosync.conf").read_text()

    code, text = site.play("--check", "-e", f"recover_confirm={word}")
    assert code == 0 and site.calls()[-1] == "pve1 publish", text
    assert '"host_sha256"' in json.dumps(json.loads((tmp_path / "calls").read_text().splitlines()[-4]))

    code, text = site.play("-e", f"recover_confirm={word}")
    assert code == 0 and site.calls()[-1] == "pve1 publish", text
    code, text = site.play()
    assert code == 0 and changed(text) == 0 and "nothing to recover" in text


def test_a_lock_that_a_step_had_to_leave_is_given_back_there(tmp_path: Path) -> None:
    site = Site(tmp_path, same_version())
    site.after("publish", published())
    (tmp_path / "pve1/left").touch()
    code, text = site.play("-e", f"recover_confirm=publish:{NAME}")
    assert code == 0 and site.calls()[-2:] == ["pve1 publish", "pve1 give back"], text


def test_a_person_is_asked_before_each_step(tmp_path: Path) -> None:
    pytest.importorskip("lab.tests.doubles.harness")
    from tests.ram_state.test_restore_playbook import on_a_terminal

    site = Site(tmp_path, same_version())
    site.after("publish", published())
    done = on_a_terminal(*site.command(), "yes")
    assert done.returncode and 'the answer was "yes"' in re.sub(r"\s+", " ", done.stdout)
    assert "pve1 publish" not in site.calls()
    done = on_a_terminal(*site.command(), f"publish:{NAME}")
    assert done.returncode == 0 and site.calls()[-1] == "pve1 publish", done.stdout


@pytest.mark.campaign
def test_a_false_leader_step_by_step(tmp_path: Path) -> None:
    others = {n: node(int(n[-1]), live=(1, 2), root_version=900) for n in ("pve1", "pve2")}
    whole = {f"pve{n}": node(n, root_version=900) for n in (1, 2)}
    third: dict[str, Any] = {"root_version": 1000, "mode": "down", "pmxcfs": {"has_corosync_conf": True}}
    site = Site(tmp_path, {**others, "pve3": node(3, running=False, root_version=1000)})
    site.after("stop_daemon", {"pve3": node(3, None, running=False, **third)})
    site.after("start_corosync", {**whole, "pve3": node(3, None, **third)})
    site.after("restored", {"pve3": node(3, root_version=900)})
    steps = ["isolate:pve3", "start:pve3", "resync:pve3"]
    # Only what is named: the run ends before the next.
    code, text = site.play("-e", f"recover_confirm={steps[0]}")
    assert code and 'wanted "start:pve3"' in text and site.calls()[-1] == "pve3 stop_daemon", text
    code, text = site.play("-e", "recover_confirm=" + ",".join(steps))
    assert code == 0, text
    assert site.calls()[3:] == ["pve3 start_corosync", "pve3 restored"]


def test_a_node_that_another_run_holds_is_not_one_that_is_off(tmp_path: Path) -> None:
    site = Site(tmp_path, healthy() | {"pve3": node(3, None, mode="local")})
    (tmp_path / "pve2/held").touch()
    code, text = site.play("-e", "recover_confirm=isolate:pve3")
    assert code and "Another run works on this node" in text and site.calls() == [], text
    # Where the daemon works alone each write raises the version of its state: the lock is the node's alone.
    assert ["pve3", False] in site.locks()[0] and ["pve1", True] in site.locks()[0]


def test_what_no_step_repairs_fails_the_run(tmp_path: Path) -> None:
    nodes = {n: node(int(n[-1]), live=(1, 2)) for n in ("pve1", "pve2")}
    site = Site(tmp_path, {**nodes, "pve3": node(3, live=(3,), quorate=False)})
    code, text = site.play("-e", "recover_confirm=quorum:pve3")
    assert code and "repair the links" in text and all(call.endswith("save") for call in site.calls()), text


def test_a_node_that_does_not_answer_is_not_known(tmp_path: Path) -> None:
    site = Site(tmp_path, {"pve1": node(1, live=(1,), quorate=False), "pve2": None, "pve3": None})
    site.after("quorum", {"pve1": node(1, live=(1,))})
    _, text = site.play("-e", "recover_confirm=quorum:pve1")
    assert site.calls() == ["pve1 save", "pve1 quorum"] and "CONFIRM ONLY IF pve2, pve3 ARE SWITCHED OFF" in text, text
    assert "failed=0" in text
