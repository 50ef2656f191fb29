# SPDX-License-Identifier: Apache-2.0
"""What the areas of the hardening verdict have in common: files that are read under a root, and what could not be read.

A look never raises. What it could not read makes ``known`` false, and ``error`` says what; the rest of its facts stays.
No content of a file is in an error: it may be a secret.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..base.run import CommandMissing, Run

#: Larger than any file that is read here.
LIMIT_BYTES = 4 << 20
FACTS = "hardening"

PVE = "/etc/pve"

Facts = dict[str, Any]

#: Why nothing of /etc/pve is read at present; empty where it is. A daemon that hangs would hang who asks.
_silent: ContextVar[str] = ContextVar("silent", default="")


@contextlib.contextmanager
def without_pve(reason: str) -> Iterator[None]:
    """Inside, nothing of /etc/pve is read, and what an area wants of it is not known for this reason; an empty one changes
    nothing."""
    token = _silent.set(reason)
    try:
        yield
    finally:
        _silent.reset(token)


def silent() -> str:
    """Why nothing of /etc/pve may be read; empty where it may."""
    return _silent.get()


class Looking:
    """Reads below ``root``; ``unread`` says what could not be read, ``/PATH: reason`` each."""

    def __init__(self, root: Path, run: Run) -> None:
        self.root, self.run = root, run
        self.unread: list[str] = []

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """A file's text; None where it is absent, and where it cannot be read, which is noted."""
        if self._is_silent(path):
            return None
        try:
            # A FIFO in the place of a file would block.
            handle = os.open(self.at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.cannot(path, _reason(error))
            return None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                self.cannot(path, "no regular file")
                return None
            data = b""
            while part := os.read(handle, 1 << 16):
                data += part
                if len(data) > LIMIT_BYTES:
                    self.cannot(path, f"larger than {LIMIT_BYTES >> 20} MiB")
                    return None
        except OSError as error:
            self.cannot(path, _reason(error))
            return None
        finally:
            os.close(handle)
        return data.decode("utf-8", "replace")

    def value(self, path: str) -> str | None:
        """The one line of a file such as those of /proc/sys."""
        found = self.text(path)
        return None if found is None else found.strip()

    def names(self, folder: str, ending: str = "") -> list[str]:
        """Paths of the entries of a folder, sorted; none where there is no such folder."""
        if self._is_silent(folder):
            return []
        try:
            found = sorted(os.listdir(self.at(folder)))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self.cannot(folder, _reason(error))
            return []
        return [f"{folder.rstrip('/')}/{name}" for name in found if name.endswith(ending)]

    def texts(self, folders: Iterable[str], ending: str) -> list[tuple[str, str]]:
        """(path, text) of the files of some folders whose names end so. A name counts once, in the first folder that has it,
        as systemd, modprobe and sysctl have it; so a link to /dev/null there hides a file of a package."""
        found: dict[str, tuple[str, str]] = {}
        for folder in folders:
            for path in self.names(folder, ending):
                name = path.rpartition("/")[2]
                if name in found:
                    continue
                if self.is_null(path):
                    found[name] = (path, "")
                elif (text := self.text(path)) is not None:
                    found[name] = (path, text)
        return [found[name] for name in sorted(found)]

    def is_null(self, path: str) -> bool:
        if self._is_silent(path):
            return False
        place = self.at(path)
        return place.is_symlink() and os.readlink(place) == "/dev/null"

    def exists(self, path: str) -> bool:
        return not self._is_silent(path) and os.path.lexists(self.at(path))

    def _is_silent(self, path: str) -> bool:
        if not silent() or not f"{path}/".startswith(f"{PVE}/"):
            return False
        if not any(each.startswith(f"{PVE}: ") for each in self.unread):
            self.cannot(PVE, silent())
        return True

    def output(self, argv: list[str]) -> str | None:
        """What a command printed; None where it is not installed, and where it failed, which is noted."""
        try:
            done = self.run(argv, timeout=20.0)
        except CommandMissing:
            return None
        except OSError as error:
            self.cannot(argv[0], _reason(error))
            return None
        if not done.ok:
            self.cannot(argv[0], f"ended with status {done.rc}")
            return None
        return done.stdout

    def cannot(self, path: str, why: str) -> None:
        if silent() and path.startswith(f"{PVE}/"):
            # Said once, of all of it.
            return
        self.unread.append(f"{shown(path, 120)}: {why}")

    def pve(self) -> bool:
        """Whether /etc/pve is there; where it should be and is not, that is noted: its files are not absent then."""
        if self.exists("/etc/pve/.version"):
            return True
        if self.exists("/usr/bin/pmxcfs") and not silent():
            self.cannot(PVE, "not mounted")
        return False


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def area(look: Callable[[Looking], Facts]) -> Callable[[Path, Run], Facts]:
    """A look of an area that never raises: ``look(root, run)`` has ``known``, ``error`` and the area's own facts."""

    @functools.wraps(look)
    def guarded(root: Path, run: Run) -> Facts:
        looking = Looking(Path(root), run)
        try:
            found = look(looking)
        # Whatever a file holds, the other areas are told.
        except Exception as error:
            found = {}
            looking.unread.append(f"not understood ({type(error).__name__})")
        return {"known": not looking.unread, "error": "; ".join(looking.unread), **found}

    return guarded


def facts_of(node: Mapping[str, Any], area: str) -> Mapping[str, Any] | None:
    """The facts of an area among those of a node; None where nobody asked for them. What was asked for and is not there is not
    known; ``asked`` among the facts: for which areas, else for all.
    """
    asked = node.get(FACTS)
    if asked is None:
        return None
    if isinstance(asked, Mapping) and isinstance(asked.get("asked"), list) and area not in asked["asked"]:
        return None
    found = asked.get(area) if isinstance(asked, Mapping) else None
    if isinstance(found, Mapping) and isinstance(found.get("known"), bool):
        return found
    said = asked.get("error") if isinstance(asked, Mapping) else None
    return {"known": False, "error": str(said or "the node said nothing of it")}


def proxmox(node: Mapping[str, Any]) -> bool:
    """Whether what breaks Proxmox VE matters on this host; yes where its packages are not known."""
    packages = node.get("packages")
    return not isinstance(packages, Mapping) or bool(
        packages.get("pve-manager") or packages.get("pve-cluster")
    )


def shown(text: object, limit: int = 60) -> str:
    """What stands in a file, fit for a line of text: no control characters, not long."""
    plain = "".join(char if char.isprintable() else "?" for char in str(text))
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


# What an assignment may be so that bash gives it the value that is seen here: nothing that expands, runs or goes on.
_WORD = re.compile(
    r"""(?:export[ \t]+)?(?P<name>[A-Za-z_]\w*)=(?:"(?P<double>[^"$`\\\n]*)"|'(?P<single>[^'\n]*)'|(?P<bare>[\w./:,@%+-]*))"""
    r"""[ \t]*(?:[ \t]\#.*|;)?\Z""",
    re.ASCII,
)


class Assignments:
    """``values``: {name: value}, the last one counts. ``strange``: numbers of the lines that are no plain assignment: with one
    of them no value is certain, as bash may do anything there."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.strange: list[int] = []


def assignments(text: str) -> Assignments:
    """Read a file that bash sources, without running any of it."""
    found = Assignments()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t")
        if not line or line.startswith("#"):
            continue
        match = _WORD.match(line)
        if match is None:
            found.strange.append(number)
            continue
        value = next((match[part] for part in ("double", "single", "bare") if match[part] is not None), "")
        found.values[match["name"]] = value
    return found


def lines(text: str, comment: str = "#") -> list[str]:
    """Lines that say something, stripped."""
    return [
        each for line in text.split("\n") if (each := line.strip()) and not each.startswith(tuple(comment))
    ]


def settings(text: str) -> dict[str, str]:
    """``KEY = VALUE`` lines, keys in lower case; the last one counts. For auditd.conf, faillock.conf and the like."""
    found = {}
    for line in lines(text):
        key, equals, value = line.partition("=")
        if equals or " " not in line:
            found[key.strip().lower()] = value.strip()
    return found


def writer(path: str, text: str, usual: str) -> str:
    """Who set it, as far as the file tells; else who usually does."""
    lowered = f"{path}\n{text[:4096]}".lower()
    if "dev-sec" in lowered or "devsec" in lowered:
        return "dev-sec"
    # The names of the files of ansible-lockdown's roles.
    if re.search(r"/cis\.conf|\bcis_|-netipv[46]_sysctl|lockdown's|ansible-lockdown|cis benchmark", lowered):
        return "a CIS role"
    if "pegaprox" in lowered:
        return "PegaProx"
    return f"usually {usual}"
