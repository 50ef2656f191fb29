# SPDX-License-Identifier: Apache-2.0
"""Filters that decide on the controller: inventory mistakes, the cluster plan, the holder of a run's lock."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils

_ROOT = Path(__file__).resolve().parent.parent
# Filters are loaded by the controller, which does not know this project's module_utils as modules do.
if str(_ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(_ROOT / "module_utils"))

from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.pveguard import assess, corosync_compare, inventory, plan, probe
from ansible.parsing.yaml.loader import AnsibleLoader

#: Variables of the playbooks themselves; those of roles come from their argument_specs.
PLAYBOOK_VARIABLES: dict[str, dict[str, Any]] = {
    "pveguard_gate_enforce": {"type": "str", "choices": ["joining", "always", "never"]},
    "pveguard_gate_on_failure": {"type": "str", "choices": ["exclude", "stop"]},
    "pveguard_reports_dir": {"type": "path"},
    "pveguard_lock_takeover": {"type": "str"},
    "probe_host": {"type": "str"},
    # Registered or set by the playbooks while they run.
    "pveguard_gate_alone": {"type": "raw"},
    "pveguard_authkey": {"type": "raw"},
    "pveguard_part_of_run": {"type": "raw"},
    "pveguard_leave": {"type": "raw"},
    "pveguard_node": {"type": "raw"},
    "pveguard_plan": {"type": "raw"},
    "pveguard_probe": {"type": "raw"},
    "pveguard_run": {"type": "raw"},
}


def _specs() -> dict[str, dict[str, dict[str, Any]]]:
    """``{role: {variable: spec}}`` of every role's meta/argument_specs.yml, all entry points together."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(_ROOT.glob("roles/*/meta/argument_specs.yml")):
        document = AnsibleLoader(path.read_text()).get_single_data() or {}
        options: dict[str, dict[str, Any]] = {}
        for entry in (document.get("argument_specs") or {}).values():
            options.update(entry.get("options") or {})
        found[path.parent.parent.name] = options
    return found


def _checkable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a documented option that the validator knows; required is judged by the role itself, per host."""
    keys = ("type", "choices", "elements", "options")
    out = {key: spec[key] for key in keys if key in spec}
    if "options" in out:
        out["options"] = {name: _checkable(sub) for name, sub in out["options"].items()}
    return out


def _origin(value: Any) -> str:
    try:
        from ansible._internal._datatag._tags import Origin

        origin = Origin.get_tag(value)
    except ImportError:
        return ""
    if origin is None:
        return ""
    path = getattr(origin, "path", None)
    line = getattr(origin, "line_num", None)
    if path:
        return f"{os.path.relpath(str(path))}:{line}" if line else os.path.relpath(str(path))
    return ""


def _in_vaulted_file(where: str) -> bool:
    path = where.rsplit(":", 1)[0]
    try:
        with open(path, "rb") as handle:
            return handle.read(14) == b"$ANSIBLE_VAULT"
    except OSError:
        return False


def _plain_secrets(variables: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, value in variables.items():
        if not inventory.is_secret_name(name) or not isinstance(value, str) or not value:
            continue
        if type(value).__name__ == "EncryptedString" or "{{" in value or "{%" in value:
            continue
        where = _origin(value)
        # Without a file it came from the command line or a prompt, which is the operator's own choice.
        if where and not _in_vaulted_file(where):
            found.append((name, where))
    return found


def _group_clusters(hostvars: Any) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Which groups set corosync_cluster_name themselves (in the inventory or in group_vars), and each host's groups."""
    from ansible.vars.plugins import get_vars_from_inventory_sources

    manager = getattr(hostvars, "_inventory", None)
    loader = getattr(hostvars, "_loader", None)
    if manager is None:
        return {}, {}
    clusters: dict[str, str] = {}
    for name, group in manager.groups.items():
        variables = dict(group.get_vars())
        sources = [str(source) for source in getattr(manager, "_sources", ()) if source]
        variables.update(get_vars_from_inventory_sources(loader, sources, [group], "all"))
        if variables.get("corosync_cluster_name"):
            clusters[name] = str(variables["corosync_cluster_name"])
    # A child group may refine its parent's value: only groups on different branches contradict each other.
    refined = {
        ancestor.name
        for name in clusters
        for ancestor in manager.groups[name].get_ancestors()
        if ancestor.name in clusters
    }
    for name in refined:
        clusters.pop(name)
    return clusters, {host.name: [group.name for group in host.get_groups()] for host in _hosts(manager)}


def _hosts(manager: Any) -> list[Any]:
    """Every host of the inventory, also those that --limit or serial leaves out."""
    return list(manager.get_hosts("all", ignore_limits=True, ignore_restrictions=True))


def _all_hosts(hostvars: Any) -> list[str]:
    manager = getattr(hostvars, "_inventory", None)
    if manager is not None:
        return [host.name for host in _hosts(manager)]
    return list(hostvars)


def inventory_errors(hostvars: Any, play_hosts: Collection[str] = ()) -> list[str]:
    """Every mistake of the inventory, from the variables of all its hosts; nothing is connected to.

    ``{{ hostvars | pveguard_inventory_errors(ansible_play_hosts_all) }}``: a list of sentences, empty when all is well.
    """
    specs = _specs()
    options = {name: spec for role in specs.values() for name, spec in role.items()}
    options.update(PLAYBOOK_VARIABLES)
    names = _all_hosts(hostvars) or list(play_hosts)
    raw: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    wrong: dict[str, list[str]] = {}
    for host in names:
        raw[host] = dict(hostvars.raw_get(host)) if hasattr(hostvars, "raw_get") else dict(hostvars[host])
        values[host] = {name: value for name, value in raw[host].items() if name not in options}
        rendered = hostvars[host]
        checked: dict[str, Any] = {}
        for name in options:
            if name not in raw[host] or name in ("pveguard_node", "pveguard_plan", "pveguard_run"):
                continue
            try:
                checked[name] = values[host][name] = rendered[name]
            except Exception as error:
                errors.append(f"{host}: {name} cannot be rendered: {error}")
        result = ArgumentSpecValidator({name: _checkable(options[name]) for name in checked}).validate(checked)
        for message in result.error_messages:
            wrong.setdefault(message, []).append(host)
    errors += [f"{inventory._join(hosts)}: {message}" for message, hosts in wrong.items()]
    clusters, groups = _group_clusters(hostvars)
    errors += inventory.inventory_errors(
        values,
        group_clusters=clusters,
        host_groups=groups,
        known_variables=options,
        prefixes=[f"{role}_" for role in specs] + ["pveguard_"],
        plain_secrets={host: _plain_secrets(variables) for host, variables in raw.items()},
    )
    return errors


def cluster_plan(
    hostvars: Any, play_hosts: Collection[str], bootstrap: str | None = None, joining_probe: str | None = None
) -> dict[str, plan.Plan]:
    """The plan of membership for every host; see the core ``plan``."""
    hosts = {}
    for host in _all_hosts(hostvars):
        variables = hostvars[host]
        gathered = variables.get("pveguard_node") or {}
        hosts[host] = {
            "cluster": variables.get("corosync_cluster_name") or None,
            "node": gathered.get("node"),
            "probe": _is_probe(variables),
        }
    return plan.cluster_plan(hosts, list(play_hosts), bootstrap or None, joining_probe or None)


def assessment(hostvars: Any, play_hosts: Collection[str]) -> str:
    """What is there on each host and what site.yml would change, as text for a terminal."""
    plans = cluster_plan(hostvars, play_hosts)
    parts = []
    for host in _all_hosts(hostvars):
        variables = hostvars[host]
        node = (variables.get("pveguard_node") or {}).get("node")
        if node is None:
            if host in play_hosts:
                parts.append(f"{host}: could not be asked")
            continue
        parts.append(assess.render(host, node, plans[host], _wishes(variables), variables.get("pveguard_writes")))
    return "\n\n".join(parts + assess.render_clusters(_compared(hostvars, _all_hosts(hostvars))))


def _compared(hostvars: Any, hosts: Collection[str]) -> list[dict[str, Any]]:
    """What the nodes of each cluster say, side by side."""
    nodes = {host: (hostvars[host].get("pveguard_node") or {}).get("node") for host in hosts}
    wanted = {host: hostvars[host].get("corosync_cluster_name") or None for host in hosts}
    return corosync_compare.compare(nodes, wanted, [host for host in hosts if _is_probe(hostvars[host])])


def assessments(hostvars: Any, play_hosts: Collection[str]) -> dict[str, dict[str, Any]]:
    """The same as data: ``{host: {findings: [{level, text}], changes: [text]}}`` of hosts that could be asked."""
    plans = cluster_plan(hostvars, play_hosts)
    clusters = _compared(hostvars, _all_hosts(hostvars))
    found = {}
    for host in play_hosts:
        node = (hostvars[host].get("pveguard_node") or {}).get("node")
        if node is not None:
            findings = assess.across(host, clusters) + assess.findings(node, plans[host])
            found[host] = {
                "findings": [{"level": each.level, "text": each.text} for each in findings],
                "changes": assess.changes(node, plans[host], _wishes(hostvars[host])),
            }
    return found


def _wishes(variables: Mapping[str, Any]) -> assess.Wishes:
    return assess.Wishes(
        ha_state=str(variables.get("ha_state") or "auto"),
        # What a probe stores is nobody's.
        ram_state=bool(variables.get("ram_state_enabled", True)) and not _is_probe(variables),
    )


def _is_probe(variables: Mapping[str, Any]) -> bool:
    return probe.GROUP in (variables.get("group_names") or ())


def run_holder(playbook_dir: str) -> dict[str, Any]:
    """Who runs this: run id, user, controller, process and its start, so that a dead run can be told from a live one."""
    if not isinstance(playbook_dir, str):
        raise AnsibleFilterError("pveguard_run_holder takes the playbook's directory")
    pid = _playbook_pid()
    started = _start_ticks(pid)
    machine = _machine()
    return {
        "run_id": f"{socket.gethostname()}-{machine['boot'][:8]}-{pid}-{started}",
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "controller": machine,
        "pid": pid,
        "started": started,
        "command": " ".join(Path(arg).name if arg.startswith("/") else arg for arg in _command(pid))[:200],
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def holder_is_gone(holder: Mapping[str, Any]) -> bool:
    """True when the holder of a lock certainly no longer runs: same controller, and it was rebooted or the process ended.

    Host names repeat, and a container does not see its neighbour's processes, so the machine, its boot and the pid
    namespace are compared. In doubt the holder is taken for alive.
    """
    theirs, ours = holder.get("controller"), _machine()
    if not isinstance(theirs, Mapping) or not holder.get("pid") or not ours["id"] or theirs.get("id") != ours["id"]:
        return False
    if theirs.get("boot") != ours["boot"]:
        # In containers the machine id may be that of the image: only the same one saw a boot of its own.
        return theirs.get("name") == ours["name"] and bool(theirs.get("boot"))
    if theirs.get("pid_namespace") != ours["pid_namespace"]:
        return False
    pid = int(holder["pid"])
    return not _command(pid) or _start_ticks(pid) != holder.get("started")


def _machine() -> dict[str, str]:
    """What tells this controller from others: a hash of its machine id, its boot, its pid namespace, its name."""
    return {
        "name": socket.gethostname(),
        "id": hashlib.sha256(_text("/etc/machine-id").encode()).hexdigest()[:16] if _text("/etc/machine-id") else "",
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid") if os.path.islink("/proc/self/ns/pid") else "",
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _playbook_pid() -> int:
    """The process of ansible-playbook itself: filters run in its forks as well."""
    pid = os.getpid()
    if not sys.platform.startswith("linux"):
        return pid
    best = pid
    while pid > 1:
        if any(Path(arg).name.startswith("ansible-playbook") for arg in _command(pid)[:3]):
            best = pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return best


def _start_ticks(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "0"


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        return {
            "pveguard_inventory_errors": inventory_errors,
            "pveguard_assessment": assessment,
            "pveguard_assessments": assessments,
            "pveguard_cluster_plan": cluster_plan,
            "pveguard_run_holder": run_holder,
            "pveguard_holder_is_gone": holder_is_gone,
        }
