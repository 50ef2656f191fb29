# SPDX-License-Identifier: Apache-2.0
"""RRD statistics: rrdcached writes each file late and at its own moment, and its journal is not on disk.

Which options count is read from the daemon that runs, not from what a version is known to have: Debian's 1.7 is started by a
script that reads /etc/default/rrdcached, others by a unit of their own. The script's variables are set in that file; a unit
gets a drop-in with its own command line and these options behind it, of which the last one counts.

The values that wait are written before every stop (:mod:`.rrd_flush`): the start script kills the daemon after five seconds.
"""

from __future__ import annotations

import getopt
import os
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.kernel import noswap_supported
from ..base.run import Run
from .parts import (
    Facts,
    Files,
    Found,
    Options,
    active,
    assignments,
    command_line,
    file_states,
    loaded,
    mount_unit,
    mounted,
    number,
    processes,
    same,
    text,
    with_block,
)

NAME = "rrdcached"
UNIT, SOCKET_UNIT = "rrdcached.service", "rrdcached.socket"
UNITS = (UNIT, SOCKET_UNIT)
DEFAULTS = "/etc/default/rrdcached"
EDITED = (DEFAULTS,)
DROP_IN = f"/etc/systemd/system/{UNIT}.d/pveguard.conf"
PROGRAM = "/usr/local/lib/pveguard/rrd_flush.py"
SOCKET = "/run/rrdcached.sock"
#: What the tmpfs of the journal is mounted from, by name.
SOURCE = "pveguard-rrd"
SYSV, NATIVE = "sysv", "unit"
TMPFS, OFF, DISK = "tmpfs", "none", "disk"
#: What is set in the file of the start script, which has no variable for -f and -F.
VARIABLES = ("WRITE_TIMEOUT", "WRITE_JITTER", "JOURNAL_PATH", "BASE_OPTIONS")
#: What the daemon takes where nothing is given (its manual page).
STOCK_WRITE_S, STOCK_JITTER_S, STOCK_FLUSH_S = 300, 0, 3600
_OPTIONS = "a:b:BFf:G:gj:Ll:m:Oo:P:p:Rs:t:U:V:w:z:"
_SUFFIXES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
JOURNALS = "rrd.journal.*"
_PAGE = 4096
MIB = 1024 * 1024


# -- looking


def look(found: Found, run: Run) -> dict[str, Any]:
    """``installed``; ``kind`` (``sysv`` or ``unit``); ``enabled``; ``running``: ``write_s``, ``jitter_s``, ``flush_s``,
    ``journal`` (path or None), ``flushes`` (at every stop), ``base``, ``socket`` of the daemon that runs, None without one;
    ``socket``: of that one, else of the next start; ``exec_start`` (of a unit that calls it itself) and ``exec_stop``, without
    pveguard's drop-in; ``defaults``: its variables in /etc/default, ``base_options``: one of them without pveguard;
    ``journal_path``: where the journal is without pveguard; ``journal_tmpfs_bytes`` (None: on no tmpfs of its own),
    ``journal_tmpfs_ours``: whether that is pveguard's; ``owner`` (uid, gid and mode of its directory); ``files``; ``noswap``;
    ``rrd``: see :func:`weigh`.
    """
    unit = found.units.get(UNIT)
    if not loaded(unit):
        return {"installed": False}
    assert unit is not None
    root = found.root
    script = unit.get("SourcePath", "").startswith("/etc/init.d/")
    starts, stops = _commands(unit, root)
    native = not script and bool(starts) and os.path.basename(_program(starts[-1])) == "rrdcached"
    shell = text(root / DEFAULTS.lstrip("/"))
    defaults, original = assignments(shell), assignments(with_block(shell, []))
    running = None
    for pid in processes(unit, root):
        argv = command_line(pid, root)
        if argv and os.path.basename(argv[0]) == "rrdcached":
            running = parse(argv[1:])
            break
    # Where it would be without pveguard: that is where it comes back to.
    path = _clean(_journal_of(starts[-1] if native else "", original) or (running or {}).get("journal"))
    mount = mounted(path, found.mounts) if path else None
    return {
        "installed": True,
        "kind": NATIVE if native else SYSV,
        "enabled": unit.get("UnitFileState") not in ("disabled", "masked"),
        "socket_unit": active(found.units.get(SOCKET_UNIT)),
        "running": running,
        "socket": (running or {}).get("socket") or _socket_of(starts[-1] if native else "", original),
        "exec_start": starts[-1] if native else "",
        "exec_stop": stops,
        "defaults": {key: defaults.get(key, "") for key in VARIABLES},
        "base_options": original.get("BASE_OPTIONS", ""),
        "journal_path": path,
        "journal_tmpfs_bytes": _size(mount["filesystem_options"]) if mount and mount["filesystem"] == "tmpfs" else None,
        "journal_tmpfs_ours": bool(mount and mount["source"] == SOURCE),
        "owner": _owner(root / path.lstrip("/")) if path else [0, 0, "0755"],
        "files": file_states([DROP_IN, PROGRAM, *([mount_file(path)] if path else [])], root),
        "noswap": noswap_supported(),
        "rrd": weigh(root / ((running or {}).get("base") or "/var/lib/rrdcached/db").lstrip("/"), running or {}),
    }


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """What the options of a command line come to; those that are not understood count as not given."""
    try:
        options = getopt.getopt(list(arguments), _OPTIONS)[0]
    except getopt.GetoptError:
        options = []
    last = dict(options)
    sockets = [value.removeprefix("unix:") for key, value in options if key == "-l" and value.startswith(("/", "unix:"))]
    return {
        "write_s": _seconds(last.get("-w"), STOCK_WRITE_S),
        "jitter_s": _seconds(last.get("-z"), STOCK_JITTER_S),
        "flush_s": _seconds(last.get("-f"), STOCK_FLUSH_S),
        "journal": last.get("-j") or None,
        # Without a journal everything is written at a stop.
        "flushes": "-F" in last or not last.get("-j"),
        "base": last.get("-b") or "/tmp",
        "socket": sockets[0] if sockets else SOCKET,
    }


def weigh(base: Path, running: Facts) -> dict[str, Any]:
    """``files`` below the base directory, their ``bytes``, and ``flush_bytes``: what one flush of them all writes, as pages of
    4 KiB that change (header, and in each archive the rows of one interval), by the header of one file of each directory.
    """
    count = total = flushed = 0
    interval = number(running.get("write_s"), STOCK_WRITE_S) + number(running.get("jitter_s"), 0) / 2
    for top, folders, names in os.walk(base):
        folders.sort()
        sizes = []
        for name in sorted(names):
            try:
                sizes.append(((Path(top, name)), os.stat(Path(top, name)).st_size))
            except OSError:
                continue
        found = [(path, size) for path, size in sizes if size]
        if found:
            count += len(found)
            total += sum(size for _, size in found)
            flushed += len(found) * _flush_bytes(*found[0], interval)
    return {"files": count, "bytes": total, "flush_bytes": flushed}


def _flush_bytes(path: Path, size: int, interval: float) -> int:
    """Of one file. Where its header is not understood, the whole file counts: never less than it is."""
    try:
        with path.open("rb") as handle:
            head = handle.read(128)
            if head[:4] != b"RRD\0" or len(head) < 128:
                return size
            sources, archives, step = (int.from_bytes(head[at : at + 8], "little") for at in (24, 32, 40))
            if not 0 < sources < 1000 or not 0 < archives < 1000 or not step:
                return size
            handle.seek(128 + sources * 120)
            described = [handle.read(120) for _ in range(archives)]
    except OSError:
        return size
    rows = [(int.from_bytes(each[24:32], "little"), int.from_bytes(each[32:40], "little")) for each in described]
    if any(not count or not steps for count, steps in rows):
        return size
    body = sum(count for count, _ in rows) * sources * 8
    pages = float(-(-max(0, size - body) // _PAGE))
    for count, steps in rows:
        new = min(count, interval / (step * steps))
        # A row every so many flushes; several rows begin anywhere in a page.
        pages += min(1.0, new) if new < 1 else -(-int(new) * sources * 8 // _PAGE) + 0.5
    return min(size, int(pages * _PAGE))


def _commands(unit: Facts, root: Path) -> tuple[list[str], list[str]]:
    """ExecStart and ExecStop of a unit, in order, without pveguard's drop-in."""
    found: dict[str, list[str]] = {"ExecStart": [], "ExecStop": []}
    paths = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", "").split()]
    for path in paths:
        if not path or path == DROP_IN:
            continue
        for line in text(root / path.lstrip("/")).replace("\\\n", " ").splitlines():
            key, _, value = line.strip().partition("=")
            key, value = key.strip(), value.strip()
            if key in found and not value:
                found[key] = []
            elif key in found:
                found[key].append(" ".join(value.split()))
    return found["ExecStart"], found["ExecStop"]


def _program(command: str) -> str:
    return (command.split() or [""])[0].lstrip("@-:+!|")


def _journal_of(start: str, variables: Facts) -> str:
    """The journal's directory that a start names: in a unit's command, or in the start script's variable."""
    if not start:
        return str(variables.get("JOURNAL_PATH", ""))
    return _parse_start(start, variables)["journal"] or ""


def _socket_of(start: str, variables: Facts) -> str:
    if start:
        return str(_parse_start(start, variables)["socket"])
    return _clean(str(variables.get("SOCKFILE", ""))) or SOCKET


def _parse_start(start: str, variables: Facts) -> dict[str, Any]:
    words = [re.sub(r"\$\{?(\w+)\}?", lambda match: str(variables.get(match[1], "")), word) for word in start.split()[1:]]
    return parse(words)


def _clean(path: str | None) -> str:
    return os.path.normpath(path) if path and path.startswith("/") else ""


def _seconds(value: str | None, default: int) -> int:
    match = re.fullmatch(r"(\d+)([smhdw]?)", value or "")
    return int(match[1]) * _SUFFIXES[match[2]] if match else default


def _size(options: str) -> int:
    match = re.search(r"(?:^|,)size=(\d+)([kmg]?)", options)
    return int(match[1]) * {"": 1, "k": 1024, "m": MIB, "g": 1024 * MIB}[match[2]] if match else 0


def _owner(place: Path) -> list[Any]:
    try:
        found = place.stat()
    except OSError:
        return [0, 0, "0755"]
    return [found.st_uid, found.st_gid, f"{found.st_mode & 0o7777:04o}"]


# -- what is wanted


def settings(options: Options, facts: Facts) -> dict[str, Any]:
    """What the options come to on a node: ``write_s``, ``jitter_s``, ``flush_s``, ``journal`` (``none`` where the node has
    none), ``journal_bytes`` of the tmpfs, ``mount``: whether it is pveguard's, as somebody may have made one.
    """
    journal = (options.get("journal") or TMPFS) if facts.get("journal_path") else OFF
    theirs = facts.get("journal_tmpfs_bytes") is not None and not is_ours(facts)
    write = int(number(options.get("write_seconds"), 3600))
    return {
        "write_s": write,
        "jitter_s": min(write, int(number(options.get("jitter_seconds"), 600))),
        # The daemon warns below twice the write interval.
        "flush_s": max(2 * write, STOCK_FLUSH_S),
        "journal": journal,
        "journal_bytes": int(number(options.get("journal_mib"), 128)) * MIB,
        "mount": journal == TMPFS and not theirs,
    }


def differs(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return []
    wish, now = settings(options, facts), facts.get("running")
    if now is None:
        # One that somebody has stopped for good is nobody's to start.
        return ["start rrdcached, which does not run"] if facts.get("kept") and facts.get("enabled") else []
    todo = []
    if any(now[key] != wish[key] for key in ("write_s", "jitter_s", "flush_s")):
        todo.append(f"write RRD files every {_interval(wish)} instead of {_interval(now)}")
    in_place = not wish["mount"] or facts.get("journal_tmpfs_bytes") == wish["journal_bytes"]
    if wish["journal"] == TMPFS and not (now["journal"] and now["flushes"] and in_place):
        mib = wish["journal_bytes"] // MIB
        todo.append(f"keep rrdcached's journal in a tmpfs of {mib} MiB, and write all values before a stop")
    if wish["journal"] == OFF and now["journal"]:
        todo.append("switch rrdcached's journal off, and write all values before a stop")
    if wish["journal"] == DISK and (facts.get("journal_tmpfs_bytes") is not None and is_ours(facts) or not now["journal"]):
        todo.append("keep rrdcached's journal on disk")
    if not todo and not _is_set(options, facts):
        todo.append("set for the next start of rrdcached what it runs with")
    return todo


def _interval(values: Facts) -> str:
    low, high = values["write_s"], values["write_s"] + values["jitter_s"]
    return f"{low} s" if low == high else f"{low} to {high} s"


def is_ours(facts: Facts) -> bool:
    """By the mount, not by its file: a way back that was interrupted has removed the file, and the mount is left."""
    return bool(facts.get("journal_tmpfs_ours"))


def _is_set(options: Options, facts: Facts) -> bool:
    """Whether the files say it, for every start that comes."""
    states = facts.get("files") or {}
    if not same(states, owned(options, facts)):
        return False
    if facts["kind"] == NATIVE:
        return True
    return all((facts.get("defaults") or {}).get(key) == value for key, value in _variables(options, facts).items())


# -- files


def owned(options: Options, facts: Facts) -> Files:
    wish = settings(options, facts)
    found = {PROGRAM: program()}
    unit, service = [], []
    if wish["mount"]:
        path = facts["journal_path"]
        found[mount_file(path)] = _mount_text(path, wish["journal_bytes"], facts)
        # Without the mount it starts as well, with its journal on disk.
        unit = ["[Unit]", f"Wants={mount_unit(path)}", f"After={mount_unit(path)}", ""]
    if facts["kind"] == NATIVE:
        service += ["ExecStart=", f"ExecStart={_command(wish, facts['exec_start'])}"]
    socket = facts.get("socket") or SOCKET
    service += ["ExecStop=", f"ExecStop=-/usr/bin/python3 -IS {PROGRAM} {socket}"]
    service += [f"ExecStop={stop}" for stop in facts.get("exec_stop") or []]
    # Writing out thousands of files takes minutes on a rotating disk.
    service += ["TimeoutStopSec=5min"]
    head = "# Managed by pveguard: RRD files are written late, and all that waits is written before a stop."
    found[DROP_IN] = "\n".join([head, *unit, "[Service]", *service]) + "\n"
    return found


def edited(options: Options, facts: Facts, root: Path) -> Files:
    """The start script's variables, set in a block at the end of its file."""
    if facts["kind"] == NATIVE:
        return {}
    original = text(root / DEFAULTS.lstrip("/"))
    lines = [f'{key}="{value}"' for key, value in _variables(options, facts).items()]
    return {DEFAULTS: with_block(original, lines)}


def program() -> str:
    """The text of :mod:`.rrd_flush`."""
    data = pkgutil.get_data(__package__ or "", "rrd_flush.py")
    if data is None:
        raise PveguardError("the module came without rrd_flush")
    return data.decode()


def _variables(options: Options, facts: Facts) -> dict[str, str]:
    """What the file of the start script has to say; JOURNAL_PATH only where it is to be empty."""
    wish = settings(options, facts)
    flags = _without(facts.get("base_options", ""))
    if wish["journal"] != DISK:
        flags.append("-F")
    found = {
        "WRITE_TIMEOUT": str(wish["write_s"]),
        "WRITE_JITTER": str(wish["jitter_s"]),
        "BASE_OPTIONS": " ".join([*flags, "-f", str(wish["flush_s"])]),
    }
    if wish["journal"] == OFF:
        found["JOURNAL_PATH"] = ""
    return found


def _without(words: str) -> list[str]:
    """Options without those that pveguard sets."""
    found = []
    rest = iter(words.split())
    for word in rest:
        if word in ("-w", "-z", "-f"):
            next(rest, None)
        elif word != "-F" and not re.match(r"-[wzf]\d", word):
            found.append(word)
    return found


def _command(wish: Facts, start: str) -> str:
    """The command of a unit, with what is wanted at its end: of an option that is given twice the last counts."""
    words = start.split()
    if wish["journal"] == OFF:
        kept = []
        rest = iter(words)
        for word in rest:
            if word == "-j":
                next(rest, None)
            elif not word.startswith("-j"):
                kept.append(word)
        words = kept
    more = ["-w", str(wish["write_s"]), "-z", str(wish["jitter_s"]), "-f", str(wish["flush_s"])]
    return " ".join([*words, *more, *(["-F"] if wish["journal"] != DISK and "-F" not in words else [])])


def mount_file(path: str) -> str:
    return f"/etc/systemd/system/{mount_unit(path)}"


def _mount_text(path: str, size: int, facts: Facts) -> str:
    uid, gid, mode = facts.get("owner") or (0, 0, "0755")
    noswap = ",noswap" if facts.get("noswap") else ""
    return f"""\
# Managed by pveguard: rrdcached's journal. It outlives the daemon, not the machine: values are written before a stop.
[Unit]
Description=pveguard: journal of rrdcached in RAM
Before={UNIT}

[Mount]
What={SOURCE}
Where={path}
Type=tmpfs
Options=size={size // MIB}m,uid={uid},gid={gid},mode={mode},nosuid,nodev,noexec{noswap}
"""
