# SPDX-License-Identifier: Apache-2.0
"""Each switch and each number given as text does the same as the value: the playbooks run to their end, and ask the modules
for the same.

The real playbooks and roles run under ansible-playbook; action plugins of the modules' names answer in the place of a
member and a probe. They take arguments as the modules declare them and note every call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.diet import measures

from tests.corosync.cluster_facts import NAME, conf, node
from tests.ha.systemd import Node
from tests.project import ansible_runs
from tests.project.test_typed_variables import OPTIONS, SPECS, TYPES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

PLUGIN = '''
import json, os
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

NAME = "MODULE"
with open(os.environ["STUBS"] + "/known.json") as file:
    KNOWN = json.load(file)

class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        host = task_vars["inventory_hostname"]
        given = ArgumentSpecValidator(KNOWN["specs"][NAME]).validate(dict(self._task.args))
        if given.error_messages:
            return {"failed": True, "msg": "; ".join(given.error_messages)}
        taken = given.validated_parameters
        # Another process each time, another time in each file.
        for name in ("holder", "release"):
            taken.pop(name, None)
        (taken.get("lock") or {}).pop("holder", None)
        for each in taken.get("files") or []:
            each.pop("content", None)
        with open(os.environ["STUBS"] + "/calls", "a") as calls:
            calls.write(json.dumps([host, NAME, self._task.check_mode, taken], sort_keys=True, default=str) + "\\n")
        answer = {"changed": False, **KNOWN["answers"].get(NAME, {})}
        if NAME in ("node_info", "ha_info"):
            facts = KNOWN["nodes"][host]
            answer.update({"node": facts, "ha": facts["ha"], "acquired": True})
        return answer
'''


#: Numbers that measures of the write diet read.
KERNEL = ("vm.swappiness", "vm.dirty_expire_centisecs", "vm.dirty_writeback_centisecs", "zfs_txg_timeout")


def facts(folder: Path) -> dict[str, dict[str, Any]]:
    """A member with HA on and the database on disk, and a probe."""
    live = (1, 1000)
    text = conf(nodes=1)
    more: dict[str, Any] = {
        "units": {"pve-cluster.service": {"active": "active", "enabled": "enabled"}},
        "ha": Node(folder).facts(),
        "counters": {"time": "2026-11-20T08:00:00Z", "machine": "m"},
        "locks_kept": [],
        # Each is to be finished or taken back, so that the module is asked for all of them.
        "write_diet": {
            name: {"installed": True, "kept": True, "pending": True, "values": dict.fromkeys(KERNEL, 1), "available_kib": 1}
            for name in measures.MEASURES
        },
    }
    watch1 = {**node(1000, text, text, live=live, **more), "hostname": "watch1"}
    return {"pve1": node(1, text, text, live=live, **more), "watch1": watch1}


ANSWERS: dict[str, Any] = {
    "run_lock": {"acquired": True, "holder": {}, "where": "/run/pveguard/lock"},
    "fsync_bench": {"verdict": "pass", "reason": "ok", "message": "fine", "cached": False},
    "link_bench": {"verdict": "pass", "reason": "ok", "message": "fine", "links": []},
    "ha_services": {"watchdog_until_reboot": False},
    "ram_state": {"switched": True, "pmxcfs": {}},
    "pmxcfs_writes": {"msg": "not measured here"},
    "corosync_conf": {"steps": 1, "config_version": 6, "restart_needed": [], "live_member_ids": [1], "text": "new",
                      "before": "old"},
    "ring_events": {"mark": "m", "ring": None},
    "node_traces": {"traces": {"guests": [], "replication": [], "ha_services": [], "ha_rules": [], "storages": [],
                               "backup_jobs": [], "files": [], "directory": False}},
    "ram_state_restore": {"restore": {"generation": None, "refusals": [], "shown": ""}},
}  # fmt: skip


def as_text(value: Any) -> str:
    """A switch or a number as an operator types it."""
    if isinstance(value, bool):
        return {True: "yes", False: "off"}[value]
    return f" {value} " if isinstance(value, int) else str(value)


def other(name: str) -> Any:
    """Another value than the default of a variable."""
    default = OPTIONS[name].get("default")
    kind = TYPES[name]
    if kind == "bool":
        return not default
    if name == "probe_votes":
        return 1
    number = (default or 0) + 4
    return number if kind == "int" else number + 0.5


RUN = ("site.yml", "playbooks/observe.yml")
HOSTS = {"pve1": 1, "watch1": 1000}


class Playbooks:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "action").mkdir()
        for name in SPECS:
            (folder / f"action/{name}.py").write_text(PLUGIN.replace("MODULE", name))
        (folder / "known.json").write_text(json.dumps({"specs": SPECS, "answers": ANSWERS, "nodes": facts(folder)}))

    def run(self, of_hosts: dict[str, dict[str, Any]], *arguments: str) -> list[Any]:
        """The calls of the modules in a run of all of RUN; ``of_hosts``: host -> its variables."""
        hosts = {
            name: {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "corosync_cluster_name": NAME,
                "corosync_links": [f"10.0.0.{number % 250}", f"10.1.0.{number % 250}"],
                "pveguard_reports_dir": str(self.folder / "reports"),
                "pveguard_gate_enforce": "always",
                **of_hosts[name],
            }
            for name, number in HOSTS.items()
        }
        inventory = self.folder / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "children": {"pve_probe": {"hosts": {"watch1": None}}}}}))
        (self.folder / "calls").write_text("")
        actions, stubs = str(self.folder / "action"), str(self.folder)
        more = {"ANSIBLE_ACTION_PLUGINS": actions, "ANSIBLE_FORKS": "1", "STUBS": stubs}
        ansible_runs.run("ansible-playbook", "-i", inventory, *RUN, *arguments, **more)
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def playbooks(tmp_path: Path) -> Playbooks:
    return Playbooks(tmp_path)


DEFAULTS = {name: OPTIONS[name]["default"] for name in TYPES if OPTIONS[name].get("default") is not None}
OTHERS = {name: other(name) for name in TYPES if name != "corosync_node_id"}


def test_an_inventory_of_text_does_what_one_of_values_does(playbooks: Playbooks) -> None:
    """One host has other values than the defaults, the other one has the defaults."""
    # The state in RAM and the diet stay wanted, or their roles have nothing to ask.
    member = {**OTHERS, "ram_state_enabled": True, "write_diet_enabled": True}
    values: dict[str, dict[str, Any]] = {
        name: {"corosync_node_id": number, **(member if name == "pve1" else DEFAULTS)} for name, number in HOSTS.items()
    }
    texts = {name: {key: as_text(value) for key, value in each.items()} for name, each in values.items()}
    wanted = playbooks.run(values)
    modules = {call[1] for call in wanted}
    assert {"fsync_bench", "link_bench", "ha_services", "ram_state", "pmxcfs_writes", "corosync_conf", "write_diet"} <= modules
    asked = [call[3]["measures"] for call in wanted if call[:2] == ["pve1", "write_diet"]]
    assert [name for each in asked for name in each] == list(measures.MEASURES)
    assert playbooks.run(texts) == wanted


def test_a_tag_chooses_a_measure_of_the_write_diet(playbooks: Playbooks) -> None:
    """Under the lock of the run, and nothing else is done."""
    member = {**OTHERS, "ram_state_enabled": True, "write_diet_enabled": True}
    of_hosts = {name: {"corosync_node_id": number, **(member if name == "pve1" else DEFAULTS)} for name, number in HOSTS.items()}
    calls = playbooks.run(of_hosts, "--tags", "journald")
    of_member = [call[1] for call in calls if call[0] == "pve1"]
    assert of_member == ["node_info", "write_diet", "run_lock"]
    assert "lock" in calls[0][3], "the first look takes the lock"
    assert [name for call in calls if call[1] == "write_diet" for name in call[3]["measures"]] == ["journald"]
    assert calls[-1][1] == "run_lock" and calls[-1][3]["state"] == "released"


def test_text_on_the_command_line_does_what_values_do_in_a_dry_run(playbooks: Playbooks) -> None:
    ids = {name: {"corosync_node_id": number} for name, number in HOSTS.items()}
    wanted = playbooks.run(ids, "--check", "-e", json.dumps(OTHERS))
    assert not [call for call in wanted if call[:2] == ["pve1", "ram_state"] and call[3]["state"] == "enabled"]
    given = " ".join(f"{name}='{as_text(value)}'" for name, value in OTHERS.items())
    assert playbooks.run(ids, "--check", "-e", given) == wanted
