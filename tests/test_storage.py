"""Files: whole or not at all, line by line, one process at a time."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from qualiclip_jax import storage

HOLD = """
import sys
from qualiclip_jax import storage
with storage.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `scores.csv` until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "scores.csv")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with process:
        yield process
        process.kill()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    storage.write_bytes(path, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(path, 7)
    with pytest.raises(OSError, match="full"), storage.replacing(path) as file:
        raise OSError(f"full, with {file.write(b'half of it')} bytes")
    assert path.read_bytes() == b"old"
    storage.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_of_the_older_file_stay_and_new_files_have_the_usual_ones(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "a.txt"
    storage.write_bytes(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    path.chmod(0o640)
    storage.write_bytes(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("target")
    storage.write_bytes(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"1"


def test_errors_name_the_file_that_was_meant(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        storage.write_bytes(tmp_path / "none" / "a.txt", b"")
    assert error.value.filename == str(tmp_path / "none" / "a.txt")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_full_disk_is_named(tmp_path):
    lines = storage.JsonLines("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        lines.append(1)
    assert error.value.filename == "/dev/full"
    with pytest.raises(OSError, match="No space left") as error:
        lines.close()
    assert error.value.filename == "/dev/full"
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    code += "from qualiclip_jax import cli, storage\ncli.run(lambda argv: storage.write_bytes(argv[0], bytes(2000)))"
    command = [sys.executable, "-c", code, str(tmp_path / "a.txt")]
    limited = subprocess.run(command, capture_output=True, text=True, check=True)
    assert limited.stderr == f"error: {tmp_path / 'a.txt'}: File too large\n"
    assert not os.listdir(tmp_path)


def test_json_lines_read_past_what_a_killed_process_left(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert storage.read_jsonl(path) == []
    values = [{"a": 1}, ["b", "\udce9 \u2028"], 0.1 + 0.2]
    with storage.JsonLines(path) as lines:
        for value in values:
            lines.append(value)
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == values
    with open(path, "ab") as file:
        file.write(b'{"cut o')
    assert storage.read_jsonl(path) == values
    with pytest.raises(ValueError, match="line 4 is not JSON"):
        storage.read_jsonl(path, whole=True)
    with storage.JsonLines(path) as lines:
        lines.append("after")
        assert storage.read_jsonl(path) == [*values, "after"]  # already there for others


def test_another_process_is_refused_by_every_name_of_the_file(holder, tmp_path, monkeypatch):
    path = tmp_path / "scores.csv"
    (tmp_path / "link.csv").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in (path, tmp_path / "link.csv", "scores.csv", "./scores.csv"):
        with pytest.raises(storage.Busy, match="is being written by another process"), storage.lock(name):
            pass
    with storage.lock(tmp_path / "another.csv"):
        pass
    holder.stdin.close()
    with storage.lock(path, wait=60), pytest.raises(storage.Busy), storage.lock(path):
        pass
    holder.wait()
    assert os.listdir(tmp_path) == ["link.csv"]


def test_a_killed_process_bars_nobody(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".scores.csv.lock").exists()
    with storage.lock(tmp_path / "scores.csv"):
        pass
    assert not os.listdir(tmp_path)


def test_one_at_a_time_though_the_lock_file_comes_and_goes(tmp_path):
    """Each thread opens, locks and removes the same file: none may hold a lock on one that is gone."""
    inside, most = [], []

    def work():
        for _ in range(20):
            with storage.lock(tmp_path / "x", wait=60):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_a_file_system_without_locks_bars_nobody(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.lock(tmp_path / "x"):
        pass
    assert not os.listdir(tmp_path)
