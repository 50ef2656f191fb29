# SPDX-License-Identifier: Apache-2.0
"""Single files and folders brought back from a generation."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import time

from ..pmxcfs.tree import guest_lock, guest_of, read_rows, without_noise
from .exits import Damaged, Refused, StateError, StoreError, UsageError
from .files import Lock, ensure_store, remove, store_lock
from .generations import cut_generation
from .live import open_live
from .members import daemon_mode, members_file, no_quorum, takes_writes
from .node import pve_mounted
from .paths import below
from .replica import Store
from .rows import is_member
from .show import Tree, config_path, cuts, diff_text, differences, entry_text, open_kept
from .system import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeVar

    Value = TypeVar("Value")

    from .paths import Paths
    from .settings import Config

COROSYNC_WAY = (
    "corosync.conf is not brought back by a copy: its config_version would go back, and the members would not take "
    "it. Get it with --output FILE, then edit as Proxmox documents it: cp /etc/pve/corosync.conf "
    "/etc/pve/corosync.conf.new, edit that, raise config_version, mv it over /etc/pve/corosync.conf"
)


def cmd_restore_file(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    if args.stdout and args.json:
        raise UsageError("--stdout and --json do not go together")
    everything = args.path in ("/", "/etc/pve", "/etc/pve/")
    path = "" if everything else config_path(paths, args.path)
    if not path and not everything:
        raise UsageError("name a file or a directory below /etc/pve, or / for everything")
    manifest, connection = open_kept(paths, args.generation)
    try:
        then = Tree(connection, config.noise)
        config.in_use.add(manifest["name"])
        if path and path not in then.entries:
            why = (
                "carries no configuration (noise)"
                if config.noise.matches(path)
                else f"is not in {manifest['name']}"
            )
            raise Refused(f"/etc/pve/{path} {why}")
        if args.output or args.stdout:
            return _extract(paths, then, path, args)
        if path == "corosync.conf":
            raise Refused(COROSYNC_WAY)
        if not path and is_member(paths) and not then.is_file("corosync.conf"):
            raise Refused(
                f"{manifest['name']} is from before this node was a member of its cluster: as a whole it would bring "
                "back keys that the cluster does not know. Name single files"
            )
        if args.check:
            return _bring_back(paths, config, manifest, then, path, args)
        with Lock(f"{paths.run}/switch.lock", "a switch-over runs", create=True):
            return _bring_back(paths, config, manifest, then, path, args)
    except sqlite3.Error as error:
        raise Damaged(f"{manifest['name']}: {error}") from error
    finally:
        connection.close()


def _extract(paths: Paths, then: Tree, path: str, args: Namespace) -> dict[str, Any]:
    """Write a file or directory of a kept state to a place that is not /etc/pve, readable by root only."""
    if args.stdout:
        if not then.is_file(path):
            raise UsageError(f"/etc/pve/{path} is a directory; --output writes it")
        sys.stdout.buffer.write(then.data(path))
        sys.stdout.buffer.flush()
        return {}
    target = os.path.abspath(args.output)
    if below(os.path.realpath(target), os.path.realpath(paths.pve)):
        raise UsageError(
            f"{target} lies on /etc/pve; without --output the file goes there as the daemon wants it"
        )
    if os.path.lexists(target):
        raise Refused(f"{target} exists; choose another name")
    files = 0
    try:
        if not path:
            os.mkdir(target, 0o700)
        for entry in sorted(p for p in then.entries if within_path(p, path)):
            place = target + entry[len(path) :] if path else f"{target}/{entry}"
            if then.is_directory(entry):
                os.mkdir(place, 0o700)
            else:
                write_new(place, then.data(entry))
                files += 1
    except OSError as error:
        raise StateError(f"{target}: {error.strerror}") from error
    return {"changed": True, "output": target, "files": files, "message": f"{target}: {files} file(s)"}


def write_new(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file that must not be there yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _bring_back(paths: Paths, config: Config, manifest: dict[str, Any], then: Tree, path: str, args: Namespace) -> dict[str, Any]:
    """Put a file or directory back through /etc/pve, so that all members get it."""
    require_writable(paths)
    live = open_live(paths)
    try:
        now = Tree(live, config.noise)
        plan = plan_files(then, now, path, args.parents)
        left = {entry["path"] for entry in plan["left"]}
        files = [
            entry
            for entry in differences(then, now, path, args.secrets)
            if entry["change"] != "added" and entry["path"] not in left
        ]
        before = {p: now.data(p) if now.is_file(p) else None for p in plan["files"]}
        after = {p: then.data(p) for p in plan["files"]}
        version = now.root_version
    finally:
        live.close()
    result = {
        "changed": False,
        "generation": manifest,
        "now": {"source": "live", "version": version},
        "files": files,
        "directories": plan["directories"],
        "left": plan["left"],
        "warnings": plan["warnings"],
        "kept": None,
    }
    if not plan["files"] and not plan["directories"]:
        return {**result, "message": f"/etc/pve/{path} is the same now; nothing was changed"}
    if args.check:
        return {**result, "message": _plan_text(result, path)}
    _confirm(args, _plan_text(result, path))
    result["kept"] = keep_now(paths, config, f"before restore-file {path or 'of all'}")
    done: list[str] = []
    try:
        within(60 + len(plan["files"]), lambda: _write_pve(paths, plan["directories"], before, after, done))
    except (OSError, StateError) as error:
        text = str(error)
        if isinstance(error, OSError):
            text = f"{error.filename or path}: {error.strerror}"
        if not done and not isinstance(error, NoAnswer):
            raise Refused(f"{text}; nothing was changed") from error
        raise StateError(
            f"{text}; written before that: {', '.join(done) or 'nothing'}. What was there is in generation "
            f"{result['kept']}"
        ) from error
    count = f"{len(plan['files'])} file(s)"
    message = (
        f"brought back {count} from {manifest['name']}; what was there is in generation {result['kept']}"
    )
    return {**result, "changed": True, "message": "\n".join([message, *plan["warnings"]])}


def require_writable(paths: Paths) -> None:
    """Refuse unless /etc/pve is the daemon's and takes writes."""
    elsewhere = "With --output FILE it is written elsewhere"
    if not pve_mounted(paths):
        raise Refused(
            f"{paths.pve} is not mounted, and a file written beneath it would keep the daemon from starting; "
            f"systemctl start pve-cluster. {elsewhere}"
        )
    members = members_file(paths)
    if not members:
        raise Refused(f"{paths.pve} does not answer; see 'journalctl -u pve-cluster'. {elsewhere}")
    mode = daemon_mode(paths, members)
    if mode.name == "local" or not mode.met:
        why = no_quorum(mode)
        if why:
            raise Refused(f"{why}. {elsewhere}")
    elif not (mode.quorate and takes_writes(paths)):
        raise Refused(f"{paths.pve} is read-only: no quorum; see 'corosync-quorumtool -s'. {elsewhere}")


def plan_files(then: Tree, now: Tree, path: str, parents: bool = False) -> dict[str, Any]:
    """{files, directories, left, warnings}: what has to be written and made, in order. Refused when it must not be.

    Of everything ("" as the path) what must not be written is left as it is: ``left`` says what and why.
    """
    refusals, left, warnings = [], [], []
    wanted = sorted(p for p in then.entries if within_path(p, path))

    def must_not(p: str, why: str) -> None:
        if path:
            refusals.append(why)
        else:
            left.append({"path": p, "why": why})

    files = [p for p in wanted if then.is_file(p) and not (now.is_file(p) and now.data(p) == then.data(p))]
    above = [path[:cut] for cut in cuts(path)]
    missing = [folder for folder in above if folder not in now.entries]
    if missing and not parents:
        refusals.append(f"the directory /etc/pve/{missing[0]} is not there now; --parents makes it")
    for folder in above + [p for p in wanted if then.is_directory(p)]:
        if now.is_file(folder):
            refusals.append(f"/etc/pve/{folder} is a file now; move it away first")
    guests = now.guests()
    for p in files:
        if now.is_directory(p):
            refusals.append(f"/etc/pve/{p} is a directory now; move it away first")
        if p == "corosync.conf":
            must_not(p, COROSYNC_WAY)
        guest = guest_of(p)
        if guest is None:
            continue
        if guests.get(guest, p) != p:
            must_not(
                p,
                f"guest {guest} is there as /etc/pve/{guests[guest]}, and the daemon does not start with a guest "
                "twice; migrate or remove that one first, or get this text with --output FILE",
            )
            continue
        if now.is_file(p) and guest_lock(now.data(p)):
            must_not(
                p,
                f"/etc/pve/{p} is locked ({guest_lock(now.data(p))}): wait for the end of that task, or 'qm unlock "
                f"{guest}' ('pct unlock {guest}')",
            )
            continue
        lock = guest_lock(then.data(p))
        if lock:
            warnings.append(
                f"/etc/pve/{p} comes back locked ({lock}), as it was then; 'qm unlock {guest}' ('pct unlock {guest}')"
            )
    if refusals:
        raise Refused("; ".join(refusals))
    files = [p for p in files if p not in {entry["path"] for entry in left}]
    folders = [p for p in missing + [p for p in wanted if then.is_directory(p)] if p not in now.entries]
    return {"files": files, "directories": folders, "left": left, "warnings": warnings}


def within_path(path: str, only: str) -> bool:
    """Whether a path is ``only`` or below it; "" is the root, below which everything is."""
    return not only or below(path, only)


def _plan_text(result: dict[str, Any], path: str) -> str:
    """What is about to be done, for the one who is asked."""
    manifest = result["generation"]
    lines = [f"From {manifest['name']} (version {manifest.get('root_version')}, {manifest.get('time')}):"]
    lines += [f"  make        {printable(folder, '')}/" for folder in result["directories"]]
    lines += [f"  {e['restoring']:10}  {entry_text(e)}" for e in result["files"] if e["type"] == "file"]
    lines += [f"  leave       {printable(e['path'], '')}  ({e['why']})" for e in result["left"]]
    lines += ["  Files that came since stay."] if any(e["path"] != path for e in result["files"]) else []
    lines += result["warnings"]
    return "\n".join(lines + [diff_text(e) for e in result["files"] if e["type"] == "file"])


def _confirm(args: Namespace, plan: str) -> None:
    if args.yes:
        return
    if args.json or not sys.stdin.isatty():
        raise Refused(
            "not confirmed, nothing was changed: there is nobody to ask here; look with 'pve-state show', then "
            "give --yes"
        )
    print(plan + "\n")
    try:
        answer = input("Write this to /etc/pve, for all members? Type 'yes': ")
    except EOFError:
        answer = ""
    if answer.strip().lower() != "yes":
        raise Refused("not confirmed, nothing was changed")


def keep_now(paths: Paths, config: Config, reason: str) -> str:
    """Cut a generation of the live database, noise left out; its name."""
    ensure_store(paths)
    # By way of memory: the live database is not held while the disk is written.
    copy = open_live(paths)
    try:
        rows = read_rows(copy)
        gone = rows.keys() - without_noise(rows, config.noise).keys()
        copy.executemany("DELETE FROM tree WHERE inode=?", [(inode,) for inode in gone])
        with store_lock(paths):
            return str(cut_generation(copy, paths, config, Store(paths, config).lineage, reason)["name"])
    except sqlite3.Error as error:
        raise StoreError(f"the present state was not kept: {error}; nothing was changed") from error
    finally:
        copy.close()


class NoAnswer(StateError):
    """The daemon hangs; what was asked of it may still happen."""


def _write_pve(
    paths: Paths,
    folders: Sequence[str],
    before: Mapping[str, bytes | None],
    after: Mapping[str, bytes],
    done: list[str],
) -> None:
    """Make directories and write files {path: data} when they are as ``before``; ``done`` gets what is done."""
    for path, shown in before.items():
        try:
            with open(f"{paths.pve}/{path}", "rb") as handle:
                data = handle.read()
        except (FileNotFoundError, NotADirectoryError):
            data = None
        if data != shown:
            raise StateError(f"/etc/pve/{path} changed meanwhile; look again")
    for folder in folders:
        _patiently(os.makedirs, f"{paths.pve}/{folder}", exist_ok=True)
        done.append(folder)
    for path, data in after.items():
        target = f"{paths.pve}/{path}"
        temporary = f"{target}.tmp.{os.getpid()}"
        try:
            _patiently(_put, temporary, target, data)
        except OSError as error:
            left = ""
            try:
                remove(temporary)
            except OSError as second:
                if not os.path.lexists(temporary):
                    raise error from second
                left = f"; {temporary} was left ({second.strerror}), remove it when /etc/pve takes writes"
            # An error does not say that it was not done: what is there counts.
            if left or _content(target) != data:
                raise OSError(error.errno, f"{error.strerror}{left}", target) from error
        done.append(path)
        if _content(target) != data:
            raise StateError(f"/etc/pve/{path} reads back differently: somebody else writes it too")


def _put(temporary: str, target: str, data: bytes) -> None:
    remove(temporary)
    write_new(temporary, data, 0o640)
    os.rename(temporary, target)


def _content(path: str) -> bytes:
    with open(path, "rb") as handle:
        return handle.read()


# For so long a membership that forms anew explains that /etc/pve refuses a write.
PASSING_SECONDS = 20


def _patiently(action: Callable[..., object], *arguments: object, **options: object) -> object:
    """Change /etc/pve, again as long as a passing loss of quorum explains that it fails."""
    end = time.monotonic() + PASSING_SECONDS
    while True:
        try:
            return action(*arguments, **options)
        except OSError as error:
            passing = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)
            if error.errno not in passing or time.monotonic() > end:
                raise
        time.sleep(0.5)


def within(seconds: float, function: Callable[[], Value]) -> Value:
    """Call a function in a thread of its own: a daemon that hangs must not hang us."""
    import threading

    outcome: list[Value] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not outcome:
        raise NoAnswer(f"no answer from the daemon within {seconds} s; see 'journalctl -u pve-cluster'")
    return outcome[0]
