# SPDX-License-Identifier: Apache-2.0
"""Whether root gets from this node to others as Proxmox VE goes there: a login by key alone over a new connection, the host known
by the key that the cluster keeps of it, and a UNIX socket forwarded, through which something comes back.
"""

from __future__ import annotations

import os
import secrets
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .sshd import PVE, Who

#: For all of one proof.
SECONDS = 60.0
AT_ONCE = 8
#: What all proofs of one change take: the members come one after the other, each in a module call of its own.
BASE_S, MEMBER_S = 30, 4
VARIABLE = "node_hardening_sshd_confirm_seconds"
#: Of the other side: a listener that sends back in reverse what it gets. It ends by itself where nobody comes.
_ECHO = """
import os, socket, sys
path, seconds = sys.argv[1], float(sys.argv[2])
server = socket.socket(socket.AF_UNIX)
server.settimeout(seconds)
try:
    os.umask(0o177)
    server.bind(path)
    server.listen(1)
    print("ready", flush=True)
    other, _ = server.accept()
    other.settimeout(seconds)
    other.sendall(other.recv(64)[::-1])
    other.close()
finally:
    os.path.exists(path) and os.unlink(path)
"""


def command(who: Who, *, forward: str = "", port: int = 22) -> list[str]:
    """The ssh of a node to another, with Proxmox VE's own options, and never by a connection that is there already."""
    return [
        "ssh",
        *("-o", "BatchMode=yes"),
        *("-o", f"HostKeyAlias={who.name}"),
        *("-o", f"UserKnownHostsFile={PVE}/nodes/{who.name}/ssh_known_hosts"),
        *("-o", "GlobalKnownHostsFile=none"),
        *("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=20"),
        *(["-L", forward, "-o", "ExitOnForwardFailure=yes"] if forward else []),
        *([] if port == 22 else ["-p", str(port)]),
        f"root@{who.address}",
    ]


def prove(who: Who, *, port: int = 22, seconds: float = SECONDS) -> dict[str, Any]:
    """``{name, address, login, forward, error}``; never raises for what does not work."""
    found: dict[str, Any] = {"name": who.name, "address": who.address, "login": False, "forward": False, "error": ""}
    folder = tempfile.mkdtemp(prefix="pveguard-")
    word = secrets.token_hex(16)
    here, there = f"{folder}/here", f"/run/pveguard-proof-{word}"
    remote = shlex.join(["exec", "python3", "-c", _ECHO, there, f"{seconds:g}"])
    deadline = time.monotonic() + seconds
    try:
        argv = [*command(who, forward=f"{here}:{there}", port=port), remote]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}
        ) as process:
            try:
                found["login"] = _says_ready(process, deadline)
                found["forward"] = found["login"] and _comes_back(here, word, deadline)
            finally:
                if not found["forward"]:
                    process.kill()
                said = process.communicate()[1].decode("utf-8", "replace")
        if not found["login"]:
            found["error"] = " ".join(said.split())[-400:] or f"no login within {seconds:g} s"
        elif not found["forward"]:
            found["error"] = f"the login works, a forwarded UNIX socket does not: {' '.join(said.split())[-400:]}".rstrip(": ")
    except OSError as error:
        found["error"] = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def prove_all(targets: Sequence[Who], *, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """:func:`prove` for several at once: one after the other, those that do not answer would outlast the time for the proof."""
    if not targets:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(targets))) as pool:
        return list(pool.map(lambda each: prove(each, seconds=seconds), targets))


def too_short(seconds: float, peers: int) -> str:
    """Why the proofs of so many other members would come too late; empty where they would not."""
    needed = BASE_S + MEMBER_S * peers
    if seconds >= needed:
        return ""
    return f"the proofs of {peers} members may need {needed} s, and {VARIABLE} is {seconds:g}: set it to {needed} or more"


def _says_ready(process: subprocess.Popen[bytes], deadline: float) -> bool:
    assert process.stdout is not None
    said = b""
    while b"ready\n" not in said:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return False
        part = os.read(process.stdout.fileno(), 4096)
        if not part:
            return False
        said += part
    return True


def _comes_back(path: str, word: str, deadline: float) -> bool:
    with socket.socket(socket.AF_UNIX) as way:
        way.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            way.connect(path)
            way.sendall(word.encode())
            said = b""
            while len(said) < len(word) and (part := way.recv(64)):
                said += part
        except OSError:
            return False
    return said.decode("ascii", "replace") == word[::-1]
