# SPDX-License-Identifier: Apache-2.0
"""The repository, the package and the daemon, with every command faked."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.cluster import pmxcfs_package
from ansible.module_utils.pveguard.cluster.pmxcfs_package import Outcome, Wanted
from ansible.module_utils.pveguard.pmxcfs import pve_file

from .fakes import FakeRun, ok, snapshot


def key_packet(seed: bytes) -> bytes:
    body = (
        b"\x04"
        + (0).to_bytes(4, "big")
        + b"\x01"
        + (1024).to_bytes(2, "big")
        + hashlib.sha512(seed).digest() * 2
    )
    return b"\x99" + len(body).to_bytes(2, "big") + body + b"\xcd\x05hello"


def fingerprint(packet: bytes) -> str:
    body = packet[3:-7]
    return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()


KEY, OTHER = key_packet(b"a"), key_packet(b"b")
FINGERPRINT = fingerprint(KEY)
URL = Wanted(
    repository="http://mirror.example/pve",
    components=("pve-no-subscription",),
    key="/srv/key.asc",
    fingerprint=FINGERPRINT,
)


def armour(data: bytes, header: str = "") -> bytes:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n{header}\n{text}=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n".encode()


class Host:
    """A host whose apt installs and whose systemd mounts."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.versions: dict[str, str] = {}
        self.unit = {"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}
        self.mounted = False
        self.quorate: Callable[[], bool] = lambda: True
        self.addresses = ["10.77.0.1"]
        self.examples = True
        for directory in ("etc", "srv", "etc/corosync"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        (root / "etc/os-release").write_text('NAME="Debian"\nVERSION_CODENAME=trixie\n')
        (root / "srv/key.asc").write_bytes(armour(KEY))
        monkeypatch.setattr(pve_file, "is_mounted", lambda _root: self.mounted)
        monkeypatch.setattr(pve_file, "has_quorum", lambda _root: self.quorate())
        self.run = FakeRun(
            {
                "dpkg-query": self._query,
                "systemctl show": lambda argv: ok("\n".join(f"{k}={v}" for k, v in self.unit.items()) + "\n"),
                "systemctl enable --now pve-cluster.service": self._start,
                "systemctl stop corosync.service": ok(),
                "apt-get": self._apt,
                "journalctl": ok("pmxcfs: no\n"),
            }
        )

    def _query(self, argv: list[str]) -> Result:
        return Result(0, "".join(f"{n} installed {v}\n" for n, v in self.versions.items()), "")

    def _start(self, argv: list[str]) -> Result:
        self.unit.update(ActiveState="active", UnitFileState="enabled", LoadState="loaded")
        self.mounted = True
        (self.root / "etc/pve").mkdir(exist_ok=True)
        (self.root / "etc/pve/.version").write_text("{}")
        return ok()

    def _apt(self, argv: list[str]) -> Result:
        if "install" in argv:
            name, _, version = argv[-1].partition("=")
            self.versions[name] = version or "9.1.6"
            if name == "corosync":
                (self.root / "etc/corosync/corosync.conf").write_text("totem {\n\tcluster_name: debian\n}\n")
            else:
                assert not (self.root / "etc/corosync/corosync.conf").exists(), "the example is still there"
        return ok()

    def apply(self, wanted: Wanted, **more: Any) -> Outcome:
        return pmxcfs_package.apply(
            wanted,
            run=self.run,
            root=self.root,
            sleep=more.pop("sleep", lambda _s: None),
            resolve=lambda _n: self.addresses,
            **more,
        )

    def apt(self) -> list[list[str]]:
        return [argv for argv in self.run.calls if argv[0] == "apt-get"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_plain_debian_from_nothing_to_a_mounted_daemon(host: Host) -> None:
    check = host.apply(URL, check_mode=True)
    assert host.apt() == []
    assert check.changes == [
        f"trust key {FINGERPRINT} for http://mirror.example/pve only",
        "write /etc/apt/sources.list.d/pveguard-pmxcfs.sources",
        "write /etc/apt/preferences.d/pveguard-pmxcfs",
        "install pve-cluster",
    ]
    done = host.apply(URL)
    assert done.changes[:4] == check.changes
    assert (done.version, host.mounted) == ("9.1.6", True)
    sources = "-o Dir::Etc::sourcelist=/etc/apt/sources.list.d/pveguard-pmxcfs.sources -o Dir::Etc::sourceparts=/dev/null"
    head = "apt-get -q -y -o DPkg::Lock::Timeout=120"
    assert [" ".join(argv) for argv in host.apt()] == [
        f"{head} update {sources} -o APT::Get::List-Cleanup=0",
        f"{head} install --no-install-recommends corosync",
        f"{head} install --no-install-recommends -o Dpkg::Options::=--force-confold pve-cluster",
    ]
    assert (host.root / "etc/apt/sources.list.d/pveguard-pmxcfs.sources").read_text() == (
        "# Written by pveguard (role pmxcfs).\nTypes: deb\nURIs: http://mirror.example/pve\nSuites: trixie\n"
        "Components: pve-no-subscription\nSigned-By: /etc/apt/keyrings/pveguard-pmxcfs.gpg\n"
    )
    preferences = (host.root / "etc/apt/preferences.d/pveguard-pmxcfs").read_text()
    assert 'Package: *\nPin: origin "mirror.example"\nPin-Priority: 100\n' in preferences
    assert (host.root / "etc/apt/keyrings/pveguard-pmxcfs.gpg").read_bytes() == KEY
    assert (host.root / "etc/corosync/corosync.conf.debian-example").exists()
    host.run.calls.clear()
    again = host.apply(URL)
    assert (again.changes, again.diffs) == ([], [])
    assert [argv[0] for argv in host.run.calls] == ["dpkg-query", "systemctl"]


def test_check_mode_writes_nothing_on_a_fresh_host(host: Host) -> None:
    before = snapshot(host.root)
    outcome = host.apply(Wanted(), check_mode=True)
    assert snapshot(host.root) == before
    assert outcome.repository == "http://download.proxmox.com/debian/pve"
    assert outcome.changes[0].startswith("trust key 24B30F06ECC1836A4E5EFECBA7BCD1420BFE778E")
    assert "install pve-cluster" in outcome.changes


def test_a_proxmox_installation_is_left_alone(host: Host) -> None:
    host.versions = {"pve-cluster": "9.1.6", "corosync": "3.1.9-pve2"}
    host._start([])
    before = snapshot(host.root)
    for wanted in (Wanted(), URL, Wanted(repository="keep")):
        outcome = host.apply(wanted)
        assert (outcome.changes, outcome.repository) == ([], "keep")
    assert snapshot(host.root) == before
    outcome = host.apply(Wanted(version="9.0.0"))
    assert outcome.changes == [] and "left alone" in outcome.warnings[0]
    assert host.apt() == []


def test_a_stopped_daemon_of_a_proxmox_installation_is_started(host: Host) -> None:
    host.versions = {"pve-cluster": "9.1.6"}
    host.unit.update(LoadState="loaded", UnitFileState="enabled")
    assert host.apply(Wanted(), check_mode=True).changes == ["enable and start pve-cluster.service"]
    assert not host.mounted
    assert host.apply(Wanted()).changes == ["enable and start pve-cluster.service"]
    assert host.mounted


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda host: host.addresses.clear(), "does not resolve"),
        (
            lambda host: host.addresses.__setitem__(0, "127.0.1.1"),
            "resolves to 127.0.1.1, a loopback address",
        ),
        (lambda host: (host.root / "etc/pve/x").mkdir(parents=True), "not mounted and not empty (x)"),
        (lambda host: (host.root / "srv/key.asc").write_bytes(armour(OTHER)), fingerprint(OTHER)),
        (lambda host: (host.root / "srv/key.asc").write_bytes(KEY[:40]), "the key is cut off"),
        (lambda host: (host.root / "srv/key.asc").write_text("<html>404</html>"), "not OpenPGP data"),
        (lambda host: (host.root / "srv/key.asc").unlink(), "/srv/key.asc does not exist"),
        (lambda host: host.unit.update(UnitFileState="masked", LoadState="masked"), "systemctl unmask"),
    ],
)
def test_refusals_change_nothing(host: Host, spoil: Callable[[Host], Any], message: str) -> None:
    spoil(host)
    if host.unit["UnitFileState"] == "masked":
        host.versions = {"pve-cluster": "9.1.6"}
    before = snapshot(host.root)
    for check_mode in (True, False):
        with pytest.raises(PveguardError) as caught:
            host.apply(Wanted() if host.versions else URL, check_mode=check_mode)
        assert message in str(caught.value)
    assert snapshot(host.root) == before
    assert host.apt() == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(repository="keep"), "pmxcfs_repository is 'keep'"),
        (Wanted(repository="enterprise"), "wanted 'no-subscription', 'keep' or a URL"),
        (Wanted(repository="https://x/"), "needs pmxcfs_repository_key"),
        (Wanted(repository="https://x/", key="/k", fingerprint="1234"), "wanted the 40 hexadecimal digits"),
    ],
)
def test_wishes_that_cannot_be_met(host: Host, wanted: Wanted, message: str) -> None:
    with pytest.raises(PveguardError) as caught:
        host.apply(wanted, check_mode=True)
    assert message in str(caught.value)


def test_an_unknown_release_needs_a_fingerprint(host: Host) -> None:
    (host.root / "etc/os-release").write_text("VERSION_CODENAME=forky\n")
    with pytest.raises(PveguardError, match="set pmxcfs_repository_fingerprint"):
        host.apply(Wanted(), check_mode=True)


def test_a_key_from_a_url_must_be_the_pinned_one(host: Host) -> None:
    wanted = Wanted(repository="file:/srv/repo", key="https://example/key.gpg", fingerprint=FINGERPRINT)
    with pytest.raises(PveguardError, match=FINGERPRINT):
        host.apply(wanted, fetch=lambda _url: OTHER)
    assert not (host.root / "etc/apt").exists()
    # Of a file with more keys only the pinned one is trusted.
    host.apply(wanted, fetch=lambda _url: OTHER + KEY)
    assert (host.root / "etc/apt/keyrings/pveguard-pmxcfs.gpg").read_bytes() == KEY
    assert 'Pin: origin ""' in (host.root / "etc/apt/preferences.d/pveguard-pmxcfs").read_text()


def test_a_failed_installation_says_what_apt_said(host: Host) -> None:
    host.run.answers["apt-get"] = lambda argv: Result(
        100 if "install" in argv else 0, "Reading...\n", "E: Unable to locate package pve-cluster\n"
    )
    with pytest.raises(PveguardError, match="E: Unable to locate package pve-cluster"):
        host.apply(URL)


def test_a_daemon_that_does_not_mount(host: Host) -> None:
    host.run.answers["systemctl enable --now pve-cluster.service"] = ok()
    with pytest.raises(PveguardError, match="not mounted 90 s after the start"):
        host.apply(URL)


def test_a_pinned_version(host: Host) -> None:
    wanted = Wanted(**{**URL.__dict__, "version": "9.1.5"})
    host.apply(wanted)
    assert host.apt()[-1][-1] == "pve-cluster=9.1.5"
    assert host.apply(wanted).changes == []


def upgrade(host: Host, during: Callable[[], object], **more: Any) -> Outcome:
    """From 9.1.5 to 9.1.6; ``during`` is what the package's scripts do to the daemon."""
    host.apply(Wanted(**{**URL.__dict__, "version": "9.1.5"}))
    host.run.calls.clear()

    def apt(argv: list[str]) -> Result:
        if "install" in argv:
            during()
        return host._apt(argv)

    host.run.answers["apt-get"] = apt
    return host.apply(Wanted(**{**URL.__dict__, "version": "9.1.6"}), **more)


def test_an_upgrade_is_awaited(host: Host) -> None:
    waits: list[float] = []

    def restart() -> None:
        # Mounted again after a second, quorate after two.
        host.mounted, host.quorate = False, lambda: len(waits) >= 4
        host.run.answers["systemctl enable --now pve-cluster.service"] = ok()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        host.mounted = len(waits) >= 2

    done = upgrade(host, restart, sleep=sleep)
    assert (done.changes, done.version) == (["install pve-cluster=9.1.6"], "9.1.6")
    assert len(waits) == 4 and host.mounted


def test_an_upgrade_that_leaves_the_daemon_stopped(host: Host) -> None:
    def stop() -> None:
        host.mounted = False
        host.unit["ActiveState"] = "failed"

    done = upgrade(host, stop)
    assert done.changes == ["install pve-cluster=9.1.6", "enable and start pve-cluster.service"]
    assert host.mounted and host.unit["ActiveState"] == "active"


def test_an_upgrade_after_which_the_file_system_does_not_come_back(host: Host) -> None:
    def lose() -> None:
        host.mounted = False
        host.run.answers["systemctl enable --now pve-cluster.service"] = ok()

    with pytest.raises(
        PveguardError, match="not mounted 90 s after the change of pve-cluster from 9.1.5 to 9.1.6"
    ):
        upgrade(host, lose)


def test_an_upgrade_after_which_the_quorum_does_not_come_back(host: Host) -> None:
    def lose() -> None:
        host.quorate = lambda: False

    with pytest.raises(PveguardError, match="read-only 90 s after the change.*it had quorum before"):
        upgrade(host, lose)


def test_an_upgrade_without_quorum_before_does_not_wait_for_it(host: Host) -> None:
    host.quorate = lambda: False
    assert upgrade(host, lambda: None).version == "9.1.6"


@pytest.mark.parametrize("header", ["", "Comment: made by hand\n"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_armour(header: str, newline: bytes) -> None:
    text = armour(KEY + OTHER, header).replace(b"\n", newline)
    found = pmxcfs_package.keys(pmxcfs_package.dearmor(text))
    assert list(found) == [FINGERPRINT, fingerprint(OTHER)]
    assert found[FINGERPRINT] == KEY


@pytest.mark.skipif(shutil.which("gpg") is None, reason="needs gpg")
@pytest.mark.parametrize("kind", ["rsa2048", "ed25519"])
def test_fingerprints_are_those_of_gpg(kind: str) -> None:
    # gpg's agent needs a short path for its socket.
    home = Path(tempfile.mkdtemp(prefix="pveguard-gpg-", dir="/tmp"))
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    try:
        passphrase = ["--pinentry-mode", "loopback", "--passphrase", ""]
        subprocess.run([*gpg, *passphrase, "--quick-gen-key", "a@example", kind, "sign", "never"], check=True)
        listing = subprocess.run(
            [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
        )
        wanted = next(line.split(":")[9] for line in listing.stdout.splitlines() if line.startswith("fpr:"))
        for option in ([], ["--armor"]):
            data = subprocess.run([*gpg, *option, "--export"], check=True, capture_output=True).stdout
            assert list(pmxcfs_package.keys(pmxcfs_package.dearmor(data))) == [wanted]
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
        shutil.rmtree(home, ignore_errors=True)
