# SPDX-License-Identifier: Apache-2.0
"""corosync.conf: parsing, and the copy from the cluster file system to the host."""

from __future__ import annotations

import os
import re
import socket
from typing import NamedTuple

from .log import Log

HOST_FILE = "/etc/corosync/corosync.conf"
NAME = "corosync.conf"


class Node(NamedTuple):
    name: str
    id: int
    address: str


class Config(NamedTuple):
    """`version` is config_version, 0 when it is missing or not a number."""

    version: int
    cluster: str
    nodes: list[Node]


def parse(text: str) -> Config:
    """Never raises: what cannot be read is empty or 0."""
    version, cluster = 0, ""
    nodes: list[Node] = []
    sections: list[str] = []
    node: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.endswith("{"):
            sections.append(line[:-1].strip())
            node = {}
        elif line == "}":
            if sections == ["nodelist", "node"] and node.get("nodeid", "").isdigit():
                name = node.get("name") or node.get("ring0_addr", "")
                nodes.append(Node(name, int(node["nodeid"]), node.get("ring0_addr", "")))
            if sections:
                sections.pop()
        else:
            key, _, value = (part.strip() for part in line.partition(":"))
            if sections == ["totem"] and key == "config_version" and re.fullmatch(r"[0-9]+", value):
                version = int(value)
            elif sections == ["totem"] and key == "cluster_name":
                cluster = value
            elif sections == ["nodelist", "node"]:
                node[key] = value
    return Config(version, cluster, nodes)


def address_of(node: Node) -> str:
    try:
        return str(socket.getaddrinfo(node.address, None)[0][4][0])
    except OSError:
        return node.address


def read_host() -> bytes | None:
    try:
        with open(HOST_FILE, "rb") as stream:
            return stream.read()
    except OSError:
        return None


def copy_to_host(data: bytes, log: Log) -> bool:
    """Copy the cluster's text to the host unless the host's is newer. True if the host's file was written."""
    version = parse(data.decode(errors="replace")).version
    if not version:
        log.crit("dcdb", "unable to parse cluster config_version")
        return False
    host = read_host()
    if host is not None:
        host_version = parse(host.decode(errors="replace")).version
        if host_version > version:
            log.crit("dcdb", f"local corosync.conf is newer ({host_version} > {version})")
            return False
        if host == data:
            return False
    log.notice("dcdb", f"wrote new corosync config '{HOST_FILE}' (version = {version})")
    temporary = f"{HOST_FILE}.tmp.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(HOST_FILE), exist_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(data)
        os.replace(temporary, HOST_FILE)
    except OSError as error:
        log.crit("dcdb", f"unable to write '{HOST_FILE}': {error.strerror}")
        return False
    return True
