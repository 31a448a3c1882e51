"""Downloads: from a hub and a host of releases on this machine, which misbehave on demand."""

import errno
import hashlib
import os
import subprocess
import sys
import types

import pytest
from huggingface_hub import constants

from qualiclip_jax import download
from qualiclip_jax.errors import UserError

CONTENT = os.urandom(3 * download.MEGABYTE + 17)
PATH = "releases/a.pth"


@pytest.fixture
def server(hub, monkeypatch):
    """The server of tests/conftest.py with one release file, and no mirror."""
    monkeypatch.delenv(download.MIRROR)
    hub.files[PATH] = CONTENT
    return hub


def fetch(server, check=lambda path: None):
    return download.from_release(f"{server.url}/{PATH}", check)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_release_file_is_fetched_once(server, capsys):
    path = fetch(server)
    assert path.read_bytes() == CONTENT
    assert fetch(server) == path
    assert server.downloads("a.pth") == [None]
    record = path.with_name("a.pth.sha256").read_text()
    assert record == f"{hashlib.sha256(CONTENT).hexdigest()}  a.pth\n"
    assert {file.name for file in path.parent.iterdir()} == {"a.pth", "a.pth.sha256"}
    assert "downloading a.pth: 4 of 4 megabytes" in capsys.readouterr().err


def test_a_broken_connection_goes_on_where_it_broke(server):
    server.cut[PATH] = [download.MEGABYTE + 5, 100, 0]
    assert fetch(server).read_bytes() == CONTENT
    first, second, third, fourth = server.downloads("a.pth")
    assert first is None
    assert second == f"bytes={download.MEGABYTE + 5}-"
    assert third == fourth == f"bytes={download.MEGABYTE + 105}-"


def test_a_connection_that_always_breaks_keeps_what_came(server):
    server.cut[PATH] = [2 * download.MEGABYTE, *[0] * download.TRIES]
    message = refusal(fetch, server)
    assert "the connection broke at 2.0 of 3.0 MB; 2.0 MB are kept" in message
    assert "$QUALICLIP_RELEASES" in message
    assert fetch(server).read_bytes() == CONTENT
    assert server.downloads("a.pth")[-1] == f"bytes={2 * download.MEGABYTE}-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server):
    server.cut[PATH] = [download.MEGABYTE, *[0] * download.TRIES]
    refusal(fetch, server)
    server.files[PATH] = changed = CONTENT[::-1]
    assert fetch(server).read_bytes() == changed
    download.release_file(PATH).unlink()
    server.files[PATH] = CONTENT
    assert "another file than the one first seen" in refusal(fetch, server)
    assert [file.name for file in download.release_file(PATH).parent.iterdir()] == ["a.pth.sha256"]


def test_what_is_not_the_file(server):
    server.pages.add(PATH)
    assert "a web page came instead of the file" in refusal(fetch, server)
    server.pages.clear()

    def check(path):
        raise UserError(f"{path}: truncated")

    assert "truncated" in refusal(fetch, server, check)
    del server.files[PATH]
    assert "404 Not Found; another place" in refusal(fetch, server)
    assert not list(download.release_file(PATH).parent.iterdir())


def test_a_full_disk(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1 << 20))
        assert "3 MB are to come, and the disk has 1 left" in refusal(fetch, server)
    server.cut[PATH] = [download.MEGABYTE + 1]

    class Full:
        """A file on a disk that is full after a megabyte."""

        def __init__(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download, "Progress", Full)  # opened after the file
        assert "no space left on the disk" in refusal(fetch, server)
    assert fetch(server).read_bytes() == CONTENT


def test_a_mirror_and_offline_mode(server, monkeypatch):
    gone = "http://127.0.0.1:9/weights/a.pth"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(download.from_release, gone, len)
    assert f"{gone} is not in the cache, and HF_HUB_OFFLINE is set" in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "Connection refused" in refusal(download.from_release, gone, len)
    monkeypatch.setenv(download.MIRROR, f"{server.url}/releases/")
    assert download.from_release(gone, lambda path: None).read_bytes() == CONTENT


def test_two_processes_fetch_one_file_once(server):
    code = "import sys; from qualiclip_jax import download; download.from_release(sys.argv[1], lambda path: None)"
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, f"{server.url}/{PATH}"]
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert server.downloads("a.pth") == [None]
    assert download.release_file(PATH).read_bytes() == CONTENT


def snapshot(
    repository="owner/name", revision=None, choose=lambda names: [name for name in names if name != "README.md"]
):
    return download.from_hub(repository, revision, choose, repository, "a.safetensors")


def test_files_of_a_hub(server, monkeypatch):
    server.files |= {"owner/name/README.md": b"#", "owner/name/a.safetensors": CONTENT, "owner/name/sub/b.json": b"{}"}
    folder = snapshot()
    assert (folder / "a.safetensors").read_bytes() == CONTENT
    assert (folder / "sub/b.json").read_bytes() == b"{}"
    assert not (folder / "README.md").exists()
    assert snapshot(choose=lambda names: ["sub/b.json"]) == folder
    assert server.downloads("a.safetensors") == [None]
    server.files.clear()  # the network is gone
    assert snapshot() == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert snapshot() == folder
    message = refusal(snapshot, "owner/name", "v2")
    assert "hf download owner/name a.safetensors --revision v2`" in message
    assert f"not in the cache {constants.HF_HUB_CACHE}" in message


def test_a_hub_that_misbehaves(server):
    assert "no weights nobody/nothing" in refusal(snapshot, "nobody/nothing")
    server.files["owner/name/README.md"] = b"#"
    assert "none of its files is known here: README.md" in refusal(snapshot)
    server.files["owner/name/a.bin"] = CONTENT
    server.pages.add("owner/name/a.bin")
    assert "gave: " in refusal(snapshot)
    server.pages.clear()
    assert (snapshot() / "a.bin").read_bytes() == CONTENT
