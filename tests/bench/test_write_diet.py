# SPDX-License-Identifier: Apache-2.0
"""bench/write_diet.py: its arithmetic, its words, and what runs on a node."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.loading import load_file

MIB = 1 << 20


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_file("bench/write_diet.py")


def a_table(seconds: float = 900.0, rest: int = 0, guests: int = 0, **rows: int) -> dict[str, Any]:
    """As writers.table makes it; ``service_X``: one of several rows of the class service."""
    made = [
        {"class": name.partition("_of_")[0], "label": name.partition("_of_")[2] or f"the {name}", "unit": "", "bytes": count}
        for name, count in rows.items()
    ]
    total = sum(rows.values()) + rest + guests
    return {
        "seconds": seconds, "rows": made, "rest_bytes": rest, "guests_bytes": guests, "total_bytes": total,
        "devices": [{"disk": "vda", "bytes": total}], "source": "cgroup", "source_label": "by control group", "notes": [],
    }  # fmt: skip


def an_answer(memory: bool = False, write: float = 300.0, jitter: float = 0.0) -> dict[str, Any]:
    rrd = {"files": 29, "bytes": 36 * MIB, "write_seconds": write, "jitter_seconds": jitter, "UpdatesWritten": 87}
    return {"before": "before", "middle": "middle", "after": "after", "rrd": rrd, "database_in_memory": memory}


def a_window(bench: Any, table: dict[str, Any], last: dict[str, Any] | None = None, **answer: Any) -> dict[str, Any]:
    tables = {("before", "after"): table, ("middle", "after"): last or a_table(rrd=MIB)}
    found: dict[str, Any] = bench.window(an_answer(**answer), lambda *readings: tables[readings])
    return found


# --- one window ---------------------------------------------------------------------------------------------


def test_a_window_is_every_row_the_rest_and_the_guests(bench: Any) -> None:
    found = a_window(bench, a_table(rrd=10, pmxcfs=20, rest=5, guests=7, service_of_a=1, service_of_b=2))
    assert found["bytes"] == {
        "rrd|the rrd": 10, "pmxcfs|the pmxcfs": 20, "service|a": 1, "service|b": 2,
        f"rest|{bench.REST_LABEL}": 5, "guests|guests": 7,
    }  # fmt: skip
    assert found["total_bytes"] == 45 == sum(found["bytes"].values()) and found["flush_bytes"] == MIB


def test_rows_of_one_label_are_one(bench: Any) -> None:
    table = a_table(rrd=10)
    table["rows"] *= 2
    table["total_bytes"] = 20
    assert bench.of_table(table)["rrd|the rrd"] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_bytes": 11}, "the rows make 10 bytes and the drives say 11"),
        ({"total_bytes": None, "notes": ["the node was rebooted in between"]}, "rebooted in between"),
        ({"seconds": None}, "no length"),
        ({"seconds": 0.0}, "no length"),
    ],
)
def test_what_does_not_add_up_is_no_figure(bench: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(bench.NotMeasuredError, match=message):
        a_window(bench, {**a_table(rrd=10), **change})


def test_a_rest_below_zero_still_adds_up(bench: Any) -> None:
    assert sum(a_window(bench, a_table(rrd=10, rest=-3))["bytes"].values()) == 7


# --- an hour, and the states side by side -------------------------------------------------------------------


def test_an_hour_is_made_of_the_seconds_of_the_window(bench: Any) -> None:
    found = bench.hourly(a_window(bench, a_table(1800, rrd=500, journal=300)))
    assert found["bytes_per_hour"]["rrd|the rrd"] == 1000 and found["bytes_per_hour"]["journal|the journal"] == 600
    assert found["total_bytes_per_hour"] == 1600 and found["flush_bytes"] == MIB and not found["upper_bound"]


@pytest.mark.parametrize(("write", "jitter", "bound"), [(900, 0, False), (300, 600, False), (900, 1, True), (3600, 600, True)])
def test_a_flush_before_its_time_makes_an_upper_bound(bench: Any, write: float, jitter: float, bound: bool) -> None:
    assert bench.hourly(a_window(bench, a_table(900, rrd=1), write=write, jitter=jitter))["upper_bound"] is bound


def states(bench: Any, diet: dict[str, int], **stock: int) -> dict[str, Any]:
    """Windows of an hour, so that bytes are bytes an hour."""
    found = {
        "stock": a_window(bench, a_table(3600, **stock)),
        "ram_state": a_window(bench, a_table(3600, **{**stock, "pmxcfs": 0}), memory=True),
        "diet": a_window(bench, a_table(3600, **diet), memory=True, write=3600),
    }
    assert list(found) == list(bench.STATES)
    return {name: bench.hourly(each) for name, each in found.items()}


def test_states_side_by_side_most_of_stock_first(bench: Any) -> None:
    found = bench.compare(states(bench, {"rrd": 10 * MIB, "logins": MIB}, rrd=200 * MIB, pmxcfs=300 * MIB))
    assert [row["class"] for row in found["rows"]] == ["pmxcfs", "rrd", "logins"], "no row without a byte"
    assert [list(row["bytes_per_hour"].values()) for row in found["rows"]] == [
        [300 * MIB, 0, 0], [200 * MIB, 200 * MIB, 10 * MIB], [0, 0, MIB],
    ]  # fmt: skip
    assert [row["factor"] for row in found["rows"]] == [None, 20, 0]
    assert found["factor"] == pytest.approx(500 / 11) and found["missed"] == []


def test_ten_times_less_is_the_aim(bench: Any) -> None:
    assert bench.compare(states(bench, {"rrd": 10 * MIB}, rrd=100 * MIB))["missed"] == []
    missed = bench.compare(states(bench, {"rrd": 10 * MIB + 1}, rrd=100 * MIB))["missed"]
    assert missed == ["10.0 times less than stock, wanted 10"]
    assert bench.compare(states(bench, {"rrd": 0}, rrd=100 * MIB))["missed"] == []


@pytest.mark.parametrize("kind", ["rest", "ended"])
def test_nothing_above_a_mebibyte_an_hour_is_nobodys(bench: Any, kind: str) -> None:
    assert bench.compare(states(bench, {kind: MIB}, rrd=100 * MIB))["unnamed"] == []
    found = bench.compare(states(bench, {kind: MIB + 1}, rrd=100 * MIB))
    assert [each["bytes_per_hour"] for each in found["unnamed"]] == [MIB + 1] and "1.00 MiB an hour" in found["missed"][0]


def test_what_has_a_name_may_be_more(bench: Any) -> None:
    assert bench.compare(states(bench, {"service_of_x": 5 * MIB}, rrd=100 * MIB))["unnamed"] == []


def test_what_stock_left_to_nobody_is_no_fault_of_the_diet(bench: Any) -> None:
    assert bench.compare(states(bench, {"rrd": MIB}, rrd=MIB, rest=99 * MIB))["missed"] == []


def test_a_window_is_refused_where_a_node_is_in_another_state(bench: Any) -> None:
    good = states(bench, {"rrd": 1}, rrd=100, pmxcfs=1)
    assert [bench.mistakes(name, each) for name, each in good.items()] == [[], [], []]
    assert bench.mistakes("stock", good["ram_state"]) == ["stock: the database is in memory"]
    assert bench.mistakes("ram_state", good["stock"]) == ["ram_state: the database is on the disk"]
    assert bench.mistakes("ram_state", good["diet"]) == ["ram_state: rrdcached writes after 3600 s"]
    assert bench.mistakes("diet", good["ram_state"]) == ["diet: rrdcached writes after 300 s"]
    assert bench.mistakes("diet", {**good["diet"], "rrd": None}) == ["diet: no rrdcached"]


def test_the_table(bench: Any) -> None:
    made = states(bench, {"rrd": 10 * MIB, "rest": 2 * MIB}, rrd=90 * MIB, pmxcfs=30 * MIB)
    report = {"seconds": 3600.0, "guests": 20, "states": made, **bench.compare(made)}
    lines = bench.text(report).splitlines()
    assert lines[1].split() == ["stock", "ram_state", "diet", "times", "less"]
    assert lines[2].split() == ["the", "rrd", "90.00", "90.00", "10.00", "9.0"]
    assert lines[5].split() == ["all", "120.00", "90.00", "12.00", "10.0"]
    assert "29 files of 36.00 MiB; the flush at the end: 1.00 MiB" in lines[6] and "upper bound" not in lines[8]
    assert lines[-1] == f"missed: {bench.REST_LABEL}: 2.00 MiB an hour"
    json.dumps(report)


# --- what it is given, and what runs on a node --------------------------------------------------------------


def test_values_of_variables(bench: Any) -> None:
    given = [bench.value(words) for words in ("a=true", "b=3", "c=text", "d=x=y")]
    assert given == [("a", True), ("b", 3), ("c", "text"), ("d", "x=y")]
    with pytest.raises(argparse.ArgumentTypeError):
        bench.value("a")


@pytest.mark.parametrize("words", [["--seconds", "700"], ["--seconds", "0"]])
def test_mistakes_of_the_caller(bench: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.arguments(["--name", "x", *words])
    assert ended.value.code == 2 and words[0] in capsys.readouterr().err


def test_the_program_of_a_node_brings_what_it_imports(bench: Any, tmp_path: Path) -> None:
    """A reading of this machine, of a window of no length; /run is elsewhere, and rrdcached is nowhere."""
    given = bench.program(0.0).replace(b'"/run/', f'"{tmp_path}/'.encode()).replace(b'== "rrdcached"', b'== "no such program"')
    given = given.replace(b"os.sync()", b"pass")
    # A table of writers, as far as the program knows it: a checkout without one must not fail here.
    stand_in = tmp_path / "pveguard-write-diet.zip"
    if not (Path(bench.ROOT) / "module_utils/pveguard/writes/writers.py").exists():
        given = given.replace(b"open(ZIP, 'wb').write(base64", b"bytes(base64")
        with zipfile.ZipFile(stand_in, "w") as archive:
            for name in ("pveguard/__init__.py", "pveguard/writes/__init__.py"):
                archive.writestr(name, "")
            archive.writestr("pveguard/writes/writers.py", "def reading(root):\n    return {'root': str(root)}\n")
    done = subprocess.run([sys.executable, "-I", "-"], input=given, capture_output=True, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout)
    assert set(answer) == {"before", "middle", "after", "rrd", "database_in_memory"}
    assert answer["rrd"] is None and answer["before"] and not stand_in.exists()


@pytest.mark.parametrize("words", ["-B -w 3600 -b /db/ -l unix:/s", "-w3600 -B -b/db/ -z 5"])
def test_the_options_of_rrdcached(bench: Any, words: str) -> None:
    space: dict[str, Any] = {}
    exec(bench.PROGRAM, space)
    found = space["options_of"](["/usr/bin/rrdcached", *words.split(), ""])
    assert (found["-w"], found["-b"]) == ("3600", "/db/") and found.get("-z", "0") in "05"


FAKE = """
import socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print("listening", flush=True)
connection, _ = listening.accept()
stream = connection.makefile("rw")
for line in stream:
    print(line.strip(), flush=True)
    if line.startswith("STATS"):
        stream.write("2 Statistics follow\\nUpdatesWritten: 5\\nJournalBytes: 7\\n")
    else:
        stream.write("0 done\\n")
    stream.flush()
"""


def test_a_flush_waits_for_every_file(bench: Any, tmp_path: Path) -> None:
    """Beside a stand-in for rrdcached that says what it was asked."""
    (tmp_path / "db/pve-vm-9.0").mkdir(parents=True)
    for name in ("100", "101"):
        (tmp_path / "db/pve-vm-9.0" / name).write_text("")
    address = tmp_path / "s"
    daemon = subprocess.Popen([sys.executable, "-c", FAKE, address], stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None and daemon.stdout.readline() == "listening\n"
        space: dict[str, Any] = {}
        exec(bench.PROGRAM.replace("/run/rrdcached.sock", str(address)).replace("os.sync()", "pass"), space)
        space["rrdcached"] = lambda: {"-b": str(tmp_path / "db")}
        assert space["flush"]() == {"UpdatesWritten": 5, "JournalBytes": 7}
        asked = daemon.stdout.read().splitlines()
    finally:
        daemon.kill()
        daemon.wait()
    assert asked[0] == "FLUSHALL" and sorted(asked[1:3]) == ["FLUSH pve-vm-9.0/100", "FLUSH pve-vm-9.0/101"]
    assert asked[3:] == ["STATS"] and os.path.exists(address)
