"""Disk images, each built once per content of its inputs and kept in ``.lab/images``.

Layers: a Debian tree from mmdebstrap (slow, needs the network), the lab's signed package repository, and the pair of
disks of a profile made from them (seconds). Names carry a hash of the inputs, so a changed double or unit file
rebuilds what depends on it and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import layout
from .errors import LabError
from .image_root import DOUBLES_AT
from .progress import say, step
from .system import file_lock, require_space, require_tools, run

RELEASES = ("trixie", "bookworm")
PROFILES = ("pve", "debian", "cluster")
# The doubles of Proxmox's packages are installed in these profiles' images; "cluster" boots the image of "pve".
IMAGE_OF_PROFILE = {"pve": "pve", "cluster": "pve", "debian": "debian"}
ROOT_MIB = 4096
VAR_MIB = 4096
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "linux-image-cloud-amd64", "busybox-static",
    "openssh-server", "iproute2", "iputils-ping", "procps", "less", "e2fsprogs", "util-linux-extra", "dmsetup",
    "python3", "python3-fusepy", "fuse3", "sqlite3", "openssl", "ca-certificates", "gpgv",
    "corosync", "libcpg4", "libquorum5", "libcmap4", "libcfg7", "smartmontools", "nvme-cli", "rrdcached", "logrotate",
    "iptables", "ipset", "nftables", "conntrack", "auditd", "chrony", "unattended-upgrades",
)  # fmt: skip
EXTRA_PACKAGES = {"trixie": ("libfuse2t64",), "bookworm": ("libfuse2",)}
DOUBLES = ("pve-cluster", "pve-ha-manager", "pve-manager", "pve-firewall", "proxmox-firewall", "libpve-access-control")


@dataclass(frozen=True)
class Image:
    """The files of one profile's image. ``key`` names its content."""

    key: str
    directory: Path
    repository: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.img"

    @property
    def var(self) -> Path:
        return self.directory / "var.img"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def about_repository(self) -> dict[str, Any]:
        """What the repository's builder said: fingerprint, url, packages, ..."""
        about: dict[str, Any] = json.loads(self.repository.with_suffix(".json").read_text())
        return about

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"


def digest(*parts: str | bytes) -> str:
    """A short name for content: the first 12 hex digits of a SHA-256 over length-prefixed parts."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:12]


def tree_digest(top: Path) -> str:
    """A short name for the files below ``top``: relative path, executable bit, content. Python's caches are left out."""
    parts: list[str | bytes] = []
    for path in sorted(top.rglob("*")):
        if "__pycache__" in path.parts or not (path.is_file() or path.is_symlink()):
            continue
        parts.append(str(path.relative_to(top)))
        if path.is_symlink():
            parts.append(os.readlink(path))
        else:
            parts += ["x" if path.stat().st_mode & 0o100 else "-", path.read_bytes()]
    return digest(*parts)


def _code(*names: str) -> str:
    return digest(*[(Path(__file__).parent / name).read_bytes() for name in names])


def base_key(release: str) -> str:
    return f"base-{release}-{digest(*PACKAGES, *EXTRA_PACKAGES[release])}"


def repository_key(source: str | None) -> str:
    """Name of the package repository's disk; ``source`` as in :func:`ensure`."""
    from .packages.build import BuildError, repository_digest

    try:
        return f"repo-{repository_digest(source=source)[:12]}"
    except BuildError as error:
        raise LabError(str(error)) from error


def image_key(kind: str, release: str, source: str | None) -> str:
    parts = [
        base_key(release),
        tree_digest(Path(__file__).parent / "guest"),
        _code("image_root.py", "initrd.py"),
    ]
    if kind == "pve":
        parts.append(repository_key(source))
    return f"{kind}-{release}-{digest(*parts)}"


def as_root(argv: list[str], *, what: str, log: Path, timeout: float = 900) -> None:
    """Run as root in a mount and process namespace of its own: really root, or root of a user namespace."""
    prefix = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        prefix += ["--user", "--map-auto", "--map-root-user"]
    environment = dict(os.environ, PYTHONPATH=str(layout.REPOSITORY), LC_ALL="C.UTF-8")
    run(prefix + argv, what=what, log=log, timeout=timeout, env=environment)


def _base(release: str) -> Path:
    path = layout.images_dir() / f"{base_key(release)}.tar"
    if path.exists():
        return path
    partial = path.with_suffix(".partial.tar")
    log = path.with_suffix(".log")
    packages = ",".join((*PACKAGES, *EXTRA_PACKAGES[release]))
    with step(f"Debian {release} from the mirror (mmdebstrap)"):
        run(
            [
                "mmdebstrap",
                "--variant=minbase",
                f"--include={packages}",
                "--skip=cleanup/reproducible",
                release,
                partial,
            ],
            what=f"mmdebstrap {release}",
            log=log,
            timeout=1800,
        )
    partial.rename(path)
    return path


def _repository(source: str | None, disk: Path) -> dict[str, Any]:
    """Build the signed repository and the read-only disk that brings it into the guests.

    Beside the disk, a JSON file says what the inventory must know (fingerprint, URL). Of a repository given by URL
    only the key is on the disk, beside a repository of the doubles.
    """
    from .packages.build import BuildError, build_repository

    work = layout.images_dir() / "packages"
    try:
        with step(f"package repository from {source}" if source else "package repository (doubles)"):
            repository = build_repository(work, source=source, key=os.environ.get("PVE_PACKAGES_KEY"))
    except BuildError as error:
        raise LabError(str(error)) from error
    served = repository.path
    if repository.completed:
        say(f"not in {source}, so the lab's doubles take their place: {', '.join(repository.completed)}")
    if served is None:
        served = work / "url"
        shutil.rmtree(served, ignore_errors=True)
        served.mkdir(parents=True)
        if repository.key_file is not None:
            shutil.copyfile(repository.key_file, served / "key.asc")
        elif repository.key_url is not None:
            _download(repository.key_url, served / "key.asc")
        else:
            raise LabError(
                f"PVE_PACKAGES={source}: set PVE_PACKAGES_KEY to the file or URL of the repository's public key"
            )
        # What the URL does not have is taken from here, while the image is built.
        doubles = build_repository(work / "doubles")
        assert doubles.path is not None
        shutil.copytree(doubles.path, served / DOUBLES_AT)
    size = sum(p.stat().st_size for p in served.rglob("*") if p.is_file()) // 2**20
    partial = disk.with_suffix(".partial.img")
    partial.unlink(missing_ok=True)
    run(
        [
            "mkfs.ext4",
            "-q",
            "-L",
            "lab-repo",
            "-E",
            "root_owner=0:0",
            "-d",
            served,
            partial,
            f"{size * 5 // 4 + 16}M",
        ],
        what="mkfs.ext4 of the repository",
    )
    about = repository.as_dict() | {"served": str(served)}
    disk.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    partial.rename(disk)
    return about


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            target.write_bytes(answer.read())
    except OSError as error:
        raise LabError(f"{url}: {error}") from error


def ensure(profile: str, release: str, source: str | None = None) -> Image:
    """Return the image of a profile, building what is missing.

    ``source`` is a directory or URL of real Proxmox packages (``PVE_PACKAGES``); the default are the doubles.
    """
    kind = IMAGE_OF_PROFILE[profile]
    images = layout.images_dir()
    images.mkdir(parents=True, exist_ok=True)
    image = Image(
        image_key(kind, release, source),
        images / image_key(kind, release, source),
        images / f"{repository_key(source)}.img",
    )
    if image.directory.is_dir() and image.repository.exists():
        for path in (image.directory, image.repository, image.repository.with_suffix(".json")):
            os.utime(path)  # in use: see prune()
        return image
    with file_lock(images / "lock", "the image store"):
        if not (image.directory.is_dir() and image.repository.exists()):
            require_tools(["mmdebstrap", "mkfs.ext4", "tar", "unshare"])
            require_space(images, 4096)
            base = _base(release)
            if not image.repository.exists() or (kind == "pve" and not image.directory.is_dir()):
                _repository(source, image.repository)
            if not image.directory.is_dir():
                _build(image, kind, release, base, source)
    return image


def _build(image: Image, kind: str, release: str, base: Path, source: str | None) -> None:
    partial = image.directory.with_name(image.key + ".partial")
    log = image.directory.with_name(image.key + ".log")
    as_root(["rm", "-rf", str(partial)], what="clean-up", log=log)
    partial.mkdir()
    spec = {"kind": kind, "release": release, "base": str(base), "out": str(partial),
            "repository": json.loads(image.repository.with_suffix(".json").read_text()),
            "guest": str(Path(__file__).parent / "guest"), "packages": list(DOUBLES) if kind == "pve" else [],
            "from_mirror": bool(source), "root_mib": ROOT_MIB, "var_mib": VAR_MIB}  # fmt: skip
    with step(f"disks of profile {kind} ({release})"):
        as_root(
            [sys.executable, "-m", "lab.image_root", json.dumps(spec)], what=f"image {image.key}", log=log
        )
    partial.rename(image.directory)


def prune(used: set[str], older_than: float = 3600) -> None:
    """Delete images and repositories not named in ``used`` (their keys) and not touched for ``older_than`` seconds.

    The age protects what another lab has just chosen and not yet written down.
    """
    images = layout.images_dir()
    if not images.is_dir():
        return
    with file_lock(images / "lock", "the image store"):
        for path in images.iterdir():
            name = path.name
            for suffix in (".partial.tar", ".partial.img", ".partial", ".tar", ".img", ".json", ".log"):
                name = name.removesuffix(suffix)
            if name in used or not name.startswith(("debian-", "pve-", "repo-")):
                continue
            if time.time() - path.lstat().st_mtime < older_than:
                continue
            say(f"removing unused image file {path.name}")
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
