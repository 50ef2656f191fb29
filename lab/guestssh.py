"""ssh to the guests: a key per lab, a host key per guest, and no trust on first use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .errors import LabError
from .system import run


def ensure_key(path: Path, comment: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], what="ssh-keygen")


def known_hosts(entries: dict[str, tuple[int, str]]) -> str:
    """Text of a known_hosts file; ``entries``: node name -> (port, public host key)."""
    lines = []
    for name, (port, key) in sorted(entries.items()):
        kind, data = key.split()[:2]
        lines.append(f"[127.0.0.1]:{port},{name} {kind} {data}\n")
    return "".join(lines)


def options(known: Path) -> list[str]:
    """The options that make ssh trust the lab's own list of host keys and nothing else."""
    return [
        "-o", f'UserKnownHostsFile="{known}"', "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip


def argv(directory: Path, port: int, command: list[str] | None = None, *, batch: bool = True) -> list[str]:
    """Argument vector of ssh to the guest behind ``port`` of the lab in ``directory``."""
    result = ["ssh", "-F", "/dev/null", *options(directory / "known_hosts"), "-i", str(directory / "id_ed25519"),
              "-p", str(port), "-o", "ConnectTimeout=60", "-o", "LogLevel=ERROR"]  # fmt: skip
    if batch:
        result += ["-o", "BatchMode=yes"]
    return [*result, "root@127.0.0.1", *(command or [])]


def execute(
    directory: Path, port: int, command: str, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a shell command in a guest; raises only when it does not end in time."""
    try:
        return subprocess.run(
            argv(directory, port, [command]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env=dict(os.environ, LC_ALL="C"),
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"ssh port {port}: no end of {command!r} after {timeout:.0f} s") from error


def login(directory: Path, port: int, timeout: float = 60.0) -> str:
    """Why nobody can log in to a guest now, "" when that works. One that is about to reboot may take the login and go."""
    try:
        done = execute(directory, port, "true", timeout)
    except LabError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"ssh status {done.returncode}"])[-1]
