"""The parts of the lab that need no virtual machine."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lab import (
    accel,
    bringup,
    cli,
    cluster,
    disks,
    guests,
    guestssh,
    identity,
    image,
    image_root,
    initrd,
    layout,
    machine,
    net,
    services,
    snapshots,
    statistics,
    system,
)
from lab.console import Console
from lab.errors import LabError
from lab.labs import Lab
from lab.qmp import Qmp, connect_unix
from lab.store import used_images
from tests.loading import load_file

ROOT = Path(__file__).resolve().parents[2]
LONG = "x" * 60


@pytest.fixture(autouse=True)
def lab_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own whose paths are too long for a socket address."""
    root = tmp_path / LONG / LONG
    root.mkdir(parents=True)
    monkeypatch.setenv("PVEGUARD_LAB_ROOT", str(root))
    monkeypatch.delenv("PVEGUARD_LAB", raising=False)
    monkeypatch.delenv("PVE_PACKAGES", raising=False)
    return root


def make_lab(name: str = "default", nodes: int = 3, **fields: Any) -> Lab:
    """A lab as it stands on disk, with this very process in the role of its first QEMU."""
    lab = Lab(name)
    lab.state.profile, lab.state.release, lab.state.accel = "pve", "trixie", "tcg"
    lab.state.disks, lab.state.image_key, lab.state.repository_key = "pve-trixie-0", "pve-trixie-1", "repo-2"
    lab.state.up = True
    for number in range(1, nodes + 1):
        lab.state.nodes[f"pve{number}"] = {"port": 22100 + number, "nvme": False}
    lab.state.nodes["pve1"].update(pid=os.getpid(), start=machine.process_start(os.getpid()))
    for key, value in fields.items():
        setattr(lab.state, key, value)
    lab.save()
    lab.set_dir.mkdir(exist_ok=True)
    lab.write_manifest({"snapshots": {}, "built": list(lab.state.nodes)})
    repository = layout.images_dir() / "repo-2.json"
    repository.parent.mkdir(exist_ok=True)
    repository.write_text(json.dumps({
        "url": None, "suites": ["trixie"], "components": ["pve-no-subscription"], "fingerprint": "F" * 40, "packages": {},
    }))  # fmt: skip
    return lab


# --- sockets ------------------------------------------------------------------------------------------------


class Server:
    """A unix socket at a long path whose one client is served by ``talk`` in a thread."""

    def __init__(self, path: Path, talk: Callable[[socket.socket], None]) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        directory = os.open(path.parent, os.O_PATH)
        self.socket.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        self.socket.listen(1)
        self.thread = threading.Thread(target=self._serve, args=(talk,), daemon=True)
        self.thread.start()

    def _serve(self, talk: Callable[[socket.socket], None]) -> None:
        connection, _ = self.socket.accept()
        with connection:
            talk(connection)


@pytest.fixture
def serve(lab_root: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Path]]:
    servers: list[Server] = []

    def start(talk: Callable[[socket.socket], None]) -> Path:
        path = lab_root / "socket"
        servers.append(Server(path, talk))
        return path

    yield start
    for server in servers:
        server.thread.join(10)
        server.socket.close()


def qmp_answers(*answers: str, seen: list[dict[str, Any]] | None = None) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        connection.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        reader.readline()
        connection.sendall(b'{"return": {}}\n')
        for answer in answers:
            line = reader.readline()
            if seen is not None and line:
                seen.append(json.loads(line))
            connection.sendall(answer.encode())

    return talk


def test_a_socket_at_a_path_that_is_too_long_for_an_address(serve: Any) -> None:
    path = serve(lambda connection: connection.sendall(b"hello"))
    assert len(str(path)) > 107
    with connect_unix(path, 5) as sock:
        assert sock.recv(5) == b"hello"


def test_qmp_skips_events_and_returns_the_value(serve: Any) -> None:
    seen: list[dict[str, Any]] = []
    path = serve(qmp_answers('{"event": "STOP"}\n{"return": {"running": true}}\n', seen=seen))
    with Qmp(path, "pve1", 5) as qmp:
        assert qmp.execute("query-status") == {"running": True}
    assert seen == [{"execute": "query-status"}]


def test_qmp_error_names_node_and_command(serve: Any) -> None:
    path = serve(qmp_answers('{"error": {"class": "GenericError", "desc": "Device not found"}}\n'))
    with Qmp(path, "pve1", 5) as qmp, pytest.raises(LabError, match="pve1: set_link: Device not found"):
        qmp.execute("set_link", name="ring", up=False)


def test_an_error_of_the_human_monitor_is_an_error(serve: Any) -> None:
    path = serve(qmp_answers('{"return": "Error: State blocked by device nvme\\r\\n"}\n'))
    with Qmp(path, "pve1", 5) as qmp, pytest.raises(LabError, match="savevm x: Error: State blocked"):
        qmp.human("savevm x")


def test_qmp_that_closes_is_an_error(serve: Any) -> None:
    path = serve(qmp_answers())
    with pytest.raises(LabError, match=r"pve1: (QEMU closed its monitor|QEMU's monitor)"):
        with Qmp(path, "pve1", 5) as qmp:
            qmp.execute("stop")


def test_no_monitor_is_one_line() -> None:
    with pytest.raises(LabError, match="pve1: no answer from QEMU's monitor"):
        Qmp(layout.lab_root() / "none", "pve1", 1)


def agent(answer: str, stale: str = "") -> Callable[[socket.socket], None]:
    """The guest's side of the console; ``answer`` with {ident} and {command}."""

    def talk(connection: socket.socket) -> None:
        request = ""
        connection.sendall(stale.encode())
        for raw in connection.makefile("rb"):
            line = raw.decode().strip()
            if line.startswith("-"):
                connection.sendall(f"{line}\n".encode())
            elif line.startswith("+"):
                assert len(line) <= 1025, "a serial line has no flow control"
                request += line[1:]
                connection.sendall(b"+\n")
            elif line.startswith("!"):
                ident = line[1:].split()[0]
                command = base64.b64decode(request).decode()
                output = base64.b64encode(command.encode()).decode()
                connection.sendall(answer.format(ident=ident, output=output).encode())
                return

    return talk


def test_console_sends_a_long_command_in_pieces(serve: Any) -> None:
    command = "echo " + "äb" * 700
    path = serve(agent("{ident} 3 {output}\n"))
    assert Console(path, "pve1").run(command, 5) == (3, command)


def test_console_drops_the_answer_to_somebody_else(serve: Any) -> None:
    path = serve(agent("0badcafe 0 eA==\n{ident} 0 \n", stale="deadbeef 1 eA==\n"))
    assert Console(path, "pve1").run("true", 5) == (0, "")


def test_console_that_does_not_answer_is_one_line(serve: Any) -> None:
    path = serve(lambda connection: None)
    with pytest.raises(LabError, match="pve1: no answer on the serial console"):
        Console(path, "pve1").run("true", 1)


# --- ports --------------------------------------------------------------------------------------------------


def test_a_wanted_port_that_is_taken_is_replaced() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        taken = sock.getsockname()[1]
        assert not net.port_is_free(taken)
        chosen = net.choose_ssh_port([], taken)
        assert chosen != taken
        assert net.choose_ssh_port([chosen]) != chosen


def test_the_ring_port_is_nobody_elses() -> None:
    table = "\n".join((
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        "  12: 0100007F:1E5B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0",
        "  13: 00000000:1E5C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0",
    ))  # fmt: skip
    assert net.udp_ports_in_use(table) == {7771, 7772}
    assert net.choose_ring_port([7773], table) == 7774


def test_the_ports_lock_excludes_and_leaves_nothing() -> None:
    with net.ports_lock():
        with pytest.raises(LabError, match="another lab has been starting"):
            with net.ports_lock(timeout=0.2):
                pass
    with net.ports_lock():  # at once, unless a lab of this machine is being started
        pass


# --- identity -----------------------------------------------------------------------------------------------


def test_the_identity_is_a_tar_the_guest_can_unpack() -> None:
    files = identity.files(2, "ssh-ed25519 AAAA client\n", "PRIVATE\n", "ssh-ed25519 BBBB pve2\n")
    data = identity.encode_files(files)
    assert data == identity.encode_files(files)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.extractfile("etc/hostname").read() == b"pve2\n"  # type: ignore[union-attr]
        assert tar.getmember("etc/ssh/ssh_host_ed25519_key").mode == 0o600
        hosts = tar.extractfile("etc/hosts").read().decode()  # type: ignore[union-attr]
        network = tar.extractfile("etc/lab-network").read().decode()  # type: ignore[union-attr]
    assert "10.77.0.2 pve2\n" in hosts
    assert "10.77.0.9 pve9\n" in hosts
    assert "127.0.1.1" not in hosts
    assert "10.77.0.2/24 dev eth1" in network


def test_the_smbios_argument_survives_qemus_option_parser() -> None:
    argument = identity.smbios_argument("lab.identity", bytes(range(256)))
    kind, value = argument.split(",")
    name, data = value.removeprefix("value=").split("=", 1)
    assert (kind, name) == ("type=11", "io.systemd.credential.binary:lab.identity")
    assert base64.b64decode(data) == bytes(range(256))


def test_machine_ids_and_addresses_differ() -> None:
    assert len({identity.machine_id(n) for n in (1, 2, 3)}) == 3
    assert len({identity.mac(n, network) for n in (1, 2, 3) for network in (0, 1)}) == 6


def test_known_hosts_and_ssh_trust_only_the_labs_keys(tmp_path: Path) -> None:
    text = guestssh.known_hosts({"pve1": (22101, "ssh-ed25519 AAAA comment")})
    assert text == "[127.0.0.1]:22101,pve1 ssh-ed25519 AAAA\n"
    argv = guestssh.argv(tmp_path, 22101, ["true"])
    assert "StrictHostKeyChecking=yes" in argv
    assert f'UserKnownHostsFile="{tmp_path}/known_hosts"' in argv
    assert argv[-2:] == ["root@127.0.0.1", "true"]


# --- image --------------------------------------------------------------------------------------------------


def test_keys_follow_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = image.tree_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert image.tree_digest(tmp_path) == first
    (tmp_path / "a").chmod(0o755)
    assert image.tree_digest(tmp_path) != first
    assert image.digest("ab", "c") != image.digest("a", "bc")


def test_only_the_pve_image_depends_on_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {}
    for name in ("repo-1", "repo-2"):
        monkeypatch.setattr(image, "repository_key", lambda source, name=name: name)
        keys[name] = {kind: image.image_key(kind, "trixie", None) for kind in ("pve", "debian")}
    assert keys["repo-1"]["debian"] == keys["repo-2"]["debian"]
    assert keys["repo-1"]["pve"] != keys["repo-2"]["pve"]
    assert image.base_key("trixie") != image.base_key("bookworm")


def test_a_source_that_is_not_there_is_one_line() -> None:
    with pytest.raises(LabError, match="PVE_PACKAGES"):
        image.repository_key("/does/not/exist")


def test_a_failure_of_mmdebstrap_is_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.images_dir().mkdir(parents=True)
    program = tmp_path / "bin/mmdebstrap"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\nfor line in 'I: going' 'E: Unable to locate package x' 'I: one' 'I: two' 'I: three' 'I: four'; do\n"
        '    echo "$line" >&2\ndone\nexit 25\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(LabError) as error:
        image._base("trixie")
    assert str(error.value).startswith("mmdebstrap trixie failed with status 25: E: Unable to locate package x (log: ")
    assert not list(layout.images_dir().glob("*.tar"))


def test_prune_keeps_what_is_used_or_new(monkeypatch: pytest.MonkeyPatch) -> None:
    images = layout.images_dir()
    images.mkdir()
    for name in ("base-trixie-1.tar", "repo-1.img", "repo-2.img", "debian-trixie-1", "debian-trixie-2"):
        (images / name).mkdir() if name.startswith("debian") else (images / name).touch()
        os.utime(images / name, (1, 1))
    (images / "repo-3.img").touch()
    image.prune({"repo-1", "debian-trixie-1"})
    left = {path.name for path in images.iterdir()} - {"lock"}
    assert left == {"base-trixie-1.tar", "repo-1.img", "debian-trixie-1", "repo-3.img"}


def test_the_initrd_loads_modules_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/b.ko.xz: kernel/c.ko.xz kernel/d.ko.xz\nkernel/c.ko.xz: kernel/d.ko.xz\nkernel/d.ko.xz:\n"
        "kernel/virtio_blk.ko.xz:\n"
    )
    names = [path.name for path in initrd.module_files(tmp_path, ("virtio_blk", "missing", "b"))]
    assert names == ["virtio_blk.ko.xz", "d.ko.xz", "c.ko.xz", "b.ko.xz"]


def test_the_cpio_archive_is_read_by_others(tmp_path: Path) -> None:
    data = initrd.cpio(
        [("dir", 0o040755, b""), ("dir/file", 0o100644, b"hello"), ("link", 0o120777, b"dir/file")]
    )
    assert len(data) % 4 == 0
    try:
        system.run(["cpio", "--version"], what="cpio")
    except LabError:
        pytest.skip("cpio is not installed")
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    listing = system.run(["sh", "-c", f"cpio -itv --quiet < {archive}"], what="cpio")
    assert [line.split(maxsplit=8)[-1] for line in listing.splitlines()] == [
        "dir",
        "dir/file",
        "link -> dir/file",
    ]


# --- accelerator --------------------------------------------------------------------------------------------


def test_kvm_is_not_believed_without_a_device(tmp_path: Path) -> None:
    picture = image.Image("k", tmp_path, tmp_path / "repo.img")
    good, why = accel.probe_kvm(picture, device=tmp_path / "kvm")
    assert not good
    assert "missing" in why


def test_the_verdict_is_cached_until_the_next_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PVEGUARD_LAB_ACCEL", raising=False)
    calls: list[int] = []

    def probe(_: image.Image) -> tuple[bool, str]:
        calls.append(1)
        return False, "the probe guest failed"

    monkeypatch.setattr(accel, "probe_kvm", probe)
    monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 7")
    picture = image.Image("k", tmp_path, tmp_path / "repo.img")
    assert [accel.choose(picture), accel.choose(picture)] == ["tcg", "tcg"]
    monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 8")
    accel.choose(picture)
    assert len(calls) == 2
    monkeypatch.setenv("PVEGUARD_LAB_ACCEL", "kvm")
    assert accel.choose(picture) == "kvm"


def test_who_reads_meanwhile_sees_the_old_text_or_the_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    target, seen = folder / "known_hosts", list[str]()
    target.write_text("old")
    write_text, rename = Path.write_text, Path.rename

    def written(path: Path, text: str) -> int:
        done = write_text(path, text)
        seen.append(target.read_text())
        return done

    def renamed(path: Path, to: Path) -> Path:
        seen.append(target.read_text())
        return rename(path, to)

    monkeypatch.setattr(Path, "write_text", written)
    monkeypatch.setattr(Path, "rename", renamed)
    system.write_whole(target, "new")
    assert seen == ["old", "old"] and target.read_text() == "new"
    assert [path.name for path in folder.iterdir()] == ["known_hosts"]


# --- command line -------------------------------------------------------------------------------------------


def lab_cli(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = cli.main(argv)
    except SystemExit as error:
        status = int(error.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--name", "../x", "status"], "lab name '../x'"),
        (["up", "--nodes", "0"], "--nodes 0: 1 to 9"),
        (["up", "--nodes", "many"], "invalid int value: 'many'"),
        (["up", "--guests", "many"], "'many' is neither a whole number nor 'off'"),
        (["up", "--guests", "5000"], "--guests 5000: 0 to 1000 are possible, or 'off'"),
        (["up", "--profile", "ceph"], "invalid choice: 'ceph'"),
        (["up", "--nvme", "pve9"], "--nvme pve9: the nodes are pve1, pve2, pve3"),
        (["up", "--plain", "pve9"], "--plain pve9: the nodes are pve1, pve2, pve3"),
        (["throttle", "pve1", "slow"], "'slow' is neither a whole number nor 'off'"),
        (["power-cut", "pve1"], "lab default does not exist"),
        (["power-off", "pve1"], "lab default does not exist"),
        (["ssh", "pve1"], "lab default does not exist"),
        (["restore", "x"], "no snapshot 'x'; it has: none"),
        (["snapshot", "A b"], "snapshot 'A b': use 1 to 31"),
        (["snapshot", "base"], "the name is the lab's own"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    status, _, err = lab_cli(capsys, *argv)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["power-cut", "pve7"], "unknown node pve7; lab default has pve1, pve2, pve3"),
        (["exec", "pve1,pve8", "true"], "unknown node pve8"),
        (["ssh", "pve2"], "pve2 is not running; python3 -m lab --name default start pve2"),
        (["start", "pve1"], "pve1 is already running"),
        (["throttle", "pve1", "0"], "throttle 0: at least 1"),
        (["delay", "pve1", "-1"], "delay -1: milliseconds"),
        (["exec", "pve1"], "no command given"),
        (["up", "--profile", "debian"], "lab default is up with profile pve; add --fresh"),
        (["logs", "pve1"], "is not there yet"),
    ],
)
def test_bad_input_to_a_lab_that_exists(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    make_lab()
    status, _, err = lab_cli(capsys, *argv)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.shutil, "which", lambda tool, path: None)
    with pytest.raises(
        LabError, match=r"missing: qemu-img, ssh; install with: apt-get install .*openssh-client qemu-utils"
    ):
        system.require_tools(["qemu-img", "ssh"])


def test_no_disk_space_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="MiB free, the lab needs 1000000000 MiB"):
        system.require_space(tmp_path / "not" / "yet", 10**9)


def test_a_taken_port_is_refused() -> None:
    lab = make_lab()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        with pytest.raises(LabError, match="is taken"):
            guests.take_ports(lab, sock.getsockname()[1] - 1)


@pytest.mark.parametrize(("guests", "counts"), [(0, [0, 0, 0]), (20, [7, 7, 6]), (200, [67, 67, 66])])
def test_guests_are_spread_over_the_nodes_and_no_two_have_one_id(guests: int, counts: list[int]) -> None:
    ids = [statistics.guests_of(number, [1, 2, 3], guests) for number in (1, 2, 3)]
    assert [len(each) for each in ids] == counts
    assert len({guest for each in ids for guest in each}) == guests


def told(monkeypatch: pytest.MonkeyPatch, status: int = 0) -> list[str]:
    """The scripts that nodes are given on their console."""
    scripts: list[str] = []

    def run(self: Console, command: str, timeout: float = 60) -> tuple[int, str]:
        scripts.append(command)
        return status, "it failed"

    monkeypatch.setattr(Console, "run", run)
    return scripts


def test_statistics_are_asked_for_once_and_stay_until_they_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = told(monkeypatch)
    lab = make_lab(nodes=1)
    lab.up()
    assert scripts == [] and lab.describe()["guests"] is None, "by default a node has none"
    lab.up(statistics_of=0)
    assert len(scripts) == 1 and "guests=\n" in scripts[0] and "unmask" in scripts[0]
    lab.up(statistics_of=2)
    lab.up()
    assert len(scripts) == 3 and all("guests=1000 1001\n" in script for script in scripts[1:])
    assert Lab().describe()["guests"] == 2 and "statistics of 2 guests" in cli.show(Lab())
    lab.up(statistics_of="off")
    lab.up()
    assert scripts[3:] == [statistics.off()] and Lab().describe()["guests"] is None


def test_a_node_that_takes_no_statistics_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, status=1)
    with pytest.raises(LabError, match="^pve1: statistics: it failed$"):
        make_lab(nodes=1).up(statistics_of=1)


def test_the_script_of_statistics_changes_nothing_the_second_time(tmp_path: Path) -> None:
    """With programs that only write down how they were called."""
    calls = tmp_path / "calls"
    stand_in = tmp_path / "systemctl"
    # There is no unit of smartd here.
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$*" != "cat smartmontools.service" ]\n')
    stand_in.chmod(0o755)

    def run(script: str) -> list[str]:
        calls.write_text("")
        for path in ("/etc/pvestatd-lab.conf", "/run/pvestatd-lab.conf"):
            script = script.replace(path, f"{tmp_path}/{path.replace('/', '_')}")
        subprocess.run(["sh", "-c", script], check=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        return [line for line in calls.read_text().splitlines() if not line.startswith("cat ")]

    first, again, other = (run(statistics.on(ids)) for ids in ([1000], [1000], [1000, 1001]))
    assert (tmp_path / "_etc_pvestatd-lab.conf").read_text() == "guests=1000 1001\n"
    assert [lines.count("try-restart pvestatd.service") for lines in (first, again, other)] == [1, 0, 1]
    assert "start pvestatd.service" in again and "start smartmontools.service" not in again
    assert f"--quiet --now mask {' '.join(statistics.WRITERS)}" in run(statistics.off())
    assert not (tmp_path / "_etc_pvestatd-lab.conf").exists()
    assert set(statistics.WRITERS) <= set(image_root.MASKED)


def test_what_the_image_has_switched_off(tmp_path: Path) -> None:
    """The links of a tree lead nowhere outside it."""
    units = tmp_path / "etc/systemd/system"
    for link in ("multi-user.target.wants/auditd.service", "chronyd.service", "sysinit.target.requires/audit-rules.service"):
        (units / link).parent.mkdir(parents=True, exist_ok=True)
        (units / link).symlink_to("/usr/lib/systemd/system/nothing-of-this-machine.service")
    kept = units / "multi-user.target.wants/ssh.service"
    kept.symlink_to("/nowhere")
    image_root.switch_off(tmp_path)
    assert [path for path in units.rglob("*") if path.is_symlink()] == [kept]
    assert {unit for each in services.SERVICES.values() if each.masked for unit in each.units} <= set(image_root.MASKED)
    off = {unit for each in services.SERVICES.values() if each.enabled and not each.masked for unit in each.units}
    assert off <= set(image_root.OFF)


def test_services_are_switched_on_and_off(tmp_path: Path) -> None:
    """With a systemctl that only writes down how it was called; there is no proxmox-firewall here."""
    calls = tmp_path / "calls"
    stand_in = tmp_path / "systemctl"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$*" != "cat proxmox-firewall.service" ]\n')
    stand_in.chmod(0o755)
    marks = [tmp_path / f"_etc_{name}-lab.conf" for name in ("pve-firewall", "pveproxy")]

    def run(on: bool) -> list[str]:
        calls.write_text("")
        script = services.script(list(services.SERVICES), on)
        for name in ("pve-firewall", "pveproxy"):
            script = script.replace(f"/etc/{name}-lab.conf", f"{tmp_path}/_etc_{name}-lab.conf")
        subprocess.run(["sh", "-c", script], check=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        return [line for line in calls.read_text().splitlines() if not line.startswith("cat ")]

    expected = ["restart pve-firewall.service", "restart pveproxy.service", "restart spiceproxy.service"]
    expected += ["--quiet enable --now auditd.service", "--quiet enable --now chrony.service"]
    expected += ["--quiet unmask apt-daily-upgrade.timer", "--quiet enable --now apt-daily-upgrade.timer"]
    assert run(True) == expected and all(mark.exists() for mark in marks)
    marks[0].write_text("seconds=1\n")
    assert run(True) == expected and marks[0].read_text() == "seconds=1\n", "settings stay"
    assert run(False) == [
        "stop pve-firewall.service",
        "restart pveproxy.service",
        "restart spiceproxy.service",
        "--quiet disable --now auditd.service",
        "--quiet disable --now chrony.service",
        "--quiet disable --now apt-daily-upgrade.timer",
        "--quiet mask apt-daily-upgrade.timer",
    ]
    assert not any(mark.exists() for mark in marks)


def test_services_by_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = told(monkeypatch)
    make_lab(nodes=1)
    assert lab_cli(capsys, "services", "on", "firewall,auditd")[0] == 0
    assert lab_cli(capsys, "services", "off", "all", "pve1")[0] == 0
    assert scripts == [services.script(["firewall", "auditd"], True), services.script(list(services.SERVICES), False)]
    status, _, err = lab_cli(capsys, "services", "on", "fail2ban")
    assert status == 2 and "no service fail2ban: there are firewall, pveproxy, auditd, chrony, updates" in err
    assert len(scripts) == 2


def test_status_of_no_lab_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab_cli(capsys, "status") == (0, "lab default: does not exist\n", "")
    make_lab()
    status, out, _ = lab_cli(capsys, "status", "--json")
    about = json.loads(out)
    assert status == 0
    assert not about["running"]
    assert [node["running"] for node in about["nodes"]] == [True, False, False]
    assert about["nodes"][2]["ring_address"] == "10.77.0.3"
    assert about["repository"]["fingerprint"] == "F" * 40


def test_up_on_a_running_lab_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    make_lab(nodes=1)
    status, _, err = lab_cli(capsys, "up")
    assert status == 0
    assert "already up (1 nodes, profile pve)" in err


def test_down_without_a_lab_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab_cli(capsys, "down")[0] == 0


def test_a_node_is_logged_in_to_when_its_ssh_server_listens_and_not_knocked_at_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An emulated sshd needs seconds for a connection; on a busy machine a knock every second was all that it did."""
    said = iter([LabError("pve1: no answer on the serial console"), (124, ""), (0, "")])
    happened: list[str] = []

    class Talk:
        def run(self, command: str, timeout: float = 60.0) -> tuple[int, str]:
            assert ":0016 " in command
            answer = next(said)
            happened.append("asked")
            if isinstance(answer, LabError):
                raise answer
            return answer

    def login(*_: Any) -> str:
        happened.append("login")
        return "" if happened.count("login") == 2 else "ssh status 255"

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection that is no login")

    monkeypatch.setattr(machine.Machine, "console", property(lambda _: Talk()))
    monkeypatch.setattr(machine.Machine, "reset_if_stuck", lambda _: happened.append("stuck?"))
    monkeypatch.setattr(guestssh, "login", login)
    monkeypatch.setattr(socket, "create_connection", connect)
    lab = make_lab(nodes=1)
    said = iter([*said, (0, "")])
    lab.wait_ready([lab.machine("pve1")], 30)
    assert happened == ["asked", "stuck?", "asked", "stuck?", "asked", "login", "asked", "login"]


def test_a_reused_pid_is_not_our_machine() -> None:
    lab = make_lab()
    lab.state.nodes["pve1"]["start"] = "1"
    assert not lab.machine("pve1").running


def test_images_of_all_labs_are_in_use() -> None:
    for name in ("a", "b"):
        directory = layout.labs_dir() / name / "set"
        directory.mkdir(parents=True)
        (directory / "set.json").write_text(json.dumps({"image": f"pve-{name}", "repository": "repo-1"}))
    assert used_images() == {"pve-a", "pve-b", "repo-1"}


@pytest.mark.parametrize(
    ("wanted", "there", "saved", "usable"),
    [
        (3, 3, 3, True),
        (4, 3, 3, True),  # the fourth is new
        (1, 1, 1, True),
        (1, 1, 3, False),  # no quorum
        (2, 2, 3, False),
        (3, 1, 1, False),  # of two moments
        (3, 2, 3, False),
    ],
)
def test_a_cluster_begins_with_a_snapshot_of_all_its_members(
    wanted: int, there: int, saved: int, usable: bool
) -> None:
    names = [layout.node_name(number) for number in range(1, 10)]
    assert disks.whole_cluster(names[:wanted], names[:there], names[:saved]) is usable


class Starts:
    """What `lab up` does to nodes, with no node: the calls in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        picture = image.Image("pve-trixie-1", layout.images_dir() / "pve-trixie-1", layout.images_dir() / "repo-2.img")
        picture.directory.mkdir(parents=True)
        monkeypatch.setattr(image, "ensure", lambda *_: picture)
        monkeypatch.setattr(accel, "choose", lambda _: "tcg")
        monkeypatch.setattr(accel, "qemu_version", lambda: "QEMU 0")
        monkeypatch.setattr(bringup, "require_tools", lambda _: None)
        monkeypatch.setattr(disks, "ensure_keys", lambda *_: None)
        monkeypatch.setattr(disks, "create", lambda _, names: self._note("disks", names))
        monkeypatch.setattr(guests, "boot", lambda _, names: self._note("boot", names))
        monkeypatch.setattr(guests, "resume", lambda _, names, snapshot, new_identity=False: self._note("resume", names))
        monkeypatch.setattr(snapshots, "save_base", lambda _, names: self._note("base", names))
        monkeypatch.setattr(snapshots, "save", lambda *_, **__: self.calls.append("snapshot"))
        monkeypatch.setattr(cluster, "build", lambda machines: self._note("cluster", [node.name for node in machines]))
        self.directory = picture.directory

    def _note(self, what: str, names: Any) -> None:
        if names:
            self.calls.append(f"{what} {','.join(names)}")

    def up(self, profile: str, nodes: int = 3) -> list[str]:
        self.calls.clear()
        Lab("one").up(profile=profile, nodes=nodes, fresh=True)
        return list(self.calls)

    def offer(self, profile: str) -> None:
        """What another lab of this profile would have left."""
        target = disks.template(Lab("one"), profile)
        target.mkdir()
        for node in ("pve1", "pve2", "pve3"):
            for disk in ("root", "var"):
                (target / f"{node}-{disk}.qcow2").write_text(profile)
        (target / "template.json").write_text(json.dumps({"nodes": ["pve1", "pve2", "pve3"]}))


def test_a_cluster_is_made_of_nodes_that_another_lab_has_booted(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, three = Starts(monkeypatch), "pve1,pve2,pve3"
    assert starts.up("cluster") == [f"disks {three}", f"boot {three}", f"cluster {three}", f"base {three}"]
    starts.offer("pve")
    assert starts.up("cluster") == [f"resume {three}", f"cluster {three}", f"base {three}"]
    assert starts.up("cluster", 4) == ["disks pve4", f"resume {three}", "boot pve4", f"cluster {three}", f"base {three},pve4"]
    starts.offer("cluster")
    assert starts.up("cluster") == [f"resume {three}", "snapshot"]
    assert (Lab("one").set_dir / "pve2-var.qcow2").read_text() == "cluster"
    assert starts.up("pve") == [f"resume {three}", "snapshot"]
    assert (Lab("one").set_dir / "pve2-var.qcow2").read_text() == "pve"



def test_qemus_arguments(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    picture = image.Image("k", tmp_path / "k", tmp_path / "repo.img")
    node = machine.Machine(2, "default", directory, directory / "set", nvme=True, port=22102)
    argv = node.arguments(picture, "tcg", 768, 7771, b"x", load="base")
    text = " ".join(argv)
    assert "file=set/pve2-var.qcow2" in text
    assert "nvme,drive=var" in text
    assert "lab.var=/dev/nvme0n1 lab.repo=/dev/vdb" in text
    assert "hostfwd=tcp:127.0.0.1:22102-:22" in text
    assert argv[-3:] == ["-S", "-loadvm", "base"]
    assert str(tmp_path) not in text, "paths are relative to the lab's folder"


@pytest.mark.parametrize(
    ("said", "idle_s", "reset"),
    [
        ("task mount:144 blocked for more than 120 seconds.", 400, True),
        ("task mount:144 blocked for more than 120 seconds.", 3, False),
        ("systemd started", 400, False),
        (f"blocked for more than 120 seconds.\n{machine.RESET}\nbooting", 400, False),
    ],
)
def test_only_a_guest_that_waits_for_an_idle_disk_is_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, idle_s: int, reset: bool
) -> None:
    commands: list[str] = []

    class Monitor:
        def __enter__(self) -> Monitor:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, command: str) -> list[dict[str, dict[str, int]]]:
            commands.append(command)
            return [{"stats": {"idle_time_ns": 900 * 10**9}}, {"stats": {"idle_time_ns": idle_s * 10**9}}]

    monkeypatch.setattr(machine.Machine, "qmp", lambda self: Monitor())
    node = machine.Machine(1, "default", tmp_path, tmp_path)
    node.console_log.write_text(said)
    for _ in range(2):
        node.reset_if_stuck()
    assert commands.count("system_reset") == reset, "once, for what was said before is answered"


def test_corosync_conf_of_the_cluster_profile() -> None:
    text = cluster.corosync_conf([1, 3], 4)
    assert text.count("nodeid:") == 2
    assert "ring0_addr: 10.77.0.3" in text
    assert "config_version: 4" in text
    assert text.count("{") == text.count("}")


# --- inventory ----------------------------------------------------------------------------------------------


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "argv", ["hosts.py", "--list"])
    monkeypatch.delenv("MOLECULE_SCENARIO_NAME", raising=False)
    return load_file("inventory/lab/hosts.py")


def test_inventory_lists_every_node(hosts: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    make_lab(nodes=4)
    assert hosts.main() == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["lab"]["hosts"] == ["pve1", "pve2", "pve3", "pve4"]
    assert listing["lab"]["vars"] == {}
    node = listing["_meta"]["hostvars"]["pve4"]
    assert (node["corosync_node_id"], node["corosync_links"], node["ansible_port"]) == (
        4,
        ["10.77.0.4"],
        22104,
    )
    assert "StrictHostKeyChecking=yes" in node["ansible_ssh_common_args"]
    assert node["ansible_host_key_checking"] is True


def test_only_nodes_without_the_packages_are_told_where_they_are(hosts: ModuleType) -> None:
    about = make_lab().describe()
    assert hosts.group_variables({**about, "profile": "pve"}) == {}
    other = hosts.group_variables({**about, "name": "other"})
    assert other["pveguard_reports_dir"].endswith("/reports/other")
    variables = hosts.group_variables({**about, "profile": "debian"})
    assert variables["pmxcfs_repository"] == "file:///srv/pve-repo"
    assert len(variables["pmxcfs_repository_fingerprint"]) == 40


def test_a_plain_node_is_the_probe_of_the_others(hosts: ModuleType) -> None:
    lab = make_lab(nodes=4)
    lab.state.nodes["pve4"]["plain"] = "debian-trixie-9"
    assert lab.image("pve4").key == "debian-trixie-9" and lab.image("pve1").key == lab.image().key == "pve-trixie-1"
    listing = hosts.inventory(lab.describe())
    assert listing["pve_probe"]["hosts"] == ["pve4"] and "pve4" in listing["lab"]["hosts"]
    # The others have their packages; it is told where to find them.
    assert listing["lab"]["vars"] == {} and listing["pve_probe"]["vars"]["pmxcfs_repository"] == "file:///srv/pve-repo"
    ids = {name: variables["corosync_node_id"] for name, variables in listing["_meta"]["hostvars"].items()}
    assert ids == {"pve1": 1, "pve2": 2, "pve3": 3, "pve4": 1004}
    assert "pve_probe" not in hosts.inventory(make_lab().describe())


def test_a_node_does_not_become_plain_while_it_runs() -> None:
    lab = make_lab(nodes=4)
    with pytest.raises(LabError, match="is up with pve4 of profile pve"):
        lab.up(plain=["pve4"])


def test_the_image_of_a_plain_node_is_in_use() -> None:
    lab = make_lab(nodes=4)
    lab.write_manifest({**lab.manifest(), "image": "pve-trixie-1", "plain": {"pve4": "debian-trixie-9"}})
    assert {"pve-trixie-1", "debian-trixie-9"} <= used_images()


def test_a_restored_lab_shares_no_connection_with_its_past(hosts: ModuleType) -> None:
    paths = set()
    for generation in (1, 2):
        about = make_lab(generation=generation).describe()
        paths |= {hosts.host_variables(about, node)["ansible_control_path"] for node in about["nodes"]}
    assert len(paths) == 6


def test_inventory_of_a_lab_that_is_down(
    hosts: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hosts.main() == 2
    assert "lab default is not running; start it with: make lab" in capsys.readouterr().err
    monkeypatch.setenv("MOLECULE_SCENARIO_NAME", "default")
    assert hosts.main() == 0
    assert json.loads(capsys.readouterr().out)["lab"]["hosts"] == []
    # Crashed is not taken down: an empty inventory would let a play succeed on no host at all.
    lab = make_lab()
    lab.state.nodes["pve1"]["pid"] = None
    lab.save()
    assert hosts.main() == 2
