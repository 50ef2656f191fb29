"""Small helpers around the host: commands, tools, disk space, locks, threads."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import LabError
from .progress import say

# Tool -> Debian package that brings it.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
    "unshare": "util-linux",
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

T = TypeVar("T")
R = TypeVar("R")


def require_tools(tools: Iterable[str]) -> None:
    """Raise one :class:`LabError` that names every missing tool and the packages to install."""
    path = os.environ.get("PATH", "") + ":" + PATH
    missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if missing:
        packages = " ".join(sorted({TOOLS.get(tool, tool) for tool in missing}))
        raise LabError(
            f"missing: {', '.join(missing)}; install with: apt-get install --no-install-recommends {packages}"
        )


def require_space(directory: Path, mib: int) -> None:
    """Raise when the file system of ``directory`` has less than ``mib`` MiB free."""
    probe = directory
    while not probe.exists():
        probe = probe.parent
    stat = os.statvfs(probe)
    free = stat.f_bavail * stat.f_frsize // 2**20
    if free < mib:
        raise LabError(
            f"{probe}: {free} MiB free, the lab needs {mib} MiB; free some space or set PVEGUARD_LAB_ROOT"
        )


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    what: str,
    timeout: float = 600,
    input: str | None = None,
    log: Path | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command and return its stdout; a failure becomes a :class:`LabError` with the last lines of its output."""
    environment = dict(os.environ if env is None else env)
    environment["PATH"] = environment.get("PATH", "") + ":" + PATH
    try:
        done = subprocess.run(
            [os.fspath(a) for a in argv],
            input=input,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            cwd=cwd,
            check=False,
            stdin=subprocess.DEVNULL if input is None else None,
        )
    except FileNotFoundError as error:
        tool = os.fspath(argv[0])
        raise LabError(f"missing: {tool}; install with: apt-get install {TOOLS.get(tool, tool)}") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{what}: no end after {timeout:.0f} s") from error
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        more = f" (log: {log})" if log is not None else ""
        said = telling(done.stderr.strip() or done.stdout)
        raise LabError(f"{what} failed with status {done.returncode}: {said}{more}")
    return done.stdout


def telling(output: str) -> str:
    """The lines of a program's output that say why it failed, in one line.

    Those of apt and dpkg where there are such lines (what a package depends on, ``E:``, a maintainer script's reason), else
    the last four.
    """
    lines = [line.rstrip() for line in output.strip().splitlines() if line.strip()]
    found: list[str] = []
    follows = False  # whether lines that are indented belong to the one before them
    for line in lines:
        if line[0] == " ":
            found += [" ".join(line.split())] if follows else []
            continue
        follows = line.startswith(("E: ", "The following packages have unmet dependencies"))
        if line.startswith(("E: ", "Err:", "dpkg: error")) or "is a lab double and refuses" in line:
            found.append(line)
    return " | ".join(dict.fromkeys(found or (line.strip() for line in lines[-4:])))


@contextmanager
def file_lock(path: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; with ``wait`` false a held lock is a :class:`LabError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            if not wait:
                raise LabError(f"{what} is being changed by {holder}") from None
            say(f"waiting: {what} is in use by {holder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield


def write_whole(path: Path, text: str) -> None:
    """Replace a file that others may be reading: they see the old text or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.rename(path)


def in_parallel(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``map`` in threads, results in order; all finish before the first error is raised."""
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        futures = [pool.submit(function, item) for item in items]
    return [future.result() for future in futures]
