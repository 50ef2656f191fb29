# SPDX-License-Identifier: Apache-2.0
"""Programs on a node: packages of these cores, installed from what Ansible shipped there with a module.

A version is a folder named by the hash of its files, /usr/local/lib/pveguard/HASH: the packages, compiled, and a launcher of
a few lines. It is written beside its place, flushed, and renamed; then one symbolic link is swapped, NAME -> HASH in the same
folder. So a power cut leaves the former version or the new one, never a part. The former version stays as well, behind
NAME.former.

A launcher resolves the link once, and its program imports at its start whatever it may need: a running one never mixes
versions, and an old one may be removed under it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pkgutil
import py_compile
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .atomic import fsync_dir, fsync_file, link_atomic, read_or_none
from .errors import PveguardError
from .managed_file import Change
from .program_version import HOME, is_compiled, is_of, linked, version, way

#: These cores by the name that this process has them under: Ansible's, or their own in a program.
_CORES = __name__.rpartition(".base.")[0]
#: -I: nothing of the environment or the working directory. -S: no site-packages, which nothing here needs.
LAUNCHER = """\
#!/usr/bin/python3 -IS
# Managed by pveguard: starts {name} of the version in this folder.
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from pveguard.{entry} import main

# The watcher's unit of former versions imports the program before it runs it.
if __name__ == "__main__":
    sys.exit(main())
"""


@dataclass(frozen=True)
class Program:
    """A program: its ``name``, the module below pveguard whose ``main()`` it is, and all ``modules`` that it imports
    (below pveguard). ``home`` is the folder of its versions, ``command`` a path that leads to its launcher, "" for none.
    """

    name: str
    entry: str
    modules: tuple[str, ...]
    command: str = ""
    home: str = HOME

    @property
    def launcher(self) -> str:
        """The path of the present version's launcher."""
        return f"{self.home}/{self.name}/{self.name}"


def files(program: Program) -> dict[str, bytes]:
    """What a version holds, path within it -> content; without what is compiled."""
    found = {program.name: LAUNCHER.format(name=program.name, entry=program.entry).encode(), "pveguard/__init__.py": b""}
    for module in program.modules:
        *packages, name = module.split(".")
        for depth in range(1, len(packages) + 1):
            found["/".join(("pveguard", *packages[:depth], "__init__.py"))] = b""
        data = pkgutil.get_data(".".join((_CORES, *packages)), f"{name}.py")
        if data is None:
            raise PveguardError(f"the module that installs {program.name} came without pveguard.{module}")
        found["/".join(("pveguard", *packages, f"{name}.py"))] = data
    return found


def plan(program: Program, root: Path = Path("/")) -> list[Change]:
    """What :func:`install` would change, as the change of one path: none, or the program's. Raises PveguardError where a
    directory is in its place.
    """
    wanted = files(program)
    name = version(wanted)
    home, link, command = _places(program, root)
    for path in (link, command):
        if path is not None and path.is_dir() and not path.is_symlink():
            raise PveguardError(f"{path}: is a directory, where the program {program.name} belongs; move it away")
    current = linked(link)
    called = command is None or (command.is_symlink() and os.readlink(command) == way(command, link))
    if called and current is not None and is_of(current, name) and _is_whole(current, wanted):
        return []
    at = command or link
    before = "" if not os.path.lexists(at) else _named(at, current)
    what = "content" if before else "created"
    return [Change(program.command or f"{program.home}/{program.name}", before, f"version {name}\n", what)]


def install(program: Program, root: Path = Path("/")) -> list[Change]:
    """Bring a program to the version of this process; what :func:`plan` said is returned. Versions that no program's link
    leads to are removed, but for the one that was in use before.
    """
    changes = plan(program, root)
    if not changes:
        return []
    wanted = files(program)
    home, link, command = _places(program, root)
    home.mkdir(mode=0o755, parents=True, exist_ok=True)
    fsync_dir(home.parent)
    with _locked(home):
        current = linked(link)
        target = _written(home, wanted)
        if current is not None and current != target:
            link_atomic(_former(link), current.name)
        if current != target:
            link_atomic(link, target.name)
        if command is not None:
            command.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            link_atomic(command, way(command, link))
        _prune(home)
    return changes


def plan_removal(program: Program, root: Path = Path("/")) -> list[Change]:
    """What :func:`remove` would change, as :func:`plan` says it."""
    _, link, command = _places(program, root)
    at = command or link
    if not any(os.path.lexists(path) for path in (at, link, _former(link))):
        return []
    return [Change(program.command or f"{program.home}/{program.name}", _named(at, linked(link)), "", "removed")]


def remove(program: Program, root: Path = Path("/")) -> None:
    """Remove a program's links and the versions that no other program's link leads to. One that runs goes on."""
    home, link, command = _places(program, root)
    for path in (command, link, _former(link)):
        if path is not None and os.path.lexists(path):
            path.unlink()
            fsync_dir(path.parent)
    if not home.is_dir():
        return
    with _locked(home):
        _prune(home)
        if not any(home.iterdir()):
            home.rmdir()


def _places(program: Program, root: Path) -> tuple[Path, Path, Path | None]:
    """The folder of versions, the link in it, and the path that the program is called by, below ``root``."""
    home = root / program.home.lstrip("/")
    return home, home / program.name, root / program.command.lstrip("/") if program.command else None


def _former(link: Path) -> Path:
    return link.with_name(f"{link.name}.former")


def _named(link: Path, current: Path | None) -> str:
    if current is not None:
        return f"version {current.name}\n"
    data = read_or_none(link)
    if data is None:
        return "a link to nothing\n"
    return f"a file of {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}\n"


def _is_whole(folder: Path, wanted: Mapping[str, bytes]) -> bool:
    """Whether a version has every file as it must be, compiled for the Python that runs here."""
    return all(
        read_or_none(folder / path) == data
        and (is_compiled(folder / path) if path.endswith(".py") else os.access(folder / path, os.X_OK))
        for path, data in wanted.items()
    )


def _written(home: Path, wanted: Mapping[str, bytes]) -> Path:
    """A whole version in its place: the one that is there, or a new one. A damaged one is left to those that run it."""
    name = version(wanted)
    for path in sorted(home.iterdir()):
        if not path.is_symlink() and is_of(path, name) and _is_whole(path, wanted):
            return path
    target = home / name
    number = 1
    while os.path.lexists(target):
        number += 1
        target = home / f"{name}-{number}"
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
    try:
        for inner, data in wanted.items():
            file = work / inner
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            file.write_bytes(data)
            file.chmod(0o644 if inner.endswith(".py") else 0o755)
            if inner.endswith(".py"):
                # A traceback shall name the file where it will lie.
                py_compile.compile(str(file), dfile=f"{target}/{inner}", doraise=True)
        work.chmod(0o755)
        _flush(work)
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    fsync_dir(home)
    return target


def _flush(folder: Path) -> None:
    """fsync of every file and directory below ``folder``, and of itself."""
    for top, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_file(os.path.join(top, name))
        fsync_dir(top)


def _prune(home: Path) -> None:
    """Remove the versions that no link leads to, and what a power cut left half written."""
    used = {linked(path) for path in home.iterdir()}
    for path in sorted(home.iterdir()):
        if path.is_dir() and not path.is_symlink() and path not in used:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
