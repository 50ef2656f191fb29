#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bytes that a second run of site.yml sends to a node: the payloads of its modules, at a former revision and now.

    python bench/payloads.py [--json] [--revision REV]

Needs no node. Ansible itself makes each payload, from the roles of each checkout, and hands it over a local connection to a
stand-in for Python that counts it and says that nothing was changed. The modules are those that a run calls on a node of a
cluster where all is done, each time it does; what earlier runs left on the controller (results of a gate, counters), of
some hundred bytes, is left out on both sides. A good part of each payload is Ansible's own and the same for every module: ``own``
is what is left without that of ``ping``. Exits 1 when the ratio is above its aim, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "module_utils"))

from pveguard.base import managed_file  # noqa: E402
from pveguard.base.managed_file import FileSpec  # noqa: E402
from pveguard.state import installed, ram_state  # noqa: E402

#: Before programs on a node became packages.
REVISION = "9ae2df4"
AIM = 0.5
#: A module of Ansible's that does nothing, and is no part of a run.
FLOOR = "ping"
#: What a second run called on each node at that revision, in its order, and what it calls now.
FORMER_RUN = (
    *("run_lock", "node_info", "fsync_bench", "run_lock", "ram_state"),
    *("node_info", "pmxcfs_writes", "disk_wear", "run_lock"),
)
SECOND_RUN = ("node_info", "fsync_bench", "node_info", "pmxcfs_writes")
FORMER_PLAY = """\
- name: A second run
  hosts: node
  gather_facts: false
  tasks:
    - {name: Nothing, ansible.builtin.ping: }
    - {name: Gate, ansible.builtin.import_tasks: "ROOT/playbooks/tasks/lock.yml"}
    - {name: Look, node_info: }
    - {name: Disk, fsync_bench: {path: /var/lib/pve-cluster, stored_only: true}}
    - {name: Protect, ansible.builtin.import_tasks: "ROOT/playbooks/tasks/lock.yml"}
    - name: State
      ansible.builtin.include_role: {name: ram_state, tasks_from: enable.yml}
    - {name: Look again, node_info: }
    - {name: Writes, pmxcfs_writes: {window_seconds: 0}}
    - name: Drives
      ansible.builtin.include_role: {name: write_report, tasks_from: drives.yml}
    - name: Unlock
      run_lock: {state: released, holder: "{{ playbook_dir | pveguard_run_holder }}"}
"""
#: The facts say that RAM state is as it is wanted, as on a node where the run before has brought it there.
PLAY = """\
- name: A second run
  hosts: node
  gather_facts: false
  vars:
    pveguard_reports_dir: "{{ playbook_dir }}/reports"
    write_report_measure: never
  tasks:
    - {name: Nothing, ansible.builtin.ping: }
    - {name: Look, ansible.builtin.import_tasks: "ROOT/playbooks/tasks/look.yml"}
    - {name: Disk, fsync_bench: {path: /var/lib/pve-cluster, stored_only: true}}
    - name: State
      ansible.builtin.include_role: {name: ram_state}
      vars: {__ram_state_units: {}, __ram_state_drop_in: "", __ram_state_config: {}}
    - {name: Look again, node_info: }
    - name: Report
      ansible.builtin.include_role: {name: write_report, tasks_from: report.yml}
      vars:
        __write_report_release: "{{ playbook_dir | pveguard_run_holder }}"
    - name: Unlock
      ansible.builtin.import_tasks: ROOT/playbooks/tasks/unlock.yml
      vars:
        __pveguard_released: "{{ __write_report_measured.released | default(false) }}"
"""
#: Stands where Ansible expects Python on the node.
STAND_IN = """\
#!{python} -IS
import json, re, sys
payload = sys.stdin.buffer.read()
name = re.search(rb"^ansible_module=.(?:[\\w.]+[.])?(\\w+)", payload, re.MULTILINE)
with open({notes!r}, "a") as notes:
    print(name[1].decode() if name else "?", len(payload), file=notes)
answer = {{"changed": False, "acquired": True, "released": True, "switched": False, "holder": {{}}}}
print(json.dumps({{**answer, "node": json.load(open({facts!r}))}}))
"""


def facts() -> dict[str, Any]:
    """Of a node whose RAM state is as PLAY wants it."""
    options = ram_state.Options()
    wanted = [*ram_state.specs(options, release=""), FileSpec(installed.DROP_IN)]
    files = {spec.path: managed_file.wanted(spec) for spec in wanted}
    return {
        "kernel": "",
        "counters": {},
        "units": {installed.WATCH_UNIT: {"active": "active"}},
        "ram_state": {"state": "enabled", "installed": {"program": ram_state.program_version(), "files": files}},
    }


class NothingMeasured(Exception):
    """What is missing, or what Ansible said."""


def former_checkout(revision: str, target: Path) -> Path:
    """The files of a revision, below ``target``."""
    target.mkdir()
    with subprocess.Popen(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE) as archive:
        unpacked = subprocess.run(["tar", "-x", "-C", str(target)], stdin=archive.stdout)
    if archive.returncode or unpacked.returncode:
        raise NothingMeasured(f"git archive {revision} failed: is the history here (git fetch --unshallow)?")
    return target


def measure(checkout: Path, work: Path, play: str = PLAY, calls: Sequence[str] = SECOND_RUN) -> tuple[int, list[tuple[str, int]]]:
    """``(bytes of FLOOR, [(module, bytes of its payload)])`` of a second run on one node, by the files of a checkout."""
    work.mkdir()
    notes = work / "notes"
    stand_in = work / "python3"
    (work / "facts.json").write_text(json.dumps(facts()))
    stand_in.write_text(STAND_IN.format(python=sys.executable, notes=str(notes), facts=str(work / "facts.json")))
    stand_in.chmod(0o755)
    inventory = {"all": {"hosts": {"node": {"ansible_connection": "local", "ansible_python_interpreter": str(stand_in)}}}}
    (work / "hosts.json").write_text(json.dumps(inventory))
    (work / "play.yml").write_text(play.replace("ROOT", str(checkout)))
    # Pipelining is what ansible.cfg says of ssh: a payload is the standard input of Python on the node.
    settings = {"ANSIBLE_CONFIG": str(checkout / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1"}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(work / "hosts.json"), str(work / "play.yml")]
    done = subprocess.run(command, cwd=checkout, env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        raise NothingMeasured(f"ansible-playbook in {checkout}: {(done.stdout + done.stderr)[-3000:]}")
    lines = [line.split() for line in notes.read_text().splitlines()]
    found = [(name, int(count)) for name, count in lines]
    called = tuple(name for name, _ in found)
    if called != (FLOOR, *calls):
        raise NothingMeasured(f"{checkout}: called were {' '.join(called)}, wanted {FLOOR} {' '.join(calls)}")
    return found[0][1], found[1:]


def compare(revision: str) -> dict[str, Any]:
    """What was found: ``modules`` in the order of the run, the sums, and what of them is not Ansible's own."""
    with tempfile.TemporaryDirectory(prefix="pveguard-payloads-") as folder:
        work = Path(folder)
        floor_before, before = measure(former_checkout(revision, work / "former"), work / "before", FORMER_PLAY, FORMER_RUN)
        floor_now, now = measure(ROOT, work / "now")
    total_before, total_now = (sum(count for _, count in each) for each in (before, now))
    ratio = round(total_now / total_before, 3)
    own_before, own_now = total_before - floor_before * len(before), total_now - floor_now * len(now)
    return {
        "former": revision,
        "modules_before": [{"module": name, "bytes": count} for name, count in before],
        "modules_now": [{"module": name, "bytes": count} for name, count in now],
        "bytes_before": total_before,
        "bytes_now": total_now,
        "own_before": own_before,
        "own_now": own_now,
        "own_ratio": round(own_now / own_before, 3),
        "ratio": ratio,
        "aim": AIM,
        "met": ratio <= AIM,
    }


def text(result: dict[str, Any]) -> str:
    before, now = (
        [f"{each['module']:16}{each['bytes']:>10}" for each in result[f"modules_{when}"]]
        + [f"{'together':16}{result[f'bytes_{when}']:>10}"]
        for when in ("before", "now")
    )
    lines = ["payloads of the modules of a second run, bytes a node", f"{result['former'][:12]:32}now"]
    lines += [f"{old:32}{new}".rstrip() for old, new in itertools.zip_longest(before, now, fillvalue="")]
    lines += [f"ratio {result['ratio']} (aim: at most {result['aim']}); without what is Ansible's own {result['own_ratio']}"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bytes that a second run of site.yml sends to a node, before and now.")
    parser.add_argument("--revision", default=REVISION, metavar="REV", help=f"git revision to compare with ({REVISION})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    try:
        result = compare(options.revision)
    except NothingMeasured as error:
        print(f"payloads: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if options.json else text(result))
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
