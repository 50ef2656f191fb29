# SPDX-License-Identifier: Apache-2.0
"""Where the role corosync gives back a lock that a change had to leave: on the member that left it, after a join and after
its failure, and never where nothing was left.

The role runs under ansible-playbook; modules beside the play answer in the place of the members and keep every call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

MODULE = """#!/usr/bin/python
import json, pathlib
from ansible.module_utils.basic import AnsibleModule
KNOWN = ("state cluster_name nodes node_name node_id links authkey authkey_sha256 conf program deadline_seconds expected_ids src "
         "update_nodes token token_coefficient crypto allow_crypto_change totem logging quorum restore")
module = AnsibleModule({name: {"type": "raw", "no_log": False} for name in KNOWN.split()}, supports_check_mode=True)
place = pathlib.Path(module._remote_tmp)
answers = json.loads((place.parent / "answers").read_text())
given = {name: value for name, value in module.params.items() if value is not None}
if "NAME" == "node_info":
    module.exit_json(changed=False, node=answers["node"])
if "NAME" == "key_of_the_seed":
    module.exit_json(changed=False, content="a2V5")
step = {"cluster_member": "join", "pve_lock": "give back"}.get("NAME")
change = "restore" if "restore" in given else "see" if "expected_ids" in given else "unlist" if "state" in given else "list"
step = step or change
key = f"{step} {place.name}"
if module.check_mode:
    module.exit_json(changed=False, steps=1, config_version=5, restart_needed=[], live_member_ids=[1])
with open(place.parent / "calls", "a") as calls:
    calls.write(key + "\\n")
kept = [{"path": "LOCK", "reason": "x"}] if key in answers["left"] else []
result = {} if step in ("join", "give back") else {"lock_kept": kept}
if key in answers["fail"]:
    module.fail_json(msg=f"{key} went wrong", **result)
module.exit_json(changed=step not in ("see", "give back"), text="new", before="old", steps=1, config_version=5, restart_needed=[],
                 live_member_ids=[1], **result)
"""
MODULES = ("node_info", "cluster_member", "corosync_conf", "corosync_restart", "pve_lock", "key_of_the_seed")


def play(
    tmp_path: Path, action: str, left: tuple[str, ...] = (), fail: tuple[str, ...] = (), **more: Any
) -> tuple[int, str, list[str]]:
    """Exit code, output and the calls, ``step host``, of the role on pve2 (``join``; the seed is pve1) or on pve1."""
    corosync = {
        "cluster_name": "lab", "copies_equal": True, "running": True, "quorate": True, "two_node": False, "node_id": 1,
        "cluster": {"config_version": 5}, "host": {"config_version": 5, "sha256": "s"}, "running_config_version": 5,
        "configured_token_ms": 3000, "live_member_ids": [1, 2], "authkey_sha256": "k",
    }  # fmt: skip
    hosts, facts = {}, more.pop("facts", {})
    for number in (1, 2):
        place = tmp_path / f"pve{number}"
        place.mkdir(exist_ok=True)
        hosts[place.name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_remote_tmp": str(place),
            "corosync_cluster_name": "lab",
            "corosync_node_id": number,
            "corosync_links": [f"10.70.0.{number}"],
            "pveguard_plan": {"action": action, "members": ["pve1"], "seed": "pve1"},
            "pveguard_node": {"node": {"hostname": place.name, "corosync": corosync, **facts}},
            **more,
        }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    library, role = tmp_path / "library", tmp_path / "roles/corosync"
    library.mkdir(exist_ok=True)
    for name in MODULES:
        (library / f"{name}.py").write_text(MODULE.replace("NAME", name))
    if not role.exists():
        shutil.copytree(ROOT / "roles/corosync", role)
        # The key is read from the machine the tests run on otherwise.
        text = (role / "tasks/join.yml").read_text()
        (role / "tasks/join.yml").write_text(text.replace("ansible.builtin.slurp:", "key_of_the_seed:"))
    (tmp_path / "answers").write_text(
        json.dumps({"left": left, "fail": fail, "node": {"corosync": corosync}})
    )
    (tmp_path / "calls").write_text("")
    tasks = [{"name": "Include", "ansible.builtin.include_role": {"name": "corosync"}}]
    target = "pve2" if action == "join" else "pve1"
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"name": "Play", "hosts": target, "gather_facts": False, "tasks": tasks}])
    )
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LIBRARY": str(library),
        "ANSIBLE_ROLES_PATH": str(role.parent),
    }
    corosync["node_id"] = 2
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            "-i",
            tmp_path / "hosts.yml",
            tmp_path / "play.yml",
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    return (
        done.returncode,
        " ".join((done.stdout + done.stderr).split()),
        (tmp_path / "calls").read_text().splitlines(),
    )


JOINED = ["list pve1", "join pve2", "see pve1"]


def test_a_join_that_left_nothing_asks_nothing(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, "join")
    assert (code, calls) == (0, JOINED), output
    # The look at the seed gave back what the listing had left.
    code, output, calls = play(tmp_path, "join", left=("list pve1",))
    assert (code, calls) == (0, JOINED), output


def test_a_join_gives_back_what_the_listing_left_on_the_seed(tmp_path: Path) -> None:
    left = ("list pve1", "see pve1")
    code, output, calls = play(tmp_path, "join", left)
    assert (code, calls) == (0, [*JOINED, "give back pve1"]), output
    # Where quorum does not come back the run says so.
    code, output, calls = play(tmp_path, "join", left, fail=("give back pve1",))
    assert code == 2 and calls == [*JOINED, "give back pve1"] and "give back pve1 went wrong" in output, (
        output
    )


@pytest.mark.parametrize(
    ("left", "fail", "expected"),
    [
        # Taking the node off gave it back, or did not, or failed itself.
        (("list pve1",), ("join pve2",), ["list pve1", "join pve2", "unlist pve1"]),
        (
            ("list pve1", "unlist pve1"),
            ("join pve2",),
            ["list pve1", "join pve2", "unlist pve1", "give back pve1"],
        ),
        (
            ("unlist pve1",),
            ("join pve2", "unlist pve1"),
            ["list pve1", "join pve2", "unlist pve1", "give back pve1"],
        ),
        # The listing itself failed; and the look from the seed did.
        (("list pve1", "unlist pve1"), ("list pve1",), ["list pve1", "unlist pve1", "give back pve1"]),
        (("see pve1", "unlist pve1"), ("see pve1",), [*JOINED, "unlist pve1", "give back pve1"]),
        (("see pve1",), ("see pve1",), [*JOINED, "unlist pve1"]),
    ],
)
def test_a_failed_join_gives_it_back_too(
    tmp_path: Path, left: tuple[str, ...], fail: tuple[str, ...], expected: list[str]
) -> None:
    code, output, calls = play(tmp_path, "join", left, fail)
    assert code == 2 and calls == expected and "pve2 did not join lab" in output, (calls, output)


def test_what_an_interrupted_run_left_is_given_back_by_the_next(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, "adopt")
    assert (code, calls) == (0, []), output
    code, output, calls = play(tmp_path, "adopt", facts={"locks_kept": [{"path": "LOCK", "reason": "x"}]})
    assert (code, calls) == (0, ["give back pve1"]), output


def test_a_change_gives_back_what_it_left_also_when_it_failed(tmp_path: Path) -> None:
    code, output, calls = play(tmp_path, "adopt", ("list pve1",), corosync_token=5000)
    assert (code, calls) == (0, ["list pve1", "see pve1"]), output
    code, output, calls = play(tmp_path, "adopt", ("list pve1", "see pve1"), corosync_token=5000)
    assert (code, calls) == (0, ["list pve1", "see pve1", "give back pve1"]), output
    left = ("list pve1", "see pve1", "restore pve1")
    code, output, calls = play(tmp_path, "adopt", left, ("see pve1",), corosync_token=5000)
    assert code == 2 and calls == ["list pve1", "see pve1", "restore pve1", "give back pve1"], output
    code, output, calls = play(tmp_path, "adopt", ("list pve1",), ("list pve1",), corosync_token=5000)
    assert code == 2 and calls == ["list pve1", "give back pve1"], output
