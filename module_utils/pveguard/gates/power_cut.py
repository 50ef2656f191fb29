"""The two ends of a power-cut proof: the controller notes what a node acknowledges until its power goes, and judges it.

The acknowledgements are a text file on the controller: a line of JSON (run, boot id, path, slots, host), then one
record number a line as each arrives, then a line of JSON with how it ended.
"""

from __future__ import annotations

import inspect
import json
import os
import secrets
import select
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.units import bytes_text
from ..disk import block_device
from . import power_ledger

#: A node that has said nothing for so long has lost its power: a disk that takes longer for one record is refused by
#: the gate anyway (fsync_bench.STALL_S).
SILENCE_S = 30.0
#: Until the first record: log in, start Python, write 4 MiB.
BEGIN_S = 120.0


def ssh_argv(connection: Mapping[str, Any], command: Sequence[str]) -> list[str]:
    """The argument vector that runs ``command`` on a node.

    ``connection``: ``host`` and, each optional, ``port``, ``user``, ``key`` (file), ``arguments`` (texts as in
    ansible_ssh_common_args), ``executable``, ``become`` (through ``sudo -n``), ``local`` (this machine, no ssh). The
    connection is one of its own, which notices in seconds that the other end is gone.
    """
    command = [*(["sudo", "-n", "--"] if connection.get("become") else []), *command]
    if connection.get("local"):
        return command
    argv = [str(connection.get("executable") or "ssh"), "-T"]
    # The first value that ssh sees of an option counts.
    for option in (
        "BatchMode=yes",
        "ControlMaster=no",
        "ControlPath=none",
        "ServerAliveInterval=2",
        "ServerAliveCountMax=5",
    ):
        argv += ["-o", option]
    for text in connection.get("arguments") or []:
        argv += shlex.split(text or "")
    for flag, key in (("-p", "port"), ("-i", "key"), ("-l", "user")):
        if connection.get(key):
            argv += [flag, str(connection[key])]
    return [*argv, str(connection["host"]), shlex.join(command)]


def watch(
    connection: Mapping[str, Any],
    path: str,
    acknowledgements: str,
    seconds: float,
    *,
    name: str = "",
    python: str = "/usr/bin/python3",
    begin_s: float = BEGIN_S,
    silence_s: float = SILENCE_S,
) -> dict[str, Any]:
    """Have a ledger written below ``path`` on a node, and note each acknowledged record in ``acknowledgements``, until
    the node falls silent or its connection ends. A file of an earlier run is replaced.

    Returns ``run``, ``acknowledged`` (number of records), ``seconds``, ``ended`` (how). Raises PveguardError when no
    record arrived, or when ``seconds`` went by without a cut (nothing is left on the node then).
    """
    run = secrets.token_hex(16)
    source = inspect.getsource(power_ledger)
    argv = ssh_argv(connection, [python, "-", path, run, f"{seconds:g}"])
    target = Path(acknowledgements)
    target.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (
        open(target, "w") as notes,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        assert process.stdin and process.stdout and process.stderr
        try:
            try:
                process.stdin.write(source.encode())
                process.stdin.close()
            except BrokenPipeError:
                pass  # what it says on stderr tells why
            acknowledged, ended = _note(process.stdout.fileno(), notes, name, begin_s, silence_s)
        finally:
            # A node without power leaves the connection hanging.
            process.kill()
        error = b"" if acknowledged else process.stderr.read()
        process.wait()
        notes.write(json.dumps({"ended": ended, "acknowledged": acknowledged}) + "\n")
        notes.flush()
        os.fsync(notes.fileno())
    if ended == "expired":
        target.unlink()
        raise PveguardError(
            f"{name or connection.get('host')}: the power was not cut within {seconds:g} s "
            "(fsync_gate_power_cut_minutes); nothing is left on the node"
        )
    if not acknowledged:
        target.unlink()
        why = error.decode(errors="replace").strip()[-500:]
        raise PveguardError(
            f"{name or connection.get('host')}: no record was acknowledged: {ended}. {why}".strip()
        )
    return {
        "run": run,
        "acknowledged": acknowledged,
        "seconds": round(time.monotonic() - began, 1),
        "ended": ended,
    }


def _note(source: int, notes: Any, name: str, begin_s: float, silence_s: float) -> tuple[int, str]:
    """Copy what arrives from ``source`` to ``notes``, line by line: the last record and how it ended."""
    acknowledged = 0
    rest = b""
    while True:
        wait = silence_s if acknowledged else begin_s
        if not select.select([source], [], [], wait)[0]:
            return acknowledged, f"no answer for {wait:g} s"
        chunk = os.read(source, 65536)
        if not chunk:
            return acknowledged, "the connection ended"
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.isdigit():
                # Every record was acknowledged in turn: a gap would be a fault of ours.
                if int(line) != acknowledged + 1:
                    return acknowledged, f"record {line.decode()} came after {acknowledged}"
                acknowledged += 1
                notes.write(f"{acknowledged}\n")
                continue
            try:
                said = json.loads(line)
            except ValueError:
                continue  # a login message
            if not isinstance(said, dict):
                continue
            if "error" in said:
                return acknowledged, str(said["error"])
            if "expired" in said:
                return acknowledged, "expired"
            notes.write(json.dumps({**said, "host": name}) + "\n")
        notes.flush()


def acknowledged(path: str) -> dict[str, Any]:
    """What a file of acknowledgements says: ``run``, ``boot_id``, ``path``, ``acknowledged``; {} without a usable one.

    A controller that was stopped left no last line: then the numbers are counted.
    """
    try:
        lines = Path(path).read_text().splitlines()
        head = json.loads(lines[0])
    except (OSError, ValueError, IndexError):
        return {}
    if not isinstance(head, dict) or not {"run", "boot_id", "path"} <= set(head):
        return {}
    numbers = [int(line) for line in lines[1:] if line.isdigit()]
    return {
        "run": str(head["run"]),
        "boot_id": str(head["boot_id"]),
        "path": str(head["path"]),
        "acknowledged": max(numbers, default=0),
    }


def prepare(path: str, *, nearest_parent: bool = False, remove: bool = True) -> dict[str, Any]:
    """On the node, before: where the ledger goes (``path``), its ``drive_identity`` and ``device``. What an earlier
    run left is removed. Raises PveguardError where a ledger would prove nothing or has no room."""
    where = block_device.describe(path, skip_memory=nearest_parent)
    parent = where["measured_path"] if nearest_parent else path
    if not os.path.isdir(parent):
        raise PveguardError(f"{parent} is not a directory, expected one on the disk to be proved")
    if where["class"] == "ram":
        raise PveguardError(
            f"{parent} is in memory ({where['class_rule']}), which no power cut leaves: name a path on a disk"
        )
    space = os.statvfs(parent)
    if space.f_flag & os.ST_RDONLY:
        raise PveguardError(f"{parent} is on a read-only file system ({where['filesystem']})")
    if remove:
        power_ledger.remove(parent)
    wanted = 2 * power_ledger.SLOTS * power_ledger.RECORD
    if (where["free_bytes"] or 0) < wanted:
        raise PveguardError(
            f"{parent} has {bytes_text(where['free_bytes'])} free, wanted {bytes_text(wanted)} for the ledger"
        )
    return {"path": parent, "drive_identity": where["drive_identity"], "device": where["device"]}


def verify(path: str, run: str, boot_id: str, acknowledged: int, *, remove: bool = True) -> dict[str, Any]:
    """On the node, after the cut: the dict of :func:`power_ledger.judge`, with ``message``, ``drive_identity``,
    ``device``, ``path`` and ``time``. ``boot_id`` is that of the boot which wrote. The ledger is removed unless the
    node has not been started since."""
    where = block_device.describe(path, skip_memory=False)
    running = power_ledger.boot_id()
    if running == boot_id:
        found: dict[str, Any] = {
            "verdict": "inconclusive",
            "evidence": "the node has not lost its power since: it runs the same boot",
            "lost": 0,
            "highest": None,
            "acknowledged": acknowledged,
        }
    else:
        found = power_ledger.judge(power_ledger.read(path, run), acknowledged)
        if remove:
            power_ledger.remove(path)
    device = where["device"] or where["source"]
    meaning = {
        "acquitted": "stores what it acknowledges, as far as this power cut shows",
        "convicted": "acknowledges what it has not stored: do not keep a node's state on it",
        "inconclusive": "is neither convicted nor acquitted",
    }[found["verdict"]]
    return {
        **found,
        "message": f"{path} ({where['filesystem']} on {device}) {meaning}: {found['evidence']}",
        "drive_identity": where["drive_identity"],
        "device": where["device"],
        "path": path,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
