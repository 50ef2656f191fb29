# SPDX-License-Identifier: Apache-2.0
"""A reproducible sequence of real configuration changes: made on a node, and known on the controller.

The same file is both. On a node it is run as a program (``write``) that makes the changes below /etc/pve one after
the other and acknowledges each on stdout only after the daemon did. On the controller :func:`changes` yields the same
sequence from the same seed, so that a state that comes back after a power cut can be compared with every state that
ever was. ``look`` waits until a node is in order again and prints what is there.

Standard library only: it is sent to the node as text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

#: Path -> content; None is a directory. Paths are relative to /etc/pve/nodes/NODE.
State = dict[str, "bytes | None"]
#: Path -> (length, sha256 in hex digits); (-1, "") is a directory.
Digests = dict[str, tuple[int, str]]

FOLDER = "changes"
GUESTS = 6
FILES = 8
#: Guests of the test begin here, 100 to a node: a number is used once in a cluster.
FIRST_GUEST = 900000
BURST = 2048  # writes of 512 bytes, 1 MiB in all
BLOCK = 512
#: Seconds for which a change that fails is tried again: a restart of the daemon, a new membership.
PATIENCE = 240.0


class Change(NamedTuple):
    """One change. ``kind``: write, append, replace, delete, rename, mkdir, rmdir, or an event: restart, generation,
    pause. ``offset`` is where ``data`` begins for append, seconds for pause."""

    kind: str
    path: str = ""
    data: bytes = b""
    offset: float = 0
    target: str = ""


EVENTS = ("restart", "generation", "pause")


def guests(node: str) -> list[str]:
    """Paths of the guest configurations that a node's sequence touches."""
    number = int("".join(filter(str.isdigit, node)) or 0)
    return [f"qemu-server/{FIRST_GUEST + 100 * number + i}.conf" for i in range(GUESTS)]


def changes(seed: str, node: str) -> Iterator[Change]:
    """The endless sequence of a seed and a node; the first change meets an empty folder."""
    rng = random.Random(f"{seed}/{node}")
    state: State = {}
    plain = [f"{FOLDER}/{name}.cfg" for name in "abcdefgh"[:FILES]] + guests(node)
    restarts = 0
    number = 0

    def text(most: int) -> bytes:
        # The number makes every content different from all others.
        return (
            b"# %d\n" % number + rng.randbytes(rng.randint(10, most // 2)).hex().encode()[: most - 12] + b"\n"
        )

    while True:
        number += 1
        here = [path for path in plain if path in state]
        kind = rng.choices(
            ["write", "append", "replace", "delete", "rename", "folder", "burst", *EVENTS],
            [30, 20, 20, 10, 8, 5, 0.6, 0.3 if restarts < 1 and number > 5 else 0, 0.6, 6],
        )[0]
        made: list[Change] = []
        if kind == "pause":
            made.append(Change("pause", offset=rng.choice([0.1, 0.3, 0.7, 1.5])))
        elif kind in EVENTS:
            restarts += kind == "restart"
            made.append(Change(kind))
        elif kind == "burst":
            path = f"{FOLDER}/burst.raw"
            made.append(Change("write", path, rng.randbytes(BLOCK)))
            made += [Change("append", path, rng.randbytes(BLOCK), i * BLOCK) for i in range(1, BURST)]
        elif kind == "folder":
            path = f"{FOLDER}/folder{rng.randint(1, 3)}"
            made.append(Change("rmdir" if path in state else "mkdir", path))
        elif kind in ("write", "replace") or not here:
            made.append(Change("replace" if kind == "replace" else "write", rng.choice(plain), text(2000)))
        elif kind == "append":
            path = rng.choice(here)
            made.append(Change("append", path, text(200), len(state[path] or b"")))
        elif kind == "delete":
            made.append(Change("delete", rng.choice(here)))
        else:
            source = rng.choice(here)
            target = rng.choice([path for path in plain if os.path.dirname(path) == os.path.dirname(source)])
            if source != target:
                made.append(Change("rename", source, target=target))
        for change in made:
            for _ in steps(change, state):
                pass
            yield change


def steps(change: Change, state: State) -> Iterator[State]:
    """Apply a change to ``state`` in place; yields it after each of the daemon's transactions."""
    if change.kind in EVENTS:
        return
    if change.kind == "write":
        state[change.path] = b""
        yield state
        state[change.path] = change.data
    elif change.kind == "append":
        state[change.path] = (state[change.path] or b"")[: int(change.offset)] + change.data
    elif change.kind == "replace":
        state[change.path] = change.data
    elif change.kind in ("delete", "rmdir"):
        del state[change.path]
    elif change.kind == "mkdir":
        state[change.path] = None
    elif change.kind == "rename":
        state[change.target] = state.pop(change.path)
    else:
        raise ValueError(f"no such change: {change.kind}")
    yield state


def digest(content: bytes | None) -> tuple[int, str]:
    return (-1, "") if content is None else (len(content), hashlib.sha256(content).hexdigest())


def ours(path: str) -> bool:
    """True for a path (relative to /etc/pve/nodes/NODE) that a sequence may touch and that is configuration."""
    if re.search(r"\.tmp\.[0-9]+$", path):
        return False
    return path.startswith(f"{FOLDER}/") or bool(re.fullmatch(r"qemu-server/9[0-9]{5}\.conf", path))


# --- on the node: make the changes ----------------------------------------------------------------------------


def make(base: str, change: Change, again: bool) -> None:
    """Make one change below ``base``. ``again``: an earlier try failed and may have done it all the same."""

    def at(path: str) -> str:
        return f"{base}/{path}"

    def put(path: str, flags: int, offset: int = 0) -> None:
        fd = os.open(at(path), os.O_WRONLY | flags, 0o640)
        try:
            os.pwrite(fd, change.data, offset)
        finally:
            os.close(fd)

    if change.kind == "write":
        put(change.path, os.O_CREAT | os.O_TRUNC)
    elif change.kind == "append":
        put(change.path, 0, int(change.offset))
    elif change.kind == "replace":
        temporary = f"{change.path}.tmp.{os.getpid()}"
        put(temporary, os.O_CREAT | os.O_TRUNC)
        os.rename(at(temporary), at(change.path))
    elif change.kind == "delete":
        try:
            os.unlink(at(change.path))
        except FileNotFoundError:
            if not (again and os.path.isdir(base)):
                raise
    elif change.kind == "rename":
        try:
            os.rename(at(change.path), at(change.target))
        except FileNotFoundError:
            if not (again and os.path.exists(at(change.target))):
                raise
    elif change.kind == "mkdir":
        try:
            os.mkdir(at(change.path))
        except FileExistsError:
            if not again:
                raise
    elif change.kind == "rmdir":
        try:
            os.rmdir(at(change.path))
        except FileNotFoundError:
            if not (again and os.path.isdir(base)):
                raise


def retrying(action: Callable[[bool], None]) -> int:
    """Run ``action(again)`` until it succeeds, for :data:`PATIENCE` at most; returns the number of tries."""
    end = time.monotonic() + PATIENCE
    tries = 0
    while True:
        tries += 1
        try:
            action(tries > 1)
            return tries
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def clear(base: str) -> None:
    """Leave nothing of an earlier sequence; only on a mounted file system, as what lies beneath must stay empty."""
    folder = f"{base}/{FOLDER}"
    if not os.path.isdir(folder):
        os.mkdir(folder)
    names = [f"{FOLDER}/{name}" for name in os.listdir(folder)]
    names += [f"qemu-server/{name}" for name in os.listdir(f"{base}/qemu-server")]
    for path in names:
        if path.startswith(f"{FOLDER}/") or ours(path):
            if os.path.isdir(f"{base}/{path}"):
                os.rmdir(f"{base}/{path}")
            else:
                os.unlink(f"{base}/{path}")


def say(*words: object) -> None:
    print(*words, flush=True)


def write(seed: str, node: str, base: str, marks: str | None, mark_after: float, events: bool) -> int:
    """Make the sequence's changes until stdin ends or power does.

    Prints ``start NS`` once the folder is empty, ``ack NUMBER NS TRIES`` for each change that the daemon has
    acknowledged (NS: CLOCK_MONOTONIC at that moment), ``event KIND``, and ``end NUMBER``. With ``marks`` (the name of
    a dm-log-writes device) the number of a change is marked there ``mark_after`` seconds after its acknowledgement.
    Without ``events`` nothing is started beside the changes, and there are no pauses.
    """
    retrying(lambda _: clear(base))
    say("start", time.monotonic_ns())
    children: list[subprocess.Popen[bytes]] = []
    due: list[tuple[float, int]] = []
    marked = 0.0
    number = 0
    for number, change in enumerate(changes(seed, node), 1):
        pause = change.offset if events and change.kind == "pause" else 0
        if select.select([sys.stdin], [], [], pause)[0]:
            break
        if events and change.kind in ("restart", "generation"):
            command = {
                "restart": ["systemctl", "restart", "pve-cluster.service"],
                "generation": [
                    "/usr/local/sbin/pve-state",
                    "save",
                    "--generation",
                    "--reason",
                    "power cut test",
                ],
            }[change.kind]
            with open(os.devnull, "wb") as void:
                children.append(subprocess.Popen(command, stdin=void, stdout=void, stderr=void))
            say("event", change.kind)
        tries = 1 if change.kind in EVENTS else retrying(lambda again, c=change: make(base, c, again))  # type: ignore[misc]
        say("ack", number, time.monotonic_ns(), tries)
        if marks:
            due.append((time.monotonic() + mark_after, number))
            now = time.monotonic()
            ripe = [entry for entry in due if entry[0] <= now]
            if ripe and now - marked > 0.5:  # each is a program started on what may be an emulated machine
                due, marked = due[len(ripe) :], now
                subprocess.run(["dmsetup", "message", marks, "0", "mark", f"saved-{ripe[-1][1]}"], check=True)
    for child in children:
        child.wait()
    say("end", number - 1)
    return 0


# --- on the node: look -------------------------------------------------------------------------------------------


def read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def in_order(members: int) -> str:
    """What the node still lacks, or an empty text: quorate with all members, and saving."""
    found = read_json("/etc/pve/.members")
    if not found:
        return "/etc/pve is not served"
    if members > 1:
        online = sum(1 for node in (found.get("nodelist") or {}).values() if node.get("online"))
        if not (found.get("cluster") or {}).get("quorate"):
            return "not quorate"
        if online != members:
            return f"{online} of {members} members online"
    if not read_json("/run/pveguard/watch.json").get("ready"):
        return "pve-state is not ready"
    return ""


def program(*command: str) -> dict[str, Any]:
    """Exit code and JSON of a program's ``--json``."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        value = json.loads(done.stdout)
    except ValueError:
        value = {"error": (done.stderr or done.stdout)[-500:]}
    return {"code": done.returncode, **(value if isinstance(value, dict) else {})}


def output(*command: str) -> str:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace", check=False
    ).stdout


def files(pve: str) -> tuple[dict[str, Digests], str]:
    """({node: the files of its sequence}, one hash of everything else that is configuration)."""
    own: dict[str, Digests] = {}
    rest = hashlib.sha256()
    for folder, names, plain in os.walk(pve):
        names[:] = sorted(n for n in names if not os.path.islink(f"{folder}/{n}"))
        place = os.path.relpath(folder, pve)
        if place == "priv/lock":
            names.clear()
            continue
        for name in [*names, *sorted(plain)]:
            path = os.path.normpath(f"{place}/{name}")
            is_folder = name in names
            match = re.fullmatch(r"nodes/([^/]+)/(.+)", path)
            inside = match is not None and ours(match[2])
            if (
                os.path.islink(f"{folder}/{name}")
                or path == "priv/lock"
                or (place == "." and name.startswith("."))
            ):
                continue
            if re.search(r"(^|/)(lrm_status|manager_status|.*\.tmp\.[0-9]+)$", path):
                continue
            content = None
            if not is_folder:
                with open(f"{folder}/{name}", "rb") as handle:
                    content = handle.read()
            if inside and match is not None:
                own.setdefault(match[1], {})[match[2]] = digest(content)
            elif not (match is not None and match[2] == FOLDER):
                rest.update(f"{path}\0{digest(content)}\0".encode())
    return own, rest.hexdigest()


def look(seconds: float, members: int) -> int:
    """Wait until the node is in order, then print what is there as JSON."""
    begin = time.monotonic()
    while (lacks := in_order(members)) and time.monotonic() - begin < seconds:
        time.sleep(0.3)
    found: dict[str, Any] = {"lacks": lacks, "waited_seconds": round(time.monotonic() - begin, 1)}
    try:
        found["files"], found["rest_sha256"] = files("/etc/pve")
    except OSError as error:
        found["lacks"] = lacks or str(error)
        found["files"], found["rest_sha256"] = {}, ""
    verify = program("/usr/local/sbin/pve-state", "verify", "--json")
    status = program("/usr/local/sbin/pve-state", "status", "--json")
    while status.get("state") == "starting" and time.monotonic() - begin < seconds:
        time.sleep(0.3)
        status = program("/usr/local/sbin/pve-state", "status", "--json")
    found["verify"] = {
        "code": verify["code"],
        "bad": {k: v for k, v in (verify.get("checks") or {}).items() if v},
    }
    found["status"] = {
        key: status.get(key) for key in ("code", "state", "reason", "ready", "root_version", "restore")
    }
    found["damaged"] = (
        sorted(os.listdir("/var/lib/pveguard/state/damaged"))
        if os.path.isdir("/var/lib/pveguard/state/damaged")
        else []
    )
    log = output("journalctl", "-b", "--no-pager", "-o", "cat", "_PID=1", "--grep", "ordering cycle")
    found["ordering_cycle"] = [line for line in log.splitlines() if "ordering cycle" in line]
    print(json.dumps(found))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write")
    writer.add_argument("seed")
    writer.add_argument("node")
    writer.add_argument("--base", help="default: /etc/pve/nodes/NODE")
    writer.add_argument("--marks", metavar="DEVICE", help="mark saved changes on this dm-log-writes device")
    writer.add_argument("--no-events", action="store_true", help="no restart, no generation, no pause")
    writer.add_argument("--mark-after", type=float, default=2.0, metavar="SECONDS")
    looker = commands.add_parser("look")
    looker.add_argument("--wait", type=float, default=300)
    looker.add_argument("--members", type=int, default=1)
    options = parser.parse_args(argv)
    if options.command == "write":
        base = options.base or f"/etc/pve/nodes/{options.node}"
        events = not options.no_events
        return write(options.seed, options.node, base, options.marks, options.mark_after, events)
    return look(options.wait, options.members)


if __name__ == "__main__":
    sys.exit(main())
