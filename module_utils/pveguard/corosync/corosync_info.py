"""What a node's Corosync is configured to be and what it is: both copies, membership, quorum, links."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base import supervised
from ..base.atomic import read_or_none
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..formats import corosync_conf
from ..formats.corosync_conf import CorosyncConfError, Document
from ..formats.corosync_tools import number, parse_cmap, parse_quorum
from ..pmxcfs import places, pmxcfs, probe_home
from . import corosync_pending

HOST_COPY = Path(places.HOST_CONF.lstrip("/"))
CLUSTER_COPY = Path(places.CLUSTER_CONF.lstrip("/"))
AUTHKEY = Path("etc/corosync/authkey")
PROGRAM = Path("usr/sbin/corosync")
#: Seconds between two looks of :func:`wait`; a look takes a few short commands.
LOOK_EVERY_S = 0.5
#: Seconds that the daemon of /etc/pve may take to answer.
ANSWER_S = 20.0


def _nothing_known() -> dict[str, Any]:
    return {
        "installed": False,
        "running": False,
        "cluster_name": None,
        "host": None,
        "cluster": None,
        "copies_equal": None,
        "example_conf": False,
        "running_config_version": None,
        "member_config_versions": {},
        "members": [],
        "live_member_ids": [],
        "quorate": None,
        "expected_votes": None,
        "total_votes": None,
        "authkey_sha256": None,
        "authkey_mode": None,
        "authkey_exposed": False,
        "qdevice": False,
        "two_node": False,
        "token_ms": None,
        "configured_token_ms": None,
        "node_id": None,
        "restart_pending": [],
        "links": [],
        "link_statistics": None,
        "errors": [],
    }


def collect(run: Run = real_run, root: str | Path = "/", statistics: bool = False) -> dict[str, Any]:
    """Facts of Corosync on this node; never raises. At most three commands, four where a
    restart waits, none when it is not installed.

    ``statistics`` costs one command more, for ``link_statistics``.

    Keys: installed, running (bool); cluster_name; host and cluster (``{sha256, config_version, text}`` of
    each copy or None); copies_equal (bool, None unless both exist); example_conf (the host copy is the
    example of Debian's package); running_config_version; member_config_versions (``{node id: version}`` as
    each live member runs it); members (``[{id, name, addresses, votes, probe, is_node}]`` of the nodelist, see
    :func:`_member`); live_member_ids; quorate (bool, None when it is not running); expected_votes, total_votes;
    authkey_sha256; authkey_mode (octal text, None without a key), authkey_exposed (whether others than root may read or
    change it); qdevice, two_node (bool); token_ms (effective, with the coefficient); configured_token_ms (of the file);
    node_id (of this node); restart_pending (settings that wait for a restart, see :mod:`corosync_pending`); links (``[{link,
    address, peers: {node id: state}}]``); link_statistics (None unless asked for, see :func:`parse_statistics`);
    errors (texts of what is unreadable).
    """
    root = Path(root)
    info = _nothing_known()
    info["installed"] = (root / PROGRAM).exists()
    documents: list[Document] = []
    data, places = _on_pve(root, info["errors"])
    info["cluster"], document = _copy(data, CLUSTER_COPY, info["errors"])
    if document:
        documents.append(document)
    try:
        data = read_or_none(root / HOST_COPY)
    except OSError as error:
        data = None
        info["errors"].append(f"/{HOST_COPY}: {error.strerror}")
    info["host"], document = _copy(data, HOST_COPY, info["errors"])
    if document:
        documents.append(document)
    if info["host"] and info["cluster"]:
        info["copies_equal"] = info["host"]["sha256"] == info["cluster"]["sha256"]
    if documents:
        document = documents[0]
        info["cluster_name"] = document.cluster_name
        info["qdevice"] = document.qdevice
        info["two_node"] = document.two_node
        info["configured_token_ms"] = document.token_ms
        info["members"] = [_member(node, places.get(node.name or "", (False, False))) for node in document.nodes()]
        info["example_conf"] = info["cluster"] is None and is_example(document)
    try:
        key_bytes = read_or_none(root / AUTHKEY)
        if key_bytes is not None:
            _authkey_mode(info, os.stat(root / AUTHKEY))
    except OSError as error:
        key_bytes = None
        info["errors"].append(f"/{AUTHKEY}: {error.strerror}")
    info["authkey_sha256"] = hashlib.sha256(key_bytes).hexdigest() if key_bytes is not None else None
    if info["installed"]:
        _runtime(info, run, statistics)
        info["restart_pending"] = corosync_pending.waiting(run, root)
    return info


def _authkey_mode(info: dict[str, Any], found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    info["authkey_mode"] = f"{mode:04o}"
    info["authkey_exposed"] = bool(mode & 0o077) or found.st_uid != 0


def wait(
    wanted: Mapping[str, Any],
    deadline_s: float = 60.0,
    statistics: bool = False,
    run: Run = real_run,
    root: str | Path = "/",
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Any], list[str]]:
    """Look until nothing that is ``wanted`` is missing, at most ``deadline_s`` seconds (0: one look).

    Returns the facts of the last look and what :func:`missing` says of them. The statistics are asked for once, at
    the end.
    """
    start = clock()
    while True:
        info = collect(run=run, root=root)
        lacking = missing(info, wanted)
        if not lacking or clock() - start >= deadline_s:
            break
        sleep(LOOK_EVERY_S)
    if statistics and info["running"]:
        _statistics(info, run)
    return info, lacking


def missing(info: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What of ``wanted`` is not so on this node, in words; empty when all is.

    ``wanted``: ``sha256`` and ``config_version`` of both copies, of which the running Corosync must have the version;
    ``live_member_ids`` that must be in the membership; ``quorate`` (bool). A key that is None or absent is not asked
    for.
    """
    found = []
    version, sha256 = wanted.get("config_version"), wanted.get("sha256")
    for key, path in (("cluster", CLUSTER_COPY), ("host", HOST_COPY)):
        if version is None and sha256 is None:
            break
        copy = info[key]
        if copy is None:
            why = next((text for text in info["errors"] if text.startswith(f"/{path}:")), f"/{path}: does not exist")
            found.append(why)
        elif sha256 is not None and copy["sha256"] != sha256:
            found.append(
                f"/{path}: another text (config_version {copy['config_version']}, sha256 {copy['sha256'][:12]}), wanted "
                f"sha256 {sha256[:12]}" + ("" if version is None else f", config_version {version}")
            )
        elif version is not None and copy["config_version"] != version:
            found.append(f"/{path}: config_version {copy['config_version']}, wanted {version}")
    # The version that belongs to a text is known once the text is here.
    if version is None and sha256 is not None and not found:
        version = info["cluster"]["config_version"]
    if not info["running"]:
        found.append("corosync does not run ('systemctl status corosync')")
        return found
    if version is not None and info["running_config_version"] != version:
        found.append(f"corosync runs config_version {info['running_config_version']}, wanted {version}")
    absent = sorted(set(wanted.get("live_member_ids") or []) - set(info["live_member_ids"]))
    if absent:
        found.append(
            f"not in the membership: node id {', '.join(map(str, absent))} (there are "
            f"{', '.join(map(str, info['live_member_ids'])) or 'none'})"
        )
    quorate = wanted.get("quorate")
    if quorate is not None and info["quorate"] != quorate:
        found.append("no quorum ('corosync-quorumtool -s')" if quorate else "quorate")
    return found


def is_example(document: Document) -> bool:
    """True for the example configuration of Debian's package: it has a cluster name but no config_version."""
    return document.cluster_name == "debian" and document.config_version is None


def parse_links(output: str) -> list[dict[str, Any]]:
    """``[{link, address, peers: {node id: state}}]`` of ``corosync-cfgtool -s``."""
    links: list[dict[str, Any]] = []
    for line in output.splitlines():
        if match := re.match(r"LINK ID ([0-9]+)", line):
            links.append({"link": int(match.group(1)), "address": None, "peers": {}})
        elif links and (match := re.match(r"\s+addr\s*=\s*(\S+)", line)):
            links[-1]["address"] = match.group(1)
        elif links and (match := re.match(r"\s+nodeid:\s*([0-9]+):\s*(\S+)", line)):
            links[-1]["peers"][match.group(1)] = match.group(2)
    return links


def parse_statistics(output: str) -> list[dict[str, Any]]:
    """What knet counts of each link to each node, of ``corosync-cmapctl -m stats stats.knet.``.

    ``[{link, node_id, connected, enabled, latency_average_us, latency_min_us, latency_max_us, latency_samples,
    mtu_bytes, up_count, down_count}]``, by link and node. The keys are those of cmap_keys(7), which does not name the
    unit of the latencies: libknet keeps the round trip of its own pings in microseconds, since Corosync started. They
    are None without a sample (the minimum is then a very large number), and those of a link that is down are old.
    ``mtu_bytes`` is what one packet carries. A value that is not there is None.
    """
    found: dict[tuple[int, int], dict[str, int]] = {}
    pattern = re.compile(r"stats\.knet\.node([0-9]+)\.link([0-9]+)\.([a-z_]+)")
    for key, value in parse_cmap(output).items():
        if (match := pattern.fullmatch(key)) and re.fullmatch(r"[0-9]+", value):
            node, link, name = match.groups()
            found.setdefault((int(link), int(node)), {})[name] = int(value)
    return [_link_statistics(link, node, found[link, node]) for link, node in sorted(found)]


def _link_statistics(link: int, node: int, values: Mapping[str, int]) -> dict[str, Any]:
    sampled = bool(values.get("latency_samples"))
    latencies = {
        f"latency_{ours}_us": values.get(f"latency_{theirs}") if sampled else None
        for ours, theirs in (("average", "ave"), ("min", "min"), ("max", "max"))
    }
    return {
        "link": link,
        "node_id": node,
        "connected": _flag(values.get("connected")),
        "enabled": _flag(values.get("enabled")),
        **latencies,
        "latency_samples": values.get("latency_samples"),
        "mtu_bytes": values.get("mtu"),
        "up_count": values.get("up_count"),
        "down_count": values.get("down_count"),
    }


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _statistics(info: dict[str, Any], run: Run) -> None:
    try:
        found = parse_statistics(run(["corosync-cmapctl", "-m", "stats", "stats.knet."], timeout=20).stdout)
    except CommandMissing as error:
        info["errors"].append(str(error))
        return
    # The node is a peer of itself, over a loop in memory.
    info["link_statistics"] = [each for each in found if each["node_id"] != info["node_id"]]


def _runtime(info: dict[str, Any], run: Run, statistics: bool) -> None:
    try:
        result = run(["corosync-cmapctl"], timeout=20)
        if not result.ok:
            return
        info["running"] = True
        cmap = parse_cmap(result.stdout)
        info["running_config_version"] = number(cmap.get("totem.config_version"))
        info["token_ms"] = number(cmap.get("runtime.config.totem.token"))
        info["cluster_name"] = cmap.get("totem.cluster_name") or info["cluster_name"]
        for key, value in cmap.items():
            match = re.fullmatch(r"runtime\.members\.([0-9]+)\.config_version", key)
            if match and cmap.get(f"runtime.members.{match.group(1)}.status") == "joined":
                info["member_config_versions"][match.group(1)] = number(value)
        info.update(parse_quorum(run(["corosync-quorumtool", "-s"], timeout=20).stdout))
        info["links"] = parse_links(run(["corosync-cfgtool", "-s"], timeout=20).stdout)
        if statistics:
            _statistics(info, run)
    except CommandMissing as error:
        info["errors"].append(str(error))


def _on_pve(root: Path, errors: list[str]) -> tuple[bytes | None, dict[str, tuple[bool, bool]]]:
    """The cluster's corosync.conf, and of each node that it lists whether /etc/pve has the placeholder of a probe for it, and
    whether it has something of a node. Where the file system is mounted it is read by a child, as a daemon that hangs would
    hold this process too.
    """

    def work() -> dict[str, Any]:
        data = read_or_none(root / CLUSTER_COPY)
        places = {}
        for name in _names(data):
            places[name] = _place(root / "etc/pve/nodes" / name)
        return {"conf": None if data is None else data.decode("latin-1"), "places": places}

    try:
        said = supervised.ask(work, ANSWER_S) if pmxcfs.mounted(root) else work()
    except supervised.Stalled:
        said = {}
        errors.append(f"/{CLUSTER_COPY}: no answer from the daemon within {ANSWER_S:g} s")
    except OSError as error:
        said = {}
        errors.append(f"/{CLUSTER_COPY}: {error.strerror}")
    conf = said.get("conf")
    places = {name: (bool(place[0]), bool(place[1])) for name, place in (said.get("places") or {}).items()}
    return None if conf is None else conf.encode("latin-1"), places


def _names(data: bytes | None) -> list[str]:
    """Names of nodes that can be directories."""
    try:
        nodes = corosync_conf.parse((data or b"").decode("utf-8", "replace")).nodes()
    except CorosyncConfError:
        return []
    return [node.name for node in nodes if node.name and corosync_conf.is_host_name(node.name)]


def _place(path: Path) -> tuple[bool, bool]:
    try:
        pem = read_or_none(path / "pve-ssl.pem")
        status = (path / "lrm_status").exists()
    except OSError:
        return False, False
    placeholder = pem is not None and probe_home.is_placeholder(pem)
    return placeholder, status or (pem is not None and not placeholder)


def _member(node: corosync_conf.Node, place: tuple[bool, bool]) -> dict[str, Any]:
    """``{id, name, addresses, votes, probe, is_node}`` of a listed node.

    ``is_node``: /etc/pve has a certificate of its own or the status of its LRM for it. ``probe``: it has the placeholder of
    a certificate, or neither a vote nor anything of a node. ``place``: whether it has the placeholder, and the other.
    """
    placeholder, is_node = place
    return {
        "id": node.node_id,
        "name": node.name,
        "addresses": [address for _, address in sorted(node.addresses.items())],
        "votes": node.votes,
        "probe": not is_node and (placeholder or node.votes == 0),
        "is_node": is_node,
    }


def _copy(data: bytes | None, path: Path, errors: list[str]) -> tuple[dict[str, Any] | None, Document | None]:
    if data is None:
        return None, None
    text = data.decode("utf-8", "replace")
    facts: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "config_version": None, "text": text}
    try:
        document = corosync_conf.parse(text, f"/{path}")
    except CorosyncConfError as error:
        errors.append(str(error))
        return facts, None
    facts["config_version"] = document.config_version
    return facts, document
