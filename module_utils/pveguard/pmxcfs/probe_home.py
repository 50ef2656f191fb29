"""What a probe needs beside membership: its place on /etc/pve, and folders for the daemon's statistics.

Members read the certificate of every node that corosync.conf lists, for example when another node is to join; a probe
has no service that would show one, so it gets a placeholder: a certificate whose key nobody has. The statistics that
members send around (RRD) are stored by every daemon, which complains about each one while their folders are missing.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path
from typing import Any

from ..base.atomic import read_or_none
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from . import pve_file

RRD = "var/lib/rrdcached/db"
#: Of Proxmox VE up to 8, and of 9.
RRD_FOLDERS = ("pve2-node", "pve2-vm", "pve2-storage", "pve-node-9.0", "pve-vm-9.0", "pve-storage-9.0")
#: Days that the placeholder is valid: longer than a probe stays.
CERTIFICATE_DAYS = 3650
#: The organisation in the placeholder, by which it is told from the certificate of a node.
MARK = "pveguard probe, no service"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def present(name: str, check_mode: bool = False, run: Run = real_run, root: Path = Path("/")) -> dict[str, Any]:
    """Make what is missing. ``name``: of the node. Returns ``{changed, made}`` with the paths, as a node sees them.

    Raises PveguardError where /etc/pve is not mounted or takes no writes, and where openssl is missing.
    """
    made = []
    for folder in (root / RRD / each for each in RRD_FOLDERS):
        if not folder.is_dir():
            made.append(f"/{folder.relative_to(root)}")
            if not check_mode:
                folder.mkdir(parents=True)
    path = f"/etc/pve/nodes/{name}/pve-ssl.pem"
    if not _PEM.search(read_or_none(root / path.lstrip("/")) or b""):
        made.append(path)
        if not check_mode:
            pve_file.apply(path, certificate(name, run), root)
    return {"changed": bool(made), "made": made}


def is_placeholder(pem: bytes) -> bool:
    """Whether a certificate is the placeholder of a probe."""
    for match in re.finditer(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", pem):
        try:
            if MARK.encode() in base64.b64decode(b"".join(match.group(1).split()), validate=True):
                return True
        except (binascii.Error, ValueError):
            continue
    return False


def absent(check_mode: bool = False, root: Path = Path("/")) -> dict[str, Any]:
    """Remove the folders of statistics, with the statistics of the cluster's nodes in them. ``{changed, removed}``.

    Only RRD files and folders are removed: any other file stays, with the folder that holds it.
    """
    removed = []
    for each in RRD_FOLDERS:
        folder = root / RRD / each
        if not folder.is_dir():
            continue
        removed.append(f"/{folder.relative_to(root)}")
        if not check_mode:
            _remove(folder)
    return {"changed": bool(removed), "removed": removed}


def _remove(folder: Path) -> None:
    """RRD files have no suffix and begin with their magic."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove(entry)
        elif entry.is_file() and not entry.is_symlink():
            with open(entry, "rb") as handle:
                statistics = handle.read(4) == b"RRD\0"
            if statistics:
                entry.unlink()
    try:
        folder.rmdir()
    except OSError:
        raise PveguardError(f"{folder} holds files that are no statistics (RRD): look at them and remove it by hand") from None


def certificate(name: str, run: Run = real_run) -> bytes:
    """A self-signed certificate for ``name``; its key is made in memory-backed storage and not kept."""
    with tempfile.TemporaryDirectory(prefix="pveguard-probe-", dir="/run" if Path("/run").is_dir() else None) as directory:
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{directory}/key", "-sha256"]
        argv += ["-days", str(CERTIFICATE_DAYS), "-subj", f"/O={MARK}/CN={name}"]
        try:
            made = run(argv, timeout=120)
        except CommandMissing as error:
            raise PveguardError(f"the placeholder for /etc/pve/nodes/{name}/pve-ssl.pem cannot be made: {error}") from error
    match = _PEM.search(made.stdout.encode())
    if not made.ok or match is None:
        raise PveguardError(f"openssl made no certificate: {made.stderr.strip() or f'code {made.rc}'}")
    return match.group(0) + b"\n"
