# SPDX-License-Identifier: Apache-2.0
"""The role in the order of protect.yml, with modules that answer for each host what the inventory gives and note what
they were asked to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ha.systemd import Node

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

HA_INFO = """
import json, os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(
    argument_spec={"release_wait_seconds": {"type": "int", "default": 0}}, supports_check_mode=True
)
facts = json.loads(os.environ["FACTS"])
seconds = module.params["release_wait_seconds"]
if seconds:
    facts.update(json.loads(os.environ["AFTER_WAIT"] or "{}"))
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{facts['node']} {f'wait {seconds}' if seconds else 'look'}\\n")
for resource in facts["unattended"]:
    module.warn(f"nothing recovers {resource} on {facts['node']}")
module.exit_json(changed=False, ha=facts)
"""
HA_SERVICES = """
import json, os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(
    argument_spec={
        "state": {},
        "part": {"default": "all"},
        "blacklist_softdog": {"type": "bool", "default": False},
        "release_wait_seconds": {"type": "int", "default": 0},
        "lock": {"type": "dict"},
    },
    supports_check_mode=True,
)
if not ((module.params["lock"] or {}).get("holder") or {}).get("run_id"):
    module.fail_json(msg="called without the lock of the run")
facts = json.loads(os.environ["FACTS"])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{facts['node']} {module.params['state']} {module.params['part']} {module.params['blacklist_softdog']}\\n")
waited = ["12 s until it was so"] if os.environ["AFTER_WAIT"] else []
module.exit_json(changed=True, watchdog_until_reboot=False, steps=[], waited=waited)
"""


class Plays:
    """The plays of protect.yml with a step of HA's, which no other role has, over a made-up cluster."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls_file = root, root / "calls"
        (root / "library").mkdir()
        (root / "library/ha_info.py").write_text(HA_INFO)
        (root / "library/ha_services.py").write_text(HA_SERVICES)
        described = yaml.safe_load((ROOT / "roles/ha/meta/pveguard.yml").read_text())
        stages = set(described["steps"]) - {"revert"}
        plays = yaml.safe_load((ROOT / "playbooks/protect.yml").read_text())
        plays = [play for play in plays if play.get("tasks", [{}])[0].get("vars", {}).get("__pveguard_stage") in stages]
        assert len(plays) == 3, "protect.yml has other plays than this test knows"
        for play in plays:
            play["tasks"][0]["ansible.builtin.import_tasks"] = str(ROOT / "playbooks/tasks/roles.yml")
            play["environment"] = {
                "FACTS": "{{ facts | to_json }}",
                "CALLS": str(self.calls_file),
                "AFTER_WAIT": "{{ after_wait | default('') }}",
            }
        (root / "play.yml").write_text(yaml.safe_dump(plays))

    def facts(self, name: str, **changes: Any) -> dict[str, Any]:
        root = self.root / f"node-{len(list(self.root.glob('node-*')))}"
        root.mkdir()
        return {**Node(root).facts(), "node": name, **changes}

    def run(
        self, hosts: dict[str, dict[str, Any]], seen: dict[str, dict[str, Any]] | None = None, check: bool = False, **extra: Any
    ) -> str:
        """``hosts``: what the modules answer; ``seen``: what node_info had said before, where that was something else."""
        common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_user": ""}
        inventory = {
            name: {
                **common,
                "facts": facts,
                "pveguard_node": {"node": {"ha": (seen or {}).get(name, facts), "corosync": {"cluster_name": "one"}}},
            }
            for name, facts in hosts.items()
        }
        (self.root / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": inventory}}))
        self.calls_file.write_text("")
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", self.root / "hosts.yml", self.root / "play.yml"]
            + ["-e", json.dumps(extra), *(["--check"] if check else [])],
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            cwd=ROOT,
        )
        self.code = done.returncode
        return " ".join((done.stdout + done.stderr).split())

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def plays(tmp_path: Path) -> Plays:
    return Plays(tmp_path)


def test_all_are_looked_at_then_one_after_the_other_then_the_watchdogs(plays: Plays) -> None:
    names = ["pve1", "pve2", "pve3"]
    output = plays.run({name: plays.facts(name) for name in names}, ha_blacklist_softdog=True)
    assert plays.code == 0, output
    calls = plays.calls
    assert sorted(calls[:3]) == [f"{name} look" for name in names]
    assert calls[3:6] == [f"{name} disabled managers False" for name in names]
    assert sorted(calls[6:9]) == [f"{name} look" for name in names]
    assert sorted(calls[9:]) == [f"{name} disabled watchdog True" for name in names]


def test_what_the_last_node_says_stops_all_before_the_first_is_changed(plays: Plays) -> None:
    """Every reason is in test_ha_info.py."""
    hosts = {name: plays.facts(name) for name in ("pve1", "pve2", "pve3")}
    before = dict(hosts)
    hosts["pve3"] = {**hosts["pve3"], "other_requests": ["node pve2 is in state 'fence'"]}
    output = plays.run(hosts, seen=before)
    assert plays.code != 0 and "node pve2 is in state 'fence'" in output
    assert "nothing was changed on any node" in output
    assert [call for call in plays.calls if "disabled" in call] == []


def test_a_held_watchdog_is_no_reason_where_the_manager_can_disarm(plays: Plays) -> None:
    hosts = {"pve1": plays.facts("pve1"), "pve2": plays.facts("pve2")}
    armed = {"watchdog_active": True, "fencing": {"command": True, "state": "armed", "said": "armed", "error": None}}
    armed_hosts = {**hosts, "pve2": {**hosts["pve2"], **armed}}
    output = plays.run(armed_hosts, seen=hosts)
    assert "pve1 disabled managers False" in plays.calls, output
    assert not any("wait" in call for call in plays.calls)
    # The answer of the made-up module never changes; the real one has disarmed by now.
    assert "a client still holds the watchdog of pve2" in output
    # A dry run, in which nobody disarms, says what the run does all the same.
    output = plays.run(armed_hosts, seen=hosts, check=True)
    assert plays.code == 0, output
    assert sorted(call for call in plays.calls if "watchdog" in call) == [f"pve{n} disabled watchdog False" for n in (1, 2)]


HELD = {"watchdog_active": True, "fencing": {"command": False, "state": None, "said": None, "error": None}}


def held(plays: Plays) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The last resource was removed a minute ago, and the manager cannot disarm."""
    before = {name: plays.facts(name) for name in ("pve1", "pve2", "pve3")}
    return {**before, "pve2": {**before["pve2"], **HELD}}, before


def test_all_wait_until_the_managers_let_go(plays: Plays) -> None:
    hosts, before = held(plays)
    output = plays.run(hosts, seen=before, after_wait=json.dumps({"watchdog_active": False}))
    names = list(hosts)
    said = "There is no HA resource any more, but pve2 still holds the watchdog"
    assert output.count(said) == 1 and "cannot disarm: waiting until" in output and "shows the LRM idle, at most 900 s" in output
    assert sorted(plays.calls[:3]) == [f"{name} look" for name in names]
    assert sorted(plays.calls[3:6]) == [f"{name} wait 900" for name in names]
    assert plays.calls[6:9] == [f"{name} disabled managers False" for name in names], output
    assert "12 s until it was so" in output


@pytest.mark.parametrize("wait", ["0", "7"])
def test_managers_that_do_not_let_go_in_time(plays: Plays, wait: str) -> None:
    """Also where the number comes as text."""
    hosts, before = held(plays)
    output = plays.run(hosts, seen=before, ha_release_wait_seconds=wait)
    assert plays.code != 0
    assert "nothing was changed on any node: there is no HA resource any more, but the LRM is still active" in output
    assert "ha-manager crm-command disarm-ha freeze" in output and "every node online" not in output
    assert [call for call in plays.calls if "disabled" in call] == []
    assert len([call for call in plays.calls if call.endswith("wait 7")]) == (3 if wait == "7" else 0)


def test_a_dry_run_says_that_it_would_wait(plays: Plays) -> None:
    hosts, before = held(plays)
    output = plays.run(hosts, seen=before, check=True)
    assert not any("wait" in call for call in plays.calls)
    assert plays.code == 0 and "the run would wait until" in output, output
    assert "pve3 disabled managers False" in plays.calls


def test_a_stranger_that_holds_the_watchdog_stops_the_run(plays: Plays) -> None:
    hosts, before = held(plays)
    client = {"pid": 77, "name": "backup-tool", "manager": False}
    hosts["pve2"]["watchdog"] = {**hosts["pve2"]["watchdog"], "clients": [client]}
    output = plays.run(hosts, seen=before)
    assert plays.code != 0 and "pve2: the watchdog is held by backup-tool, pid 77, which is no part of HA" in output
    assert [call for call in plays.calls if "disabled" in call or "wait" in call] == []


def test_a_resource_that_came_since_leaves_ha_on(plays: Plays) -> None:
    before = {"pve1": plays.facts("pve1"), "pve2": plays.facts("pve2")}
    used = {name: {**facts, "resources": ["vm:100"]} for name, facts in before.items()}
    output = plays.run(used, seen=before)
    assert plays.code == 0 and "HA is in use and stays as it is: vm:100" in output, output
    assert sorted(plays.calls) == ["pve1 look", "pve2 look"]


def test_disabled_refuses_resources_by_name(plays: Plays) -> None:
    used = {name: plays.facts(name, resources=["vm:100"]) for name in ("pve1", "pve2")}
    output = plays.run(used, ha_state="disabled")
    assert plays.code != 0 and "HA is in use: vm:100" in output
    assert sorted(plays.calls) == ["pve1 look", "pve2 look"]


def off(plays: Plays, name: str, **changes: Any) -> dict[str, Any]:
    done = {"managers_off": True, "watchdog_off": True, "disabled": True, "enabled": False, "remembered": True}
    return plays.facts(name, **{**done, **changes})


def test_a_second_run_asks_nobody(plays: Plays) -> None:
    output = plays.run({name: off(plays, name) for name in ("pve1", "pve2")})
    assert plays.code == 0 and plays.calls == [], output


def test_resources_added_while_ha_is_masked_are_said_by_the_next_run(plays: Plays) -> None:
    added = {"resources": ["vm:100"], "unattended": ["vm:100"]}
    output = plays.run({name: off(plays, name, **added) for name in ("pve1", "pve2")})
    assert plays.code == 0, output
    assert "[WARNING]: nothing recovers vm:100 on pve1" in output
    assert "HA is masked here although it is in use; nothing recovers vm:100. Set ha_state: enabled" in output
    assert sorted(plays.calls) == ["pve1 look", "pve2 look"]


def test_a_unit_that_came_back_on_one_node_is_switched_off_there(plays: Plays) -> None:
    back = off(plays, "pve2", managers_off=False, disabled=False, returned=["pve-ha-lrm.service"])
    output = plays.run({"pve1": off(plays, "pve1"), "pve2": back})
    assert plays.code == 0, output
    assert "pve2 disabled managers False" in plays.calls
    assert "pve1 disabled managers False" not in plays.calls


def test_what_the_managers_left_is_removed_and_softdog_follows_its_variable(plays: Plays) -> None:
    left = off(plays, "pve1", leftovers=["nodes/pve1/lrm_status"])
    output = plays.run({"pve1": left, "alone": off(plays, "alone")})
    assert plays.code == 0 and "pve1 disabled watchdog False" in plays.calls, output
    output = plays.run({"pve1": off(plays, "pve1")}, ha_blacklist_softdog=True)
    assert plays.code == 0 and "pve1 disabled watchdog True" in plays.calls, output
    output = plays.run({"pve1": off(plays, "pve1")}, ha_blacklist_softdog="false")
    assert plays.code == 0 and plays.calls == [], output


def test_enabled_asks_for_everything_back(plays: Plays) -> None:
    output = plays.run({name: off(plays, name) for name in ("pve1", "pve2")}, ha_state="enabled")
    assert plays.code == 0, output
    assert plays.calls == ["pve1 enabled all False", "pve2 enabled all False"]
