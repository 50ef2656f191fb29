# SPDX-License-Identifier: Apache-2.0
"""The listeners of the doubles of pveproxy and spiceproxy, asked by a plain client."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from lab.packages.build import HERE
from lab.tests.doubles.harness import SECONDS

PROGRAM = HERE / "pve-manager/root/usr/lib/pve-manager-lab/listener"
Start = Callable[..., int]
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program as a module; its file has no suffix."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PVE_LAB_ROOT", str(tmp_path))
    (tmp_path / "etc/default").mkdir(parents=True)
    spec = spec_from_loader("listener", SourceFileLoader("listener", str(PROGRAM)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("pve-ssl", "pveproxy-ssl"):
        # fmt: off
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                        "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"], check=True, capture_output=True)
        # fmt: on
    return folder


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate(timeout=SECONDS)


def listening(process: subprocess.Popen[str]) -> int:
    """The port, once it listens. Raises AssertionError with what was said instead."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if " listens on " in line:
            assert any("lab double" in each for each in said)
            return int(line.split()[-1])
    raise AssertionError("".join(said))


@pytest.fixture
def start(tmp_path: Path, keys: Path, started: list[subprocess.Popen[str]]) -> Start:
    """Starts it with these defaults; returns the port it listens on."""

    def run(defaults: str | None, name: str = "pveproxy", own: bool = False) -> int:
        for folder in ("etc/default", "etc/pve/local", "run"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for kind in ("pem", "key"):
            for which in ("pve-ssl", "pveproxy-ssl") if own else ("pve-ssl",):
                shutil.copy(keys / f"{which}.{kind}", tmp_path / "etc/pve/local")
        if defaults is not None:
            (tmp_path / "etc/default/pveproxy").write_text(defaults)
        process = subprocess.Popen(
            [PROGRAM, name],
            env={**os.environ, "PVE_LAB_ROOT": str(tmp_path), "PVE_LAB_PROXY_PORT": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return listening(process)

    return run


def ask(port: int, version: ssl.TLSVersion | None = None, ciphers: str = "", host: str = "127.0.0.1") -> tuple[str, str, str]:
    """(TLS version, cipher, first line of the answer)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    with socket.create_connection((host, port), SECONDS) as plain, context.wrap_socket(plain) as secure:
        secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
        cipher = secure.cipher()
        assert cipher is not None
        return secure.version() or "", cipher[0], secure.recv(4096).decode().splitlines()[0]


def refused(port: int) -> bool:
    """Hung up on before a word."""
    try:
        ask(port)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
        return True
    return False


NOBODY_REFUSED = [None, "", "# nothing\n", 'ALLOW_FROM="192.0.2.0/24"\n', "POLICY=allow\nDENY_FROM=192.0.2.1\n"]


@pytest.mark.parametrize("defaults", NOBODY_REFUSED)
def test_lets_in_whom_no_list_names(start: Start, defaults: str | None) -> None:
    """ALLOW_FROM alone protects nothing."""
    assert ask(start(defaults))[2] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "defaults",
    ['DENY_FROM="all"\n', 'ALLOW_FROM="192.0.2.0/24"\nDENY_FROM="all"\n', 'ALLOW_FROM="192.0.2.1"\nPOLICY="deny"\n'],
)
def test_hangs_up_on_others(start: Start, defaults: str) -> None:
    assert refused(start(defaults))


@pytest.mark.parametrize("listed", ["127.0.0.1", "127.0.0.0/8", "192.0.2.1, 127.0.0.1-127.0.0.9", "nonsense,127.0.0.1"])
def test_lets_in_whom_a_list_names(start: Start, listed: str) -> None:
    assert ask(start(f'ALLOW_FROM="{listed}"\nDENY_FROM="all"\n'))[2] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("allow", "deny", "policy", "expected"),
    [
        ("10.0.0.1", "", "deny", True),
        ("", "10.0.0.1", "allow", False),
        ("10.0.0.1", "10.0.0.1", "allow", True),
        ("10.0.0.1", "10.0.0.1", "deny", False),
        ("", "", "deny", False),
        ("", "", "", True),
        ("2001:db8::/32", "all", "", False),
    ],
)
def test_the_documented_table(program: ModuleType, allow: str, deny: str, policy: str, expected: bool) -> None:
    values = {"ALLOW_FROM": allow, "DENY_FROM": deny, **({"POLICY": policy} if policy else {})}
    assert program.allowed("10.0.0.1", values) is expected
    assert program.allowed("::ffff:10.0.0.1", values) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=all; DENY_FROM=$A", "all"),
        ("DENY_FROM=$(echo all)", "all"),
        ("if true; then DENY_FROM=all; fi", "all"),
        ("echo noise\nDENY_FROM=all", "all"),
        ("DENY_FROM=all\nexit 3\nDENY_FROM=none", "all"),
        ("DENY_FROM=one\nDENY_FROM=all", "all"),
        ("#DENY_FROM=all", None),
        ("DENY_FROM=all\nif", "all"),
        ("DENY_FROM = all", None),
    ],
)
def test_the_file_is_what_bash_makes_of_it(program: ModuleType, tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "etc/default/pveproxy").write_text(f"{text}\n")
    assert program.settings().get("DENY_FROM") == expected


def test_versions_of_tls(start: Start) -> None:
    both = start(None)
    assert ask(both, ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2" and ask(both, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"
    new = start("DISABLE_TLS_1_2=1\n")
    assert ask(new)[0] == "TLSv1.3"
    with pytest.raises(ssl.SSLError):
        ask(new, ssl.TLSVersion.TLSv1_2)
    old = start("DISABLE_TLS_1_3=1\n")
    assert ask(old)[0] == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        ask(old, ssl.TLSVersion.TLSv1_3)


def test_ciphers_and_suites(start: Start) -> None:
    port = start('CIPHERS="ECDHE-RSA-AES256-GCM-SHA384"\nCIPHERSUITES="TLS_CHACHA20_POLY1305_SHA256"\n')
    assert ask(port, ssl.TLSVersion.TLSv1_2)[1] == "ECDHE-RSA-AES256-GCM-SHA384"
    assert ask(port, ssl.TLSVersion.TLSv1_3)[1] == "TLS_CHACHA20_POLY1305_SHA256"
    with pytest.raises(ssl.SSLError):
        ask(port, ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES128-GCM-SHA256")


def test_it_does_not_start_with_ciphers_that_do_not_exist(start: Start) -> None:
    with pytest.raises(AssertionError, match="CIPHERS='NONE-OF-THEM'"):
        start("CIPHERS=NONE-OF-THEM\n")


def test_listens_where_it_is_told_to(start: Start) -> None:
    port = start("LISTEN_IP=127.0.0.2\n")
    assert ask(port, host="127.0.0.2")[2] == "HTTP/1.1 200 OK"
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    with pytest.raises(AssertionError, match="LISTEN_IP='192.0.2.1'"):
        start("LISTEN_IP=192.0.2.1\n")


def test_an_own_certificate_comes_first(start: Start, keys: Path) -> None:
    for own, name in ((False, "pve-ssl"), (True, "pveproxy-ssl")):
        seen = ssl.get_server_certificate(("127.0.0.1", start(None, own=own)))
        assert seen.split() == (keys / f"{name}.pem").read_text().split()


def test_a_hangup_signal_reads_the_file_again(start: Start, tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    assert ask(start(None))[2] == "HTTP/1.1 200 OK"
    (tmp_path / "etc/default/pveproxy").write_text("DENY_FROM=all\n")
    started[0].send_signal(signal.SIGHUP)
    assert refused(listening(started[0]))


def test_spiceproxy_has_the_same_lists(start: Start) -> None:
    for defaults, expected in (("", b"HTTP/1.1 200 OK"), ("DENY_FROM=all\n", b"")):
        with socket.create_connection(("127.0.0.1", start(defaults, "spiceproxy")), SECONDS) as client:
            try:
                client.sendall(b"CONNECT x HTTP/1.0\r\n\r\n")
                got = client.recv(4096)
            except ConnectionError:
                got = b""
            assert got.startswith(expected) and bool(got) is bool(expected)


def test_listens_only_where_the_lab_asked_for_it() -> None:
    assert "if [ -e /etc/pveproxy-lab.conf ]" in (HERE / "pve-manager/root/usr/bin/pveproxy").read_text()
    unit = (HERE / "pve-manager/root/usr/lib/systemd/system/spiceproxy.service").read_text()
    assert "ConditionPathExists=/etc/pveproxy-lab.conf" in unit and "lab double" in unit
