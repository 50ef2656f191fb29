"""What a node's Corosync is configured to be and what it is: both copies, membership, quorum, links."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from . import corosync_conf
from .atomic import read_or_none
from .corosync_conf import CorosyncConfError, Document
from .run import CommandMissing, Run
from .run import run as real_run

HOST_COPY = Path("etc/corosync/corosync.conf")
CLUSTER_COPY = Path("etc/pve/corosync.conf")
AUTHKEY = Path("etc/corosync/authkey")
PROGRAM = Path("usr/sbin/corosync")


def collect(run: Run = real_run, root: str | Path = "/") -> dict[str, Any]:
    """Facts of Corosync on this node; never raises. At most three commands, none when it is not installed.

    Keys: installed, running (bool); cluster_name; host and cluster (``{sha256, config_version, text}`` of
    each copy or None); copies_equal (bool, None unless both exist); example_conf (the host copy is the
    example of Debian's package); running_config_version; member_config_versions (``{node id: version}`` as
    each live member runs it); members (``[{id, name, addresses}]`` of the nodelist); live_member_ids; quorate
    (bool, None when it is not running); expected_votes, total_votes; authkey_sha256; qdevice, two_node
    (bool); token_ms (effective, with the coefficient); configured_token_ms (of the file); node_id (of this
    node); links (``[{link, address, peers: {node id: state}}]``); errors (texts of what is unreadable).
    """
    root = Path(root)
    info: dict[str, Any] = {
        "installed": (root / PROGRAM).exists(),
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
        "qdevice": False,
        "two_node": False,
        "token_ms": None,
        "configured_token_ms": None,
        "node_id": None,
        "links": [],
        "errors": [],
    }
    documents: list[Document] = []
    for key, path in (("cluster", CLUSTER_COPY), ("host", HOST_COPY)):
        info[key], document = _copy(root, path, info["errors"])
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
        info["members"] = [
            {
                "id": node.node_id,
                "name": node.name,
                "addresses": [address for _, address in sorted(node.addresses.items())],
            }
            for node in document.nodes()
        ]
        info["example_conf"] = info["cluster"] is None and is_example(document)
    try:
        key_bytes = read_or_none(root / AUTHKEY)
    except OSError as error:
        key_bytes = None
        info["errors"].append(f"/{AUTHKEY}: {error.strerror}")
    info["authkey_sha256"] = hashlib.sha256(key_bytes).hexdigest() if key_bytes is not None else None
    if info["installed"]:
        _runtime(info, run)
    return info


def is_example(document: Document) -> bool:
    """True for the example configuration of Debian's package: it has a cluster name but no config_version."""
    return document.cluster_name == "debian" and document.config_version is None


def parse_cmap(output: str) -> dict[str, str]:
    """``{key: value}`` of ``corosync-cmapctl``."""
    found = re.findall(r"^(\S+) \([a-z0-9]+\) = (.*)$", output, flags=re.MULTILINE)
    return {key: value.strip() for key, value in found}


def parse_quorum(output: str) -> dict[str, Any]:
    """Quorum, votes, own and live node ids of ``corosync-quorumtool -s`` (it exits with 2 without quorum)."""
    values = dict(re.findall(r"^([A-Z][A-Za-z ]+):[ \t]*(.*)$", output, flags=re.MULTILINE))
    _, _, membership = output.partition("Membership information")
    return {
        "quorate": {"Yes": True, "No": False}.get(values.get("Quorate", "").strip()),
        "node_id": _int(values.get("Node ID")),
        "expected_votes": _int(values.get("Expected votes")),
        "total_votes": _int(values.get("Total votes")),
        # A line of a QDevice has node id 0.
        "live_member_ids": sorted(
            int(number)
            for number in re.findall(r"^ +([0-9]+) +[0-9]+ ", membership, flags=re.MULTILINE)
            if int(number)
        ),
    }


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


def _runtime(info: dict[str, Any], run: Run) -> None:
    try:
        result = run(["corosync-cmapctl"], timeout=20)
        if not result.ok:
            return
        info["running"] = True
        cmap = parse_cmap(result.stdout)
        info["running_config_version"] = _int(cmap.get("totem.config_version"))
        info["token_ms"] = _int(cmap.get("runtime.config.totem.token"))
        info["cluster_name"] = cmap.get("totem.cluster_name") or info["cluster_name"]
        for key, value in cmap.items():
            match = re.fullmatch(r"runtime\.members\.([0-9]+)\.config_version", key)
            if match and cmap.get(f"runtime.members.{match.group(1)}.status") == "joined":
                info["member_config_versions"][match.group(1)] = _int(value)
        info.update(parse_quorum(run(["corosync-quorumtool", "-s"], timeout=20).stdout))
        info["links"] = parse_links(run(["corosync-cfgtool", "-s"], timeout=20).stdout)
    except CommandMissing as error:
        info["errors"].append(str(error))


def _copy(root: Path, path: Path, errors: list[str]) -> tuple[dict[str, Any] | None, Document | None]:
    try:
        data = read_or_none(root / path)
    except OSError as error:
        errors.append(f"/{path}: {error.strerror}")
        return None, None
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


def _int(value: str | None) -> int | None:
    match = re.match(r"\s*([0-9]+)", value or "")
    return int(match.group(1)) if match else None
