# SPDX-License-Identifier: Apache-2.0
"""playbooks/leave.yml and authkey.yml: who is asked what, in which order, and what stops them.

The playbooks run under ansible-playbook; modules of the same names answer in the place of the nodes and keep every call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster_facts import conf, node
from .test_leave import NONE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

MODULE = '''#!/usr/bin/python
import json, pathlib
from ansible.module_utils.basic import AnsibleModule
KNOWN = ("state cluster_name nodes node_name name program deadline_seconds expected_ids shown holder takeover key "
         "former_sha256 cluster where")
module = AnsibleModule({name: {"type": "raw", "no_log": name == "key"} for name in KNOWN.split()}, supports_check_mode=True)
place = pathlib.Path(module._remote_tmp)
given = {name: value for name, value in module.params.items() if value is not None}
kind = "NAME"
answers = json.loads((place.parent / "answers").read_text())
if kind == "node_info":
    module.exit_json(changed=False, node=answers["nodes"][place.name])
if kind == "run_lock":
    module.exit_json(changed=False, acquired=True, holder={}, where="/run/pveguard/lock")
with open(place.parent / "calls", "a") as calls:
    calls.write(json.dumps([place.name, kind, module.check_mode, given]) + "\\n")
key = " ".join([place.name, kind, str(given.get("state", ""))]).strip()
if key in answers.get("fail", []):
    module.fail_json(msg=f"{key} went wrong")
changed = given.get("state") in ("left", "absent", "placed", "reloaded", "former")
module.exit_json(changed=changed, generation="G", text=answers["text"], traces=answers["traces"], key="bmV3", sha256="s")
'''
MODULES = ("node_info", "run_lock", "node_traces", "cluster_member", "corosync_conf", "corosync_authkey")


class Plays:
    def __init__(self, tmp_path: Path, nodes: dict[str, Any], **answers: Any) -> None:
        self.path = tmp_path
        hosts: dict[str, Any] = {}
        for host in nodes:
            (tmp_path / host).mkdir(exist_ok=True)
            hosts[host] = {
                "ansible_connection": "local" if nodes[host] else "ssh",
                # A port where nobody listens: unreachable at once.
                "ansible_host": "127.0.0.1",
                "ansible_port": 1,
                "ansible_python_interpreter": sys.executable,
                "ansible_remote_tmp": str(tmp_path / host),
            }
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        for folder in ("library", "bin"):
            (tmp_path / folder).mkdir()
        for name in MODULES:
            (tmp_path / f"library/{name}.py").write_text(MODULE.replace("NAME", name))
        pvecm = tmp_path / "bin/pvecm"
        pvecm.write_text(f"#!/bin/sh\necho '[\"\", \"'pvecm $*'\", false, {{}}]' >> {tmp_path}/calls\nexit 255\n")
        pvecm.chmod(0o755)
        text = conf(6, nodes=2)
        self.answers = {"nodes": nodes, "text": text, "traces": NONE, **answers}

    def run(self, playbook: str, *arguments: str) -> tuple[int, str, list[str]]:
        """Exit code, output on one line, and ``host module state``, with ``?`` for a call in check mode."""
        (self.path / "answers").write_text(json.dumps(self.answers))
        (self.path / "calls").write_text("")
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LIBRARY": str(self.path / "library"),
            "PATH": f"{self.path}/bin:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", self.path / "hosts.yml", ROOT / "playbooks" / playbook]
            + list(arguments),
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )
        self.calls = [json.loads(line) for line in (self.path / "calls").read_text().splitlines()]
        shown = [
            " ".join(filter(None, [host, kind, given.get("state")])) + ("?" if check else "")
            for host, kind, check, given in self.calls
        ]
        return done.returncode, " ".join((done.stdout + done.stderr).split()), shown


def members(live: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    return {f"pve{n}": node(n, live=live) if n in live else None for n in (1, 2, 3)}


def test_a_member_leaves(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members())
    arguments = ("-e", "leave_node=pve3", "-e", "leave_confirm=pve3")
    code, output, calls = plays.run("leave.yml", *arguments)
    assert code == 0, output
    assert calls == [
        "pve1 node_traces", "pve3 cluster_member left", "pvecm delnode pve3", "pve1 corosync_conf absent",
        "pve1 corosync_conf", "pve2 corosync_conf",
    ]  # fmt: skip
    assert plays.calls[3][3]["nodes"] == [{"name": "pve3", "node_id": 3, "links": []}]
    assert plays.calls[4][3]["expected_ids"] == [1, 2]
    assert "pve3 has left production" in output and "generation G" in output
    # Its directory too, as it was shown.
    plays.answers["traces"] = {**NONE, "directory": True, "files": ["nodes/pve3/config"]}
    code, output, calls = plays.run("leave.yml", *arguments, "-e", "leave_remove_directory=true")
    assert code == 0 and calls[-1] == "pve1 node_traces absent", output
    assert plays.calls[-1][3]["shown"] == ["nodes/pve3/config"]


def test_nothing_without_the_word(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members())
    for more in ((), ("-e", "leave_confirm=pve2")):
        code, output, calls = plays.run("leave.yml", "-e", "leave_node=pve3", *more)
        assert (code, calls) == (2, ["pve1 node_traces"]), output
        assert "-e leave_confirm=pve3" in output and "is taken off corosync.conf through pve1" in output
    code, output, calls = plays.run("leave.yml", "-e", "leave_node=pve3", "-e", "leave_confirm=pve3", "--check")
    assert (code, calls) == (0, ["pve1 node_traces?", "pve3 cluster_member left?"]), output
    assert "changed=2" in output


def test_what_is_refused_touches_nothing(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members(), traces={**NONE, "guests": [301]})
    arguments = ("-e", "leave_node=pve3", "-e", "leave_confirm=pve3")
    code, output, calls = plays.run("leave.yml", *arguments)
    assert (code, calls) == (2, ["pve1 node_traces"]) and "pve3 has the guests 301" in output, output
    code, output, calls = plays.run("leave.yml", *arguments, "--limit", "pve1,pve3")
    assert (code, calls) == (2, []) and "pve2" in output and "without --limit" in output, output
    code, output, calls = plays.run("leave.yml")
    assert (code, calls) == (2, []) and "leave_node=NAME" in output, output


def test_a_node_that_cannot_go_is_not_taken_off_the_list(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members(), fail=["pve3 cluster_member left"])
    code, output, calls = plays.run("leave.yml", "-e", "leave_node=pve3", "-e", "leave_confirm=pve3")
    assert (code, calls) == (2, ["pve1 node_traces", "pve3 cluster_member left"]), output


def test_a_dead_node_is_taken_off_the_list(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members((1, 2)))
    arguments = ("-e", "leave_node=pve3", "-e", "leave_confirm=pve3")
    code, output, calls = plays.run("leave.yml", *arguments)
    assert code != 0 and calls == [] and "leave_dead=true" in output, output
    code, output, calls = plays.run("leave.yml", *arguments, "-e", "leave_dead=true")
    assert calls == [
        "pve1 node_traces", "pvecm delnode pve3", "pve1 corosync_conf absent", "pve1 corosync_conf", "pve2 corosync_conf",
    ], output  # fmt: skip
    assert code == 0 and "playbooks/authkey.yml" in output, output


def test_one_that_has_left_is_left_alone(tmp_path: Path) -> None:
    text = conf(6, nodes=2)
    nodes = {f"pve{n}": node(n, text, text, live=(1, 2)) for n in (1, 2)}
    nodes["pve3"] = node(3, None, None, running=False, mode="local", authkey=None)
    plays = Plays(tmp_path, nodes)
    code, output, calls = plays.run("leave.yml", "-e", "leave_node=pve3")
    assert code == 0 and "changed=0" in output and set(calls) <= {"pve1 node_traces"}, (output, calls)


def test_a_key_is_placed_everywhere_before_it_is_taken(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members())
    every = ["pve1", "pve2", "pve3"]
    code, output, calls = plays.run("authkey.yml", "-e", "authkey_confirm=production")
    assert code == 0, output
    assert calls == [
        "pve1 corosync_authkey generated", *(f"{host} corosync_authkey placed" for host in every),
        "pve1 corosync_authkey reloaded", *(f"{host} corosync_authkey seen" for host in every),
        *(f"{host} corosync_authkey settled" for host in every),
    ]  # fmt: skip
    assert "bmV3" not in output and plays.calls[1][3]["key"] == "bmV3"
    # Nobody takes it when one member does not have it; the former one is in force again.
    plays.answers["fail"] = ["pve3 corosync_authkey placed"]
    code, output, calls = plays.run("authkey.yml", "-e", "authkey_confirm=production")
    assert code == 2 and calls[4:] == [
        *(f"{host} corosync_authkey former" for host in every),
        *(f"{host} corosync_authkey reloaded" for host in every),
        "pve1 corosync_authkey seen",
    ]
    assert "bmV3" not in output and "The former key is in force on all members again" in output, output


def test_a_key_is_not_changed_without_the_word(tmp_path: Path) -> None:
    plays = Plays(tmp_path, members())
    code, output, calls = plays.run("authkey.yml")
    assert (code, calls) == (2, []) and "-e authkey_confirm=production" in output, output
    code, output, calls = plays.run("authkey.yml", "--check", "-e", "authkey_confirm=production")
    assert code == 0 and all(call.endswith("?") for call in calls), output
