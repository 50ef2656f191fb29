# SPDX-License-Identifier: Apache-2.0
"""The ssh login that this command came by.

``pve-state`` loads this: no pathlib at run time.
"""

from __future__ import annotations

import os

from .errors import PveguardError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Processes between a module and the login's shell are few.
_MOST_ABOVE = 32
_ANSIBLE = ("ansible-playbook", "ansible-pull", "ansible-console")
_LOCAL = (
    "ansible runs on this node itself (ansible_connection: local), in a session that came by ssh, so no new login can prove that "
    "you still get in: run it from another machine, or have it come by ssh here too (ansible_connection: ssh for this host)"
)


def connection() -> str:
    """SSH_CONNECTION of this process or of one above it: client, its port, own address, own port; "" for a local session.

    sudo and other become methods take it out of the environment; it is that of a process above then.
    """
    return os.environ.get("SSH_CONNECTION") or above()


def above() -> str:
    """SSH_CONNECTION with which this process or one above it was started."""
    pid = os.getpid()
    for _ in range(_MOST_ABOVE):
        try:
            with open(f"/proc/{pid}/environ", "rb") as handle:
                for entry in handle.read().split(b"\0"):
                    if entry.startswith(b"SSH_CONNECTION="):
                        return entry[15:].decode()
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
                pid = int(handle.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        if pid <= 1:
            break
    return ""


def began(pid: int) -> float | None:
    """When the ssh connection began by which a process came, in seconds since boot; None for one that did not come by ssh.

    Raises PveguardError where ansible runs on this node itself in an ssh session: that login is the operator's own, and there
    is no newer one.
    """
    local = False
    for name, each, ticks in _processes(pid):
        if name.startswith("sshd"):
            if local:
                raise PveguardError(_LOCAL)
            return ticks / os.sysconf("SC_CLK_TCK")
        local = local or _is_ansible(name, each)
    if local and connection():
        raise PveguardError(_LOCAL)
    return None


def refuse_local() -> None:
    """Raises PveguardError where :func:`began` will, for a change that such a login has to prove."""
    try:
        began(os.getpid())
    except PveguardError as error:
        raise PveguardError(f"nothing was changed: {error}") from error


def _processes(pid: int) -> Iterator[tuple[str, int, int]]:
    """(name, pid, start in ticks since boot) of a process and those above it."""
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
                head, _, tail = handle.read().rpartition(")")
        except OSError:
            return
        words = tail.split()
        yield head.partition("(")[2], pid, int(words[19])
        pid = int(words[1])


def _is_ansible(name: str, pid: int) -> bool:
    if name.startswith("ansible"):
        return True
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as handle:
            words = handle.read().decode("utf-8", "replace").split("\0")[:3]
    except OSError:
        return False
    module = words[0].rpartition("/")[2].startswith("python") and words[1:2] == ["-m"] and words[-1].startswith("ansible")
    return module or any(word.rpartition("/")[2] in _ANSIBLE for word in words)
