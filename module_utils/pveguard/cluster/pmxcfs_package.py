"""The package of the cluster file system: its repository on plain Debian, the package, the running daemon.

On a Proxmox VE installation (the package is there and did not come through this module) repositories are left
alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base import node_name
from ..base.atomic import read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..base.systemd import properties
from ..pmxcfs import pve_file
from . import cluster_member

PACKAGE = "pve-cluster"
UNIT = "pve-cluster.service"
SOURCES = "etc/apt/sources.list.d/pveguard-pmxcfs.sources"
PREFERENCES = "etc/apt/preferences.d/pveguard-pmxcfs"
KEYRING = "etc/apt/keyrings/pveguard-pmxcfs.gpg"

#: Proxmox's public repository without support, as its documentation gives it ("Package Repositories").
PUBLIC_URL = "http://download.proxmox.com/debian/pve"
PUBLIC_COMPONENT = "pve-no-subscription"
PUBLIC_KEY = "https://enterprise.proxmox.com/debian/proxmox-release-{codename}.gpg"
#: "Proxmox Bookworm Release Key" and "Proxmox Trixie Release Key" <proxmox-release@proxmox.com>: the keys
#: that
#: Proxmox's package proxmox-archive-keyring installs and 'gpg --show-keys' prints for the files at
#: PUBLIC_KEY.
PUBLIC_FINGERPRINTS = {
    "bookworm": "F4E136C67CDCE41AE6DE6FC81140AF8F639E0C39",
    "trixie": "24B30F06ECC1836A4E5EFECBA7BCD1420BFE778E",
}
#: Below Debian's 500: no package that Debian has is taken from this repository; what only it has, and
#: upgrades of that, is.
PIN_PRIORITY = 100

APT = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120"]
APT_ENV = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none", "NEEDRESTART_MODE": "l"}


@dataclass(frozen=True)
class Wanted:
    """What was asked for. ``repository``: ``no-subscription``, ``keep``, a URL, or empty for the default of
    the host.

    ``suite`` is the release's code name when empty, ``components`` are ``main`` for a URL of one's own.
    ``key`` is a path on the node or a URL; ``fingerprint`` (hexadecimal, spaces allowed) is the only key of
    it that is trusted.
    """

    repository: str = ""
    suite: str = ""
    components: tuple[str, ...] = ()
    key: str = ""
    fingerprint: str = ""
    version: str = ""
    deadline_s: float = 90.0


@dataclass
class Outcome:
    """``changes``: what was (or would be) done, in order. ``diffs``: (path, before, after) of files."""

    changes: list[str] = field(default_factory=list)
    diffs: list[tuple[str, str, str]] = field(default_factory=list)
    version: str | None = None
    repository: str = "keep"
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Before:
    """What was there before anything was done: the package's version, a daemon that ran, with quorum."""

    version: str | None
    running: bool
    quorate: bool


@dataclass(frozen=True)
class Repository:
    """A repository as apt is told about it."""

    url: str
    suite: str
    components: tuple[str, ...]
    key: str
    fingerprint: str

    def sources(self) -> str:
        lines = [
            "# Written by pveguard (role pmxcfs).",
            "Types: deb",
            f"URIs: {self.url}",
            f"Suites: {self.suite}",
        ]
        if not self.suite.endswith("/"):
            lines.append(f"Components: {' '.join(self.components)}")
        return "\n".join([*lines, f"Signed-By: /{KEYRING}"]) + "\n"

    def preferences(self) -> str:
        # A file: repository has no host name; apt then knows its origin as the empty string.
        host = urllib.parse.urlsplit(self.url).hostname or ""
        return (
            "# Written by pveguard (role pmxcfs): whatever Debian has comes from Debian.\n"
            "Package: *\n"
            f'Pin: origin "{host}"\n'
            f"Pin-Priority: {PIN_PRIORITY}\n"
        )


def apply(
    wanted: Wanted,
    check_mode: bool = False,
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    fetch: Callable[[str], bytes] | None = None,
    resolve: Callable[[str], Sequence[str]] | None = None,
) -> Outcome:
    """Bring the package and the daemon to what is wanted; in ``check_mode`` only say what would be done.

    Raises PveguardError before anything is touched when the host cannot run the daemon (host name on
    loopback, files beneath /etc/pve, a key without the wanted fingerprint), and when it does not run at the
    end.
    """
    outcome = Outcome()
    installed = installed_versions(run)
    outcome.version = installed.get(PACKAGE)
    managed = (root / SOURCES).exists()
    unit = _unit(run)
    running = unit.get("ActiveState") == "active" and pve_file.is_mounted(root)
    before = Before(outcome.version, running, running and pve_file.has_quorum(root))
    repository = choose_repository(wanted, outcome.version is not None and not managed, _codename(root))
    outcome.repository = repository.url if repository else "keep"
    if not running:
        refuse_host(root, resolve or cluster_member._resolve)
    if outcome.version is None and repository is None:
        raise PveguardError(
            f"{PACKAGE} is not installed and pmxcfs_repository is 'keep': install it, or set "
            "pmxcfs_repository to "
            "'no-subscription' or to the URL of a repository"
        )
    if repository is not None:
        _repository_files(repository, outcome, check_mode, root, fetch or _fetch)
    _package(wanted, repository, installed, outcome, check_mode, run, root)
    _daemon(wanted, unit, before, outcome, check_mode, run, root, sleep)
    return outcome


def choose_repository(wanted: Wanted, proxmox: bool, codename: str) -> Repository | None:
    """The repository to set up, None to leave all alone. ``proxmox``: the host is a Proxmox VE
    installation."""
    choice = wanted.repository or ("keep" if proxmox else "no-subscription")
    if choice == "keep" or proxmox:
        return None
    suite = wanted.suite or codename
    if not suite:
        raise PveguardError("/etc/os-release has no VERSION_CODENAME: set pmxcfs_repository_suite")
    if choice == "no-subscription":
        fingerprint = wanted.fingerprint or PUBLIC_FINGERPRINTS.get(codename, "")
        if not fingerprint:
            known = ", ".join(sorted(PUBLIC_FINGERPRINTS))
            raise PveguardError(
                f"the fingerprint of Proxmox's key for {codename!r} is not known here (known: {known}): set "
                "pmxcfs_repository_fingerprint"
            )
        key = wanted.key or PUBLIC_KEY.format(codename=codename)
        return Repository(
            PUBLIC_URL, suite, wanted.components or (PUBLIC_COMPONENT,), key, _fingerprint(fingerprint)
        )
    if not re.match(r"(?:https?|file):/", choice):
        raise PveguardError(
            f"pmxcfs_repository is {choice!r}, wanted 'no-subscription', 'keep' or a URL (http:, https:, "
            "file:)"
        )
    if not wanted.key or not wanted.fingerprint:
        raise PveguardError(
            f"pmxcfs_repository {choice} needs pmxcfs_repository_key (path or URL) and "
            "pmxcfs_repository_fingerprint: "
            "packages run as root, so their key must be pinned"
        )
    return Repository(
        choice, suite, wanted.components or ("main",), wanted.key, _fingerprint(wanted.fingerprint)
    )


def refuse_host(root: Path, resolve: Callable[[str], Sequence[str]]) -> None:
    """Raise PveguardError when the daemon could not start here."""
    name = node_name.own()
    addresses = list(resolve(name))
    if not addresses or addresses[0].startswith("127.") or addresses[0] == "::1":
        seen = f"resolves to {addresses[0]}, a loopback address" if addresses else "does not resolve"
        raise PveguardError(
            f"the host name {name} {seen}; {PACKAGE} needs an address that other nodes can reach: write "
            f"'{_own_address() or 'ADDRESS'} {name}' to /etc/hosts (and take {name} off the lines of "
            "127.0.0.1 and 127.0.1.1)"
        )
    mount = root / pve_file.MOUNT.lstrip("/")
    if not pve_file.is_mounted(root) and mount.is_dir():
        beneath = sorted(entry.name for entry in mount.iterdir())
        if beneath:
            raise PveguardError(
                f"/etc/pve is not mounted and not empty ({', '.join(beneath[:5])}), so {PACKAGE} would not "
                "start: move these "
                "files away"
            )


def installed_versions(run: Run = real_run) -> dict[str, str]:
    """Installed versions of the daemon's package and of corosync."""
    try:
        result = run(
            ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n", PACKAGE, "corosync"]
        )
    except CommandMissing as error:
        raise PveguardError("dpkg-query is missing: this is not a Debian system") from error
    rows = (line.split(" ") for line in result.stdout.splitlines() if line.count(" ") == 2)
    return {name: version for name, status, version in rows if status == "installed"}


# --- key
# -----------------------------------------------------------------------------------------------------------


def dearmor(data: bytes) -> bytes:
    """Binary OpenPGP data, whatever armour it came in. Raises PveguardError when it is neither."""
    if not data.lstrip().startswith(b"-----BEGIN PGP"):
        return data
    out = b""
    for block in re.findall(
        rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", data, re.DOTALL
    ):
        # Armour headers end with an empty line; there may be none of them.
        _, _, body = (b"\n" + block.replace(b"\r\n", b"\n")).partition(b"\n\n")
        lines = [line.strip() for line in body.splitlines() if not line.startswith(b"=")]
        try:
            out += base64.b64decode(b"".join(lines), validate=True)
        except ValueError as error:
            raise PveguardError("the key's armour is damaged") from error
    return out


def keys(data: bytes) -> dict[str, bytes]:
    """``{fingerprint: packets}`` of each primary key in binary OpenPGP data, with its user ids, signatures
    and subkeys.

    A v4 fingerprint is SHA-1 over 0x99, the length in two bytes, and the key packet (RFC 4880, 12.2). Raises
    PveguardError for what is not a sequence of packets.
    """
    found: dict[str, bytes] = {}
    current = ""
    position = 0
    while position < len(data):
        start = position
        tag, length, position = _packet_header(data, position)
        body = data[position : position + length]
        if len(body) != length:
            raise PveguardError("the key is cut off")
        position += length
        if tag == 6:
            if not body or body[0] != 4:
                current = ""
                continue
            current = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
            found[current] = b""
        if current:
            found[current] += data[start:position]
    return found


def _packet_header(data: bytes, position: int) -> tuple[int, int, int]:
    """Tag, length of the body, and where it starts."""
    try:
        first = data[position]
        if not first & 0x80:
            raise PveguardError("the key is not OpenPGP data (expected a public key, armoured or binary)")
        if first & 0x40:
            one = data[position + 1]
            if one < 192:
                return first & 0x3F, one, position + 2
            if one < 224:
                return first & 0x3F, ((one - 192) << 8) + data[position + 2] + 192, position + 3
            if one == 255:
                return first & 0x3F, int.from_bytes(data[position + 2 : position + 6], "big"), position + 6
            raise PveguardError("the key has a packet of unknown length")
        size = (1, 2, 4, 0)[first & 3]
        if not size:
            raise PveguardError("the key has a packet of unknown length")
        length = int.from_bytes(data[position + 1 : position + 1 + size], "big")
        return (first >> 2) & 0x0F, length, position + 1 + size
    except IndexError as error:
        raise PveguardError("the key is cut off") from error


def pinned_key(data: bytes, fingerprint: str, source: str) -> bytes:
    """Only the key of that fingerprint, binary. Raises PveguardError that names what the file holds
    instead."""
    found = keys(dearmor(data))
    if fingerprint in found:
        return found[fingerprint]
    shown = ", ".join(found) or "no key"
    raise PveguardError(
        f"{source} holds {shown}, wanted the key with fingerprint {fingerprint}: correct "
        "pmxcfs_repository_key or "
        "pmxcfs_repository_fingerprint"
    )


# --- steps
# ---------------------------------------------------------------------------------------------------------


def _repository_files(
    repository: Repository, outcome: Outcome, check_mode: bool, root: Path, fetch: Callable[[str], bytes]
) -> None:
    keyring = root / KEYRING
    have = read_or_none(keyring)
    if have is None or list(keys(have)) != [repository.fingerprint]:
        outcome.changes.append(f"trust key {repository.fingerprint} for {repository.url} only")
        if not repository.key.startswith(("http://", "https://")):
            data = read_or_none(root / re.sub(r"^file:(//)?", "", repository.key).lstrip("/"))
            if data is None:
                raise PveguardError(f"pmxcfs_repository_key: {repository.key} does not exist on this host")
            key = pinned_key(data, repository.fingerprint, repository.key)
        elif check_mode:
            key = b""  # nothing is fetched only to look
        else:
            key = pinned_key(fetch(repository.key), repository.fingerprint, repository.key)
        if not check_mode:
            keyring.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomic(keyring, key, 0o644)
    for name, text in ((SOURCES, repository.sources()), (PREFERENCES, repository.preferences())):
        before = (read_or_none(root / name) or b"").decode("utf-8", "replace")
        if before == text:
            continue
        outcome.changes.append(f"write /{name}")
        outcome.diffs.append((f"/{name}", before, text))
        if not check_mode:
            (root / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomic(root / name, text.encode(), 0o644)


def _package(
    wanted: Wanted,
    repository: Repository | None,
    installed: dict[str, str],
    outcome: Outcome,
    check_mode: bool,
    run: Run,
    root: Path,
) -> None:
    have = installed.get(PACKAGE)
    if have is not None and (not wanted.version or wanted.version == have):
        return
    if have is not None and repository is None:
        outcome.warnings.append(
            f"{PACKAGE} {have} is installed and pmxcfs_version is {wanted.version}; packages of a Proxmox VE "
            "installation "
            "are left alone"
        )
        return
    target = f"{PACKAGE}={wanted.version}" if wanted.version else PACKAGE
    outcome.changes.append(f"install {target}")
    if check_mode:
        return
    _apt(
        [
            *APT,
            "update",
            "-o",
            f"Dir::Etc::sourcelist=/{SOURCES}",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
            "-o",
            "APT::Get::List-Cleanup=0",
        ],
        run,
    )
    if "corosync" not in installed:
        # By itself first: its example configuration must be out of the way before the daemon's first start.
        _apt([*APT, "install", "--no-install-recommends", "corosync"], run)
    if have is None and cluster_member.move_example_aside(root):
        outcome.changes.append("move Debian's example /etc/corosync/corosync.conf aside")
        run(["systemctl", "stop", "corosync.service"])
    _apt([*APT, "install", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold", target], run)
    outcome.version = installed_versions(run).get(PACKAGE)


def _daemon(
    wanted: Wanted,
    unit: dict[str, str],
    before: Before,
    outcome: Outcome,
    check_mode: bool,
    run: Run,
    root: Path,
    sleep: Callable[[float], None],
) -> None:
    if unit.get("UnitFileState", "") in ("masked", "masked-runtime"):
        raise PveguardError(f"{UNIT} is masked: 'systemctl unmask {UNIT}' if it is to run here")
    running = before.running
    # The scripts of another version stop and start the daemon, or leave it stopped.
    upgraded = running and outcome.version != before.version
    if upgraded:
        unit = _unit(run)
        running = unit.get("ActiveState") == "active"
    fresh = unit.get("LoadState", "not-found") == "not-found"
    enabled = unit.get("UnitFileState") == "enabled"
    if running and enabled and not upgraded:
        return
    if not fresh and not (running and enabled):
        # A package that was just installed is enabled and started by its own scripts: part of that change.
        outcome.changes.append(f"{'enable' if running else 'enable and start'} {UNIT}")
    if check_mode:
        return
    done = run(["systemctl", "enable", "--now", UNIT], timeout=180)
    if not done.ok:
        raise PveguardError(f"{UNIT} does not start: {done.stderr.strip()}\n{_journal(run)}")
    waited = 0.0
    while not _healthy(root) or (upgraded and before.quorate and not pve_file.has_quorum(root)):
        if waited >= wanted.deadline_s:
            when = f"{waited:g} s after the " + (
                f"change of {PACKAGE} from {before.version} to {outcome.version}"
                if upgraded
                else f"start of {UNIT}"
            )
            if _healthy(root):
                raise PveguardError(
                    f"/etc/pve is read-only {when}, and it had quorum before: see 'corosync-quorumtool -s'\n"
                    f"{_journal(run)}"
                )
            raise PveguardError(f"/etc/pve is not mounted {when}\n{_journal(run)}")
        sleep(0.5)
        waited += 0.5


def _healthy(root: Path) -> bool:
    try:
        return pve_file.is_mounted(root) and bool((root / "etc/pve/.version").read_bytes())
    except OSError:
        return False


def _unit(run: Run) -> dict[str, str]:
    return properties(UNIT, ["LoadState", "ActiveState", "UnitFileState"], run)


def _journal(run: Run) -> str:
    try:
        return run(["journalctl", "-u", UNIT, "-n", "10", "--no-pager", "-o", "cat"]).stdout.strip()
    except CommandMissing:
        return ""


def _apt(argv: list[str], run: Run) -> None:
    try:
        done = run(argv, timeout=900, env=APT_ENV)
    except CommandMissing as error:
        raise PveguardError("apt-get is missing: this is not a Debian system") from error
    if not done.ok:
        lines = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if line.startswith(("E:", "W:", "dpkg:"))
        ]
        said = "\n".join(lines[-12:]) or done.stderr.strip()[-800:]
        verb = "update" if "update" in argv else "install " + argv[-1]
        raise PveguardError(f"apt-get {verb} failed: {said}")


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: bytes = answer.read(1024 * 1024)
            return data
    except (urllib.error.URLError, OSError) as error:
        raise PveguardError(
            f"the key {url} cannot be fetched: {error}; put it on the host and set pmxcfs_repository_key to "
            "its path"
        ) from error


def _fingerprint(text: str) -> str:
    plain = re.sub(r"[\s:]", "", text).upper()
    if not re.fullmatch(r"[0-9A-F]{40}", plain):
        raise PveguardError(
            f"pmxcfs_repository_fingerprint is {text!r}, wanted the 40 hexadecimal digits that 'gpg "
            "--show-keys' prints"
        )
    return plain


def _codename(root: Path) -> str:
    text = (read_or_none(root / "etc/os-release") or b"").decode("utf-8", "replace")
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', text, flags=re.MULTILINE)
    return match.group(1) if match else ""


def _own_address() -> str | None:
    """The address this host would reach others from; no packet is sent (192.0.2.1 is for documentation, RFC
    5737)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None
