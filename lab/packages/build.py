# SPDX-License-Identifier: Apache-2.0
"""Builds the lab's Debian packages and a signed apt repository of them.

A package is a directory beside this file::

    NAME/control.json   {"name", "version", "depends": [], "recommends": [], "description",
                         "conffiles": [], "units": [], "architecture": "all"}
    NAME/root/          the files as installed (the executable bit of a file is kept, owner is root)
    NAME/preinst ...    optional maintainer scripts (preinst postinst prerm postrm)

``description``: first line the synopsis, the other lines the long text.
``units``: names, or ``{"name": "x.service", "enable": true, "start": true, "restart_on_upgrade": true}``.

Maintainer scripts: where one is missing it is generated. A given script is used as it is, except that a
line ``#LAB#`` in preinst is replaced by the refusal to be installed on a real Proxmox machine, and a line
``#UNITS#`` in postinst, prerm or postrm by the handling of ``units`` (enable, start, restart, stop, purge;
masks stay).

The repository has the layout of Proxmox's own (suites by Debian code name, component pve-no-subscription), so
that only URL and key differ. Needs dpkg-deb, apt-ftparchive and gpg; no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEFAULT_REVISION = "+lab1"
SUITES = ("trixie", "bookworm")
COMPONENT = "pve-no-subscription"
ORIGIN = "pveguard lab"
ARCHITECTURES = ("amd64", "arm64")
#: Time stamp of every packaged file (2025-01-01 UTC); SOURCE_DATE_EPOCH in the environment overrides it.
DEFAULT_EPOCH = 1735689600
#: A guest restored from a snapshot has an old clock for a moment; apt and gpg refuse what is from the future.
CLOCK_SLACK = 86400
#: The key is older than everything it signs, whatever the clock did in between.
KEY_AGE = 2 * CLOCK_SLACK
#: What stands in LAB_FILE on the lab's own virtual machines (lab/guest), where doubles complete real packages.
LAB_FILE = "/etc/pveguard-lab"
LAB_TEXT = "a virtual machine of the pveguard lab"
TOOLS = {"dpkg-deb": "dpkg", "apt-ftparchive": "apt-utils", "gpg": "gpg", "gpg-agent": "gpg-agent"}
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
CONTROL_KEYS = {
    "name", "version", "depends", "recommends", "description", "conffiles", "units", "architecture",
    "section",
}  # fmt: skip


class BuildError(Exception):
    """A package or repository could not be built; the message says which, why, and what helps."""


@dataclass(frozen=True)
class Repository:
    """A signed apt repository.

    path: directory to serve (a read-only disk, a file: URI), or None for a repository given as URL.
    key_file: its public key, ASCII armoured; for a URL what the caller gave, else None.
    fingerprint: 40 hex digits of that key, or None when the key is not at hand.
    packages: name -> version (of the newest, where a directory of real packages holds several).
    url: set for a repository given as URL.
    digest: see repository_digest().
    doubles: whether there is nothing else in it.
    completed: names of the doubles that complete a directory of real packages.
    """

    path: Path | None
    key_file: Path | None
    fingerprint: str | None
    packages: dict[str, str]
    url: str | None = None
    digest: str = ""
    suites: tuple[str, ...] = SUITES
    components: tuple[str, ...] = (COMPONENT,)
    key_url: str | None = None
    doubles: bool = True
    completed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path) if self.path else None,
            "key_file": str(self.key_file) if self.key_file else None,
            "fingerprint": self.fingerprint,
            "packages": self.packages,
            "url": self.url,
            "digest": self.digest,
            "suites": list(self.suites),
            "components": list(self.components),
            "key_url": self.key_url,
            "doubles": self.doubles,
            "completed": list(self.completed),
        }

    def deb822(self, suite: str, *, uri: str | None = None, signed_by: str = "/srv/pve-repo/key.asc") -> str:
        """The text of a .sources file. uri: default the URL, else where the lab mounts the repository."""
        return (
            "Types: deb\n"
            f"URIs: {uri or self.url or 'file:/srv/pve-repo'}\n"
            f"Suites: {suite}\n"
            f"Components: {' '.join(self.components)}\n"
            f"Signed-By: {signed_by}\n"
        )


@dataclass(frozen=True)
class Unit:
    name: str
    enable: bool = True
    start: bool = True
    restart_on_upgrade: bool = True


@dataclass(frozen=True)
class Package:
    """One package directory, read and checked."""

    directory: Path
    name: str
    version: str
    description: str
    depends: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    conffiles: tuple[str, ...] = ()
    units: tuple[Unit, ...] = ()
    architecture: str = "all"
    section: str = "admin"
    scripts: dict[str, str] = field(default_factory=dict)


# --- reading ------------------------------------------------------------------------------------------------


def read_package(directory: Path) -> Package:
    """Reads NAME/control.json and the maintainer scripts; raises BuildError naming file and key."""
    control = directory / "control.json"
    try:
        data = json.loads(control.read_text())
    except (OSError, ValueError) as error:
        raise BuildError(f"{control}: {error}") from error
    if not isinstance(data, dict):
        raise BuildError(f"{control}: must be an object")
    unknown = sorted(set(data) - CONTROL_KEYS)
    if unknown:
        raise BuildError(
            f"{control}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(CONTROL_KEYS))}"
        )
    for key in ("name", "version", "description"):
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise BuildError(f"{control}: {key} must be a text")
    for key in ("depends", "recommends", "conffiles"):
        value = data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BuildError(f"{control}: {key} must be a list of texts")
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", data["name"]):
        raise BuildError(f"{control}: {data['name']!r} is no package name")
    units = []
    for item in data.get("units", []):
        try:
            unit = Unit(item) if isinstance(item, str) else Unit(**item)
        except TypeError as error:
            raise BuildError(f"{control}: units: {error}") from error
        if not re.fullmatch(r"[A-Za-z0-9@._\\:-]+\.(service|socket|timer|path|mount|target)", unit.name):
            raise BuildError(f"{control}: {unit.name!r} is no unit name")
        units.append(unit)
    return Package(
        directory=directory,
        name=data["name"],
        version=data["version"],
        description=data["description"],
        depends=tuple(data.get("depends", ())),
        recommends=tuple(data.get("recommends", ())),
        conffiles=tuple(data.get("conffiles", ())),
        units=tuple(units),
        architecture=data.get("architecture", "all"),
        section=data.get("section", "admin"),
        scripts={name: (directory / name).read_text() for name in SCRIPTS if (directory / name).is_file()},
    )


def find_packages(root: Path = HERE) -> list[Package]:
    """Every directory under root with a control.json, by name."""
    return [read_package(path.parent) for path in sorted(root.glob("*/control.json"))]


def _source_files(directory: Path) -> Iterator[Path]:
    """Files and links of a package directory in a fixed order, without what editors and Python leave."""
    for folder, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if name not in {"__pycache__", ".git"})
        for name in list(names):
            if (Path(folder) / name).is_symlink():
                yield Path(folder) / name
        for name in sorted(files):
            if not name.endswith((".pyc", "~", ".swp")):
                yield Path(folder) / name


def repository_digest(
    *, revision: str = DEFAULT_REVISION, source: str | None = None, root: Path = HERE
) -> str:
    """Hash (64 hex digits) of everything a repository is made of; the signing key is not part of it.

    Equal digests mean packages with the same bytes, so an image that holds them can be kept by it. Of a URL only the
    URL is hashed: what it serves is not looked at.
    """
    total = hashlib.sha256()

    def add(*parts: bytes | str) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            total.update(b"%d:" % len(data) + data)

    add("pveguard lab repository 1", Path(__file__).read_bytes(), str(_epoch()))
    if source and is_url(source):
        add("url", source)
    elif source:
        add("debs")
        for deb in _real_packages(source):
            add(deb.name, _sha256(deb))
    # Also beside real packages: they complete what is missing there.
    add("doubles", revision)
    for package in find_packages(root):
        for path in _source_files(package.directory):
            add(path.relative_to(package.directory).as_posix())
            if path.is_symlink():
                add("link", os.readlink(path))
            else:
                add("x" if path.stat().st_mode & 0o100 else "-", path.read_bytes())
    return total.hexdigest()


def is_url(source: str) -> bool:
    return re.match(r"(https?|file|mirror\+\w+|tor\+\w+)://?", source) is not None


def _real_packages(source: str) -> list[Path]:
    directory = Path(source).expanduser()
    if not directory.is_dir():
        raise BuildError(f"PVE_PACKAGES: {source} is neither a directory of .deb files nor a URL")
    debs = sorted(directory.rglob("*.deb"))
    if not debs:
        raise BuildError(f"PVE_PACKAGES: {source} holds no .deb file")
    names = [deb.name for deb in debs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BuildError(f"PVE_PACKAGES: {source} holds {', '.join(twice)} more than once")
    return debs


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH") or DEFAULT_EPOCH)


# --- maintainer scripts -------------------------------------------------------------------------------------

# DPKG_ROOT is dpkg's own name for the root a package is installed under.
REFUSAL = """\
# This is a double for tests: never onto a machine that is, or takes its packages from, Proxmox. On the lab's own virtual
# machines it completes real packages.
machine=$(cat "${DPKG_ROOT:-}@LAB_FILE@" 2>/dev/null) || true
if { [ "$1" = install ] || [ "$1" = upgrade ]; } && [ "$machine" != '@LAB_TEXT@' ]; then
    real=$(dpkg-query --root="${DPKG_ROOT:-/}" -W -f '${db:Status-Abbrev}|${Package}|${Version}\\n' \\
        'pve-*' 'libpve-*' 'proxmox-*' 2>/dev/null | grep '^.[^nc]' | grep -v -F '+lab' | cut -d '|' -f 2,3 \\
        | tr '|\\n' ' ,') || true
    if [ -n "$real" ]; then
        echo "@NAME@ @VERSION@ is a lab double and refuses this machine, real packages are there: $real" >&2
        exit 1
    fi
    for file in "${DPKG_ROOT:-}"/etc/apt/sources.list "${DPKG_ROOT:-}"/etc/apt/sources.list.d/*.list \\
        "${DPKG_ROOT:-}"/etc/apt/sources.list.d/*.sources; do
        if [ -f "$file" ] && grep -q -i '^[^#]*proxmox\\.com' "$file"; then
            echo "@NAME@ @VERSION@ is a lab double and refuses this machine, $file names Proxmox's host" >&2
            exit 1
        fi
    done
fi
"""


#: Not while dpkg works on another root than the running one.
SYSTEMD_RUNS = '[ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]'


def _units_postinst(units: Sequence[Unit]) -> str:
    """Enable, then start or restart, as debhelper does.

    Works in a chroot and keeps what the operator disabled or masked: deb-systemd-helper's unmask takes back
    only its own masks, deb-systemd-invoke skips masked units.
    """
    if not units:
        return ""
    lines = ['case "$1" in configure|abort-upgrade|abort-deconfigure|abort-remove)']
    for unit in units:
        if unit.enable:
            lines += [
                f"    deb-systemd-helper unmask '{unit.name}' >/dev/null || true",
                f"    if deb-systemd-helper --quiet was-enabled '{unit.name}'; then",
                f"        deb-systemd-helper enable '{unit.name}' >/dev/null || true",
                "    else",
                f"        deb-systemd-helper update-state '{unit.name}' >/dev/null || true",
                "    fi",
            ]
    first = [unit.name for unit in units if unit.start]
    again = [unit.name for unit in units if unit.start and unit.restart_on_upgrade]
    lines += [
        f"    if {SYSTEMD_RUNS}; then",
        "        systemctl --system daemon-reload >/dev/null || true",
    ]
    if first:
        lines += [
            '        if [ -n "$2" ]; then',
            "            "
            + (f"deb-systemd-invoke restart {_quoted(again)} >/dev/null || true" if again else ":"),
            "        else",
            f"            deb-systemd-invoke start {_quoted(first)} >/dev/null || true",
            "        fi",
        ]
    lines += ["    fi", "    ;;", "esac", ""]
    return "\n".join(lines)


def _units_prerm(units: Sequence[Unit]) -> str:
    if not units:
        return ""
    # The last started is the first stopped: a client goes before the daemon it holds on to.
    names = _quoted([unit.name for unit in reversed(units)])
    return (
        f'if [ "$1" = remove ] && {SYSTEMD_RUNS}; then\n'
        f"    for unit in {names}; do\n"
        '        deb-systemd-invoke stop "$unit" >/dev/null || true\n'
        "    done\n"
        "fi\n"
    )


def _units_postrm(units: Sequence[Unit]) -> str:
    if not units:
        return ""
    enabled = [unit.name for unit in units if unit.enable]
    purge = f"    deb-systemd-helper purge {_quoted(enabled)} >/dev/null || true\n" if enabled else "    :\n"
    return (
        f'if [ "$1" = remove ] && {SYSTEMD_RUNS}; then\n'
        "    systemctl --system daemon-reload >/dev/null || true\n"
        "fi\n"
        'if [ "$1" = purge ] && command -v deb-systemd-helper >/dev/null; then\n'
        f"{purge}"
        "fi\n"
    )


def _quoted(names: Sequence[str]) -> str:
    return " ".join(f"'{name}'" for name in names)


def maintainer_scripts(package: Package, version: str) -> dict[str, str]:
    """Name -> text of the scripts that go into the package."""
    generated = {
        "preinst": REFUSAL,
        "postinst": _units_postinst(package.units),
        "prerm": _units_prerm(package.units),
        "postrm": _units_postrm(package.units),
    }
    result = {}
    for name, snippet in generated.items():
        snippet = snippet.replace("@NAME@", package.name).replace("@VERSION@", version)
        snippet = snippet.replace("@LAB_FILE@", LAB_FILE).replace("@LAB_TEXT@", LAB_TEXT)
        text = package.scripts.get(name)
        if text is None:
            text = f"#!/bin/sh\nset -e\n{snippet}" if snippet else None
        else:
            marker = "#LAB#" if name == "preinst" else "#UNITS#"
            text = "".join(
                snippet if line.strip() == marker else line for line in text.splitlines(keepends=True)
            )
        if text is not None:
            result[name] = text
    return result


# --- .deb ---------------------------------------------------------------------------------------------------


def build_deb(package: Package, pool: Path, revision: str) -> Path:
    """Builds one package into pool; the same sources give the same bytes."""
    if not re.fullmatch(r"\+lab[0-9a-z.~]*", revision):
        raise BuildError(
            f"revision {revision!r} must look like +lab1: a double must be known as one by its version"
        )
    version = package.version + revision
    staging = Path(tempfile.mkdtemp(prefix="pveguard-deb-"))
    try:
        root = staging / "root"
        root.mkdir()
        _copy_tree(package.directory / "root", root)
        size_kib = sum((path.lstat().st_size + 1023) // 1024 for path in root.rglob("*") if not path.is_dir())
        sums = [
            f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and not path.is_symlink()
            and "/" + str(path.relative_to(root)) not in package.conffiles
        ]
        for conffile in package.conffiles:
            if not (root / conffile.lstrip("/")).is_file():
                raise BuildError(f"{package.name}: conffile {conffile} is not under root/")
        debian = root / "DEBIAN"
        debian.mkdir()
        (debian / "control").write_text(_control(package, version, size_kib))
        (debian / "md5sums").write_text("".join(sums))
        if package.conffiles:
            (debian / "conffiles").write_text("".join(f"{path}\n" for path in package.conffiles))
        for name, text in maintainer_scripts(package, version).items():
            (debian / name).write_text(text)
        _normalise(root, debian)
        target = pool / f"{package.name}_{version}_{package.architecture}.deb"
        # gzip: emulated guests unpack it several times faster than xz.
        _run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z6", "--build", str(root), str(target)],
            env={"SOURCE_DATE_EPOCH": str(_epoch())},
        )
        return target
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_tree(source: Path, target: Path) -> None:
    for path in _source_files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.symlink_to(os.readlink(path))
        elif stat.S_ISREG(path.lstat().st_mode):
            shutil.copyfile(path, place)
            place.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        else:
            raise BuildError(f"{path}: only files and links can be packaged")


def _normalise(root: Path, debian: Path) -> None:
    """Modes and times that do not depend on the umask, the clock or the checkout."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        elif path.parent == debian:
            path.chmod(0o755 if path.name in SCRIPTS else 0o644)
        os.utime(path, (_epoch(), _epoch()), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (_epoch(), _epoch()))


def _control(package: Package, version: str, size_kib: int) -> str:
    synopsis, _, text = package.description.strip().partition("\n")
    if "lab double" not in package.description.lower():
        synopsis = f"lab double: {synopsis}"
    fields = [
        ("Package", package.name),
        ("Version", version),
        ("Architecture", package.architecture),
        ("Maintainer", "pveguard lab <root@localhost>"),
        ("Installed-Size", str(size_kib)),
        ("Depends", ", ".join(package.depends)),
        ("Recommends", ", ".join(package.recommends)),
        ("Section", package.section),
        ("Priority", "optional"),
        ("Description", synopsis),
    ]
    lines = [f"{key}: {value}" for key, value in fields if value]
    lines += [f" {line.strip()}" if line.strip() else " ." for line in text.strip().splitlines()]
    return "\n".join(lines) + "\n"


# --- repository ---------------------------------------------------------------------------------------------


def build_repository(
    out: Path,
    *,
    revision: str = DEFAULT_REVISION,
    source: str | None = None,
    key: str | None = None,
    root: Path = HERE,
) -> Repository:
    """Builds (or finds already built) the signed repository OUT/repository and returns it.

    out: work directory, made when missing; the secret signing key is kept in OUT/key, outside what is served.
    revision: suffix of the doubles' versions, ``+lab1``; a higher one makes an upgrade.
    source: None for the doubles; a directory of real .deb files, indexed and signed, with doubles of the packages that
    are not there; or the URL of a repository, which is passed through without a look at the network.
    key: for a URL its public key, a file or a URL.
    root: where the package directories are.
    """
    digest = repository_digest(revision=revision, source=source, root=root)
    if source and is_url(source):
        return _remote(source, key, digest)
    _need_tools()
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out / "lock"):
        served = out / "repository"
        cached = _cached(out, served, digest)
        if cached:
            return cached
        work = Path(tempfile.mkdtemp(prefix="new-", dir=out))
        try:
            with _signing_key(out / "key") as (gnupg, fingerprint):
                packages, completed = _fill(work, source, revision, root)
                (work / "key.asc").write_text(_gpg(gnupg, "--armor", "--export", fingerprint))
                _sign(work, gnupg, fingerprint, doubles=not source)
            for path in [work, *work.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
            shutil.rmtree(served, ignore_errors=True)
            (out / "repository.json").unlink(missing_ok=True)
            work.rename(served)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        repository = Repository(
            path=served,
            key_file=served / "key.asc",
            fingerprint=fingerprint,
            packages=packages,
            digest=digest,
            doubles=not source,
            completed=completed,
        )
        (out / "repository.json").write_text(json.dumps(repository.as_dict(), indent=2) + "\n")
        return repository


def _remote(url: str, key: str | None, digest: str) -> Repository:
    key_file = Path(key).expanduser().absolute() if key and not is_url(key) else None
    fingerprint = None
    if key_file:
        if not key_file.is_file():
            raise BuildError(f"PVE_PACKAGES_KEY: {key} is no file")
        _need_tools("gpg")
        with _gnupg_home() as gnupg:
            fingerprint = _fingerprint(_gpg(gnupg, "--with-colons", "--show-keys", str(key_file)))
    return Repository(
        path=None,
        key_file=key_file,
        fingerprint=fingerprint,
        packages={},
        url=url,
        digest=digest,
        key_url=key if key and is_url(key) else None,
        doubles=False,
    )


def _cached(out: Path, served: Path, digest: str) -> Repository | None:
    try:
        data = json.loads((out / "repository.json").read_text())
    except (OSError, ValueError):
        return None
    if data.get("digest") != digest or not (served / "key.asc").is_file():
        return None
    if not all((served / "dists" / suite / "InRelease").is_file() for suite in SUITES):
        return None
    return Repository(
        path=served,
        key_file=served / "key.asc",
        fingerprint=data["fingerprint"],
        packages=data["packages"],
        digest=digest,
        doubles=data["doubles"],
        completed=tuple(data.get("completed", ())),
    )


def _fill(work: Path, source: str | None, revision: str, root: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Puts the .deb files into work/pool and writes the Packages files.

    Returns name -> version, and the names of the doubles that complete what ``source`` has.
    """
    pool = work / "pool"
    pool.mkdir()
    doubles = find_packages(root)
    if not doubles:
        raise BuildError(f"{root} holds no package directory (NAME/control.json)")
    given = set()
    for deb in _real_packages(source) if source else ():
        # Of what it cannot read apt-ftparchive says nothing, and a double would take its place.
        given.add(_run(["dpkg-deb", "--field", str(deb), "Package"]).strip())
        shutil.copyfile(deb, pool / deb.name)
    missing = [package for package in doubles if package.name not in given]
    for package in missing:
        build_deb(package, pool, revision)
    index = _run(["apt-ftparchive", "packages", "pool"], cwd=work)
    for suite in SUITES:
        for architecture in ARCHITECTURES:
            folder = work / "dists" / suite / COMPONENT / f"binary-{architecture}"
            folder.mkdir(parents=True)
            (folder / "Packages").write_text(index)
    packages: dict[str, str] = {}
    for name, version in re.findall(
        r"^Package: (\S+)\n(?:\S.*\n| .*\n)*?Version: (\S+)$", index, re.MULTILINE
    ):
        if name not in packages or _newer(version, packages[name]):
            packages[name] = version
    return packages, tuple(package.name for package in missing) if source else ()


def _newer(one: str, other: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", one, "gt", other], check=False).returncode == 0


def _sign(work: Path, gnupg: Path, fingerprint: str, *, doubles: bool) -> None:
    signed_at = int(time.time()) - CLOCK_SLACK
    for suite in SUITES:
        options = {
            "Origin": ORIGIN,
            "Label": "lab doubles of Proxmox packages" if doubles else "packages given to the lab",
            "Suite": suite,
            "Codename": suite,
            "Architectures": " ".join(ARCHITECTURES),
            "Components": COMPONENT,
        }
        arguments = [
            part
            for key, value in options.items()
            for part in ("-o", f"APT::FTPArchive::Release::{key}={value}")
        ]
        folder = work / "dists" / suite
        release = _run(
            ["apt-ftparchive", *arguments, "release", str(folder)], env={"SOURCE_DATE_EPOCH": str(signed_at)}
        )
        # Not every release of apt-ftparchive takes its date from the environment.
        date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(signed_at))
        (folder / "Release").write_text(re.sub(r"^Date: .*$", f"Date: {date}", release, flags=re.MULTILINE))
        for action, target in (("--clearsign", "InRelease"), ("--detach-sign", "Release.gpg")):
            _gpg(
                gnupg, "--faked-system-time", str(signed_at), "--digest-algo", "SHA512",
                "--local-user", fingerprint, "--armor", "--output", str(folder / target),
                action, str(folder / "Release"),
            )  # fmt: skip


# --- keys ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _gnupg_home() -> Iterator[Path]:
    """A GNUPGHOME with a short path (the agent's socket must fit into 107 bytes); its agent ends with it."""
    base = "/tmp" if os.access("/tmp", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix="pvg-", dir=base))
    try:
        yield home
    finally:
        subprocess.run(
            ["gpgconf", "--homedir", str(home), "--kill", "all"],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _signing_key(folder: Path) -> Iterator[tuple[Path, str]]:
    """A GNUPGHOME with the secret key of this work directory, made on first use; and its fingerprint."""
    secret = folder / "secret.asc"
    with _gnupg_home() as home:
        if secret.is_file():
            _gpg(home, "--import", str(secret))
        else:
            _gpg(
                home, "--faked-system-time", str(int(time.time()) - KEY_AGE),
                "--pinentry-mode", "loopback", "--passphrase", "",
                "--quick-generate-key", "pveguard lab (signs test packages only)", "ed25519", "sign", "never",
            )  # fmt: skip
            folder.mkdir(mode=0o700, exist_ok=True)
            temporary = folder / "secret.asc.tmp"
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
                stream.write(_gpg(home, "--armor", "--export-secret-keys"))
            temporary.rename(secret)
        yield home, _fingerprint(_gpg(home, "--with-colons", "--list-secret-keys"))


def _fingerprint(listing: str) -> str:
    for line in listing.splitlines():
        if line.startswith("fpr:"):
            return line.split(":")[9]
    raise BuildError("gpg shows no key")


def _gpg(home: Path, *arguments: str) -> str:
    return _run(["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet", "--no-tty", *arguments])


# --- helpers ------------------------------------------------------------------------------------------------


def _need_tools(*names: str) -> None:
    missing = [name for name in names or TOOLS if shutil.which(name) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[name] for name in missing}))
        raise BuildError(f"missing {', '.join(missing)}: apt-get install {packages}")


def _run(argv: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    environment.pop("GNUPGHOME", None)
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode != 0:
        raise BuildError(
            f"{argv[0]} failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
