"""Whether this node may found, join or leave a cluster, and the start of the program that does it.

Everything that must refuse is decided here, from the present state and without changing it. The work itself
is done by the node program ``cluster-member``, detached from the connection, because it takes /etc/pve down
for some seconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import node_program
from ..base.atomic import read_or_none, write_atomic
from ..base.detached import run_detached
from ..base.errors import PveguardError
from ..base.node_program import Program
from ..base.run import Run
from ..base.run import run as real_run
from ..corosync import corosync_info
from ..formats import corosync_check, corosync_conf, corosync_edit
from ..ha import ha_info
from ..pmxcfs import pmxcfs, tasks, tree
from . import join  # noqa: F401  (so that Ansible ships the program with the module)

PROGRAM = Program(
    "cluster-member",
    "cluster.join",
    (
        *("base.atomic", "base.errors", "base.mountinfo", "base.run", "base.systemd"),
        *("cluster.join", "cluster.join_node", "formats.corosync_tools", "formats.corosync_version"),
        *(f"pmxcfs.{name}" for name in ("live_database", "mount", "places", "tasks", "tree")),
    ),
)
REQUEST = "run/pveguard/cluster-member.request"
RESULT_DIR = "run/pveguard"
UNIT = "pveguard-cluster-member"
#: What putting everything back may take beyond the deadline, in seconds.
PUT_BACK_S = 180.0

#: Said wherever a member must not be added or removed.
QDEVICE = (
    "the cluster has a QDevice, which must be removed before a node is added or removed ('pvecm qdevice remove'; afterwards "
    "'pvecm qdevice setup ADDRESS')"
)

Resolve = Callable[[str], Sequence[str]]


@dataclass
class Request:
    """What the node shall become.

    ``state``: ``bootstrapped``, ``joined`` or ``left``, for which only the names are needed. ``links``: this node's
    ring addresses, index = link number.
    ``authkey``: base64, None lets a founder make one; ``authkey_sha256`` is what a member said of its own. ``conf``: the
    seed's corosync.conf for a join (None only in check mode). ``expected_ids``: node ids that must be live at the end.
    ``deadline_s``: seconds until everything is put back. ``noise``: as ``ram_state_noise``, None for the default list.
    """

    state: str
    cluster_name: str
    node_name: str
    node_id: int
    links: list[str]
    authkey: str | None = None
    conf: str | None = None
    token_ms: int | None = None
    expected_ids: list[int] = field(default_factory=list)
    deadline_s: float = 180.0
    authkey_sha256: str | None = None
    noise: list[str] | None = None


@dataclass
class Judgement:
    """``member``: it is what was asked for. ``refusals``: why it must not be done. ``conf``: the text to be
    installed."""

    member: bool
    refusals: list[str]
    conf: str | None = None
    before: str = ""
    tree_sha256: str | None = None


def judge(
    request: Request,
    run: Run = real_run,
    root: Path = Path("/"),
    resolve: Resolve | None = None,
    is_local: Callable[[str], bool] | None = None,
    check_mode: bool = False,
) -> Judgement:
    """Decide without changing anything. In ``check_mode`` what an earlier step would have brought may be
    missing."""
    info = corosync_info.collect(run=run, root=root)
    facts = pmxcfs.collect(root, patterns=request.noise)
    if request.state == "left":
        return _judge_leave(request, info, facts, root)
    conf = request.conf
    if request.state == "bootstrapped":
        node = {"name": request.node_name, "node_id": request.node_id, "links": request.links}
        token = corosync_conf.DEFAULT_TOKEN_MS if request.token_ms is None else request.token_ms
        conf = corosync_edit.render_new(request.cluster_name, [node], token)
    before = (info["host"] or {}).get("text", "")
    result = Judgement(False, [], conf, before, facts["tree_sha256"])
    own = info["cluster"]
    if own and info["cluster_name"] == request.cluster_name:
        listed = [m for m in info["members"] if (m["id"], m["name"]) == (request.node_id, request.node_name)]
        if listed and facts["has_corosync_conf"]:
            result.member = True
            return result
    result.refusals += task_refusals(root)
    result.refusals += _database_refusals(request, facts, root)
    result.refusals += _corosync_refusals(request, info, root)
    result.refusals += _name_refusals(request, resolve or _resolve, is_local or _is_local)
    if not facts["mounted"] and not check_mode:
        result.refusals.append(
            "/etc/pve is not mounted, so the node cannot be judged: 'systemctl start pve-cluster' and "
            "'journalctl -u pve-cluster'"
        )
    if request.state == "joined" and conf is not None:
        result.refusals += _conf_refusals(request, conf)
    elif request.state == "joined" and not check_mode:
        result.refusals.append("no corosync.conf of the cluster was given (option conf)")
    if request.authkey is not None:
        result.refusals += _key_refusals(request.authkey, request.authkey_sha256)
    elif request.state == "joined" and not check_mode:
        result.refusals.append("no authkey of the cluster was given (option authkey)")
    return result


def _judge_leave(request: Request, info: dict[str, Any], facts: dict[str, Any], root: Path) -> Judgement:
    """``member`` is True when nothing of a cluster is here any more, so that there is nothing to do."""
    before = (info["host"] or {}).get("text", "")
    result = Judgement(False, [], "", before, facts["tree_sha256"])
    host = None if info["example_conf"] else info["host"]
    if host is None and info["cluster"] is None and not facts["has_corosync_conf"] and info["authkey_sha256"] is None:
        result.member = True
        return result
    name = info["cluster_name"]
    if name is not None and name != request.cluster_name:
        result.refusals.append(f"this node is a member of the cluster {name!r}, not of {request.cluster_name!r}")
    if info["qdevice"]:
        result.refusals.append(QDEVICE)
    result.refusals += task_refusals(root)
    guests = _guests(root, request.node_name)
    if guests:
        result.refusals.append(f"it has guests {', '.join(guests[:8])}: migrate or remove them first")
    if facts["error"]:
        result.refusals.append(f"the node's database cannot be judged: {facts['error']}")
    if ha_info.collect(root=root)["watchdog_active"]:
        result.refusals.append(
            "a client holds the watchdog (/run/watchdog-mux.active): without corosync the node would be reset. Stop HA "
            "first (role ha, ha_state: disabled)"
        )
    return result


def _guests(root: Path, node_name: str) -> list[str]:
    """Ids of this node's guests; none where the database cannot be read, which is refused by itself."""
    try:
        held = pmxcfs.read_tree(root / pmxcfs.DATABASE)[1]
    except PveguardError:
        return []
    return [str(tree.guest_of(path)) for path in tree.own_guests(held, node_name)]


def task_refusals(root: Path) -> list[str]:
    """The program judges it again; here it is known before the node is listed in the cluster."""
    refused = tasks.refusal(tasks.running(str(root / tasks.ACTIVE)))
    return [refused] if refused else []


def _database_refusals(request: Request, facts: dict[str, Any], root: Path) -> list[str]:
    found = []
    if not facts["mounted"]:
        beneath = _entries(root / pmxcfs.MOUNT)
        if beneath:
            found.append(
                f"/etc/pve is not mounted and not empty ({', '.join(beneath[:5])}); the daemon would not "
                "start over it: "
                "move these files away"
            )
    if facts["error"] and (facts["mounted"] or facts["database_bytes"] is not None):
        found.append(f"the node's database cannot be judged: {facts['error']}")
    if facts["has_corosync_conf"]:
        found.append(
            "the node's /etc/pve holds a corosync.conf of its own: it is, or was, a member of a cluster. "
            "Remove it from "
            "there first (Proxmox VE: 'Separate a node without reinstalling')"
        )
    if request.state != "joined":
        return found
    held = []
    if facts["guests"]:
        held.append(f"guests {', '.join(map(str, facts['guests'][:8]))}")
    if facts["storages"]:
        held.append(f"storage definitions {', '.join(facts['storages'][:8])}")
    if facts["extra_users"]:
        held.append(f"users or permissions {', '.join(facts['extra_users'][:8])}")
    if held:
        found.append(
            f"the node's /etc/pve holds {'; '.join(held)}, which the cluster's content would replace: back "
            "up and remove "
            "them first, or take the host out of the cluster's group"
        )
    return found


def _corosync_refusals(request: Request, info: dict[str, Any], root: Path) -> list[str]:
    found = []
    example = info["example_conf"]
    host = info["host"]
    same = bool(host) and info["cluster_name"] == request.cluster_name
    if host and not example and not same:
        found.append(
            f"/etc/corosync/corosync.conf is of another cluster ({info['cluster_name']!r}, wanted "
            f"{request.cluster_name!r}): remove the node from that cluster, then move the file away"
        )
    if info["running"] and not example and info["cluster_name"] not in (None, request.cluster_name):
        found.append(
            f"corosync is running the cluster {info['cluster_name']!r}; stop it with 'systemctl stop "
            "corosync'"
        )
    key = info["authkey_sha256"]
    if key is not None:
        wanted = None
        if request.authkey is not None:
            try:
                wanted = hashlib.sha256(base64.b64decode(request.authkey, validate=True)).hexdigest()
            except (binascii.Error, ValueError):
                pass
        if wanted != key and (request.authkey is not None or request.state == "bootstrapped"):
            found.append(
                f"/etc/corosync/authkey exists (sha256 {key[:12]}...) and is not this cluster's key: if no "
                "cluster uses it "
                "any more, move it away"
            )
    return found


def _name_refusals(request: Request, resolve: Resolve, is_local: Callable[[str], bool]) -> list[str]:
    found = []
    addresses = list(resolve(request.node_name))
    first = request.links[0] if request.links else "ADDRESS"
    line = f"write '{first} {request.node_name}' to /etc/hosts"
    if not addresses:
        found.append(f"the host name {request.node_name} does not resolve: {line}")
    elif ipaddress.ip_address(addresses[0].partition("%")[0]).is_loopback:
        found.append(
            f"the host name {request.node_name} resolves to {addresses[0]}, a loopback address: {line}"
        )
    for number, address in enumerate(request.links):
        if not is_local(address):
            found.append(
                f"address {address} of link {number} (corosync_links) is on no interface of this host: "
                "correct "
                "corosync_links or configure the address"
            )
    return found


def _conf_refusals(request: Request, conf: str) -> list[str]:
    try:
        document = corosync_conf.parse(conf, "the cluster's corosync.conf")
        corosync_check.refuse_problems(document)
    except PveguardError as error:
        return [str(error)]
    if document.cluster_name != request.cluster_name:
        return [
            f"the given corosync.conf is of the cluster {document.cluster_name!r}, wanted "
            f"{request.cluster_name!r}"
        ]
    node = document.node(request.node_name)
    links = dict(enumerate(request.links))
    if node is None or node.node_id != request.node_id or not corosync_conf.same_addresses(node.addresses, links):
        return [
            f"the given corosync.conf does not list {request.node_name} with id {request.node_id} and these "
            "links"
        ]
    return []


def _key_refusals(authkey: str, sha256: str | None = None) -> list[str]:
    try:
        key = base64.b64decode(authkey, validate=True)
    except (binascii.Error, ValueError):
        return ["corosync_authkey is not valid base64; make it with 'base64 -w0 /etc/corosync/authkey'"]
    came = hashlib.sha256(key).hexdigest()
    if sha256 is not None and came != sha256:
        return [
            f"the key that came has sha256 {came[:12]}..., the member's /etc/corosync/authkey {sha256[:12]}...: it was changed "
            "meanwhile (playbooks/authkey.yml?) or on the way; run again"
        ]
    size = len(key)
    # corosync.conf(5) and totemconfig: 128 to 4096 bytes.
    return (
        [] if 128 <= size <= 4096 else [f"corosync_authkey is {size} bytes long; corosync takes 128 to 4096"]
    )


def apply(
    request: Request,
    judgement: Judgement,
    run: Run = real_run,
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Install the program, run it detached, and return its result. Raises DetachedError when the node was put
    back."""
    node_program.install(PROGRAM, root)
    aside = None if request.state == "left" else move_example_aside(root)
    request_file = root / REQUEST
    request_file.parent.mkdir(parents=True, exist_ok=True)
    payload = {
        "state": request.state,
        "node_name": request.node_name,
        "node_id": request.node_id,
        "cluster_name": request.cluster_name,
        "conf": judgement.conf,
        "authkey": request.authkey,
        "expected_ids": [] if request.state == "left" else sorted({*request.expected_ids, request.node_id}),
        "deadline_s": request.deadline_s,
        "tree_sha256": judgement.tree_sha256,
        "noise": request.noise,
        "run_updatecerts": True,
    }
    write_atomic(request_file, json.dumps(payload).encode(), 0o600)
    result_file = root / RESULT_DIR / f"{UNIT}.json"
    try:
        return run_detached(
            UNIT,
            [PROGRAM.launcher, "run", str(request_file), str(result_file)],
            request.deadline_s + PUT_BACK_S,
            run=run,
            result_dir=root / RESULT_DIR,
        )
    except PveguardError:
        conf = root / corosync_info.HOST_COPY
        if aside is not None and not conf.exists():
            os.rename(aside, conf)
        raise


def move_example_aside(root: Path = Path("/")) -> str | None:
    """Move the example configuration of Debian's package out of the daemon's and corosync's way; the new path
    or None.

    The daemon would import it at its first start and stay read-only (it has no config_version).
    """
    path = root / corosync_info.HOST_COPY
    data = read_or_none(path)
    if data is None:
        return None
    try:
        document = corosync_conf.parse(data.decode("utf-8", "replace"))
    except PveguardError:
        return None
    if not corosync_info.is_example(document):
        return None
    aside = path.with_name("corosync.conf.debian-example")
    os.rename(path, aside)
    return str(aside)


def _entries(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError:
        return []


def _resolve(name: str) -> list[str]:
    """Addresses of a host name, as the daemon looks them up, non-loopback ones first."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    return sorted(addresses, key=lambda address: ipaddress.ip_address(address.partition("%")[0]).is_loopback)


def _is_local(address: str) -> bool:
    """True when an interface of this host has the address; a host name is looked up first."""
    try:
        answers = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, target in answers:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(target)
                return True
        except OSError:
            continue
    return False
