"""`qualiclip export`: what lies in the folder, and what is refused."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from qualiclip_jax import QualiCLIP, checkpoint, cli
from qualiclip_jax.export import __main__ as command
from qualiclip_jax.export import folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WEB = Path(__file__).parents[2] / "node_modules"


def run(*arguments) -> int:
    return cli.run(command.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "onnx"
    assert run(saved, "--out", out) == cli.DONE
    return out


def test_the_sums_are_those_of_the_files(exported):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=exported, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split(": OK\n")[:-1]) == ["README.md", "export.json", "index.html", "model.onnx"]
    assert not list(exported.parent.glob(".*"))


def test_the_example_of_the_card_gives_our_score(exported, saved, tmp_path):
    photo = skimage.data.chelsea()[:97, :64]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    shutil.copy(exported / "model.onnx", tmp_path)
    code = textwrap.dedent(re.search(r"## Python\n\n((?:    .*\n)+)", (exported / "README.md").read_text())[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(QualiCLIP.load(saved).score(photo)[0], abs=2e-6)


def test_a_check_tells_whose_files_they_are(exported, saved, models, tmp_path, capsys):
    assert run(saved, "--check", exported) == cli.DONE
    assert run(saved, "--check", exported / "model.onnx") == cli.DONE
    assert models["efficientnet"].fingerprint in capsys.readouterr().out
    checkpoint.save_model(tmp_path / "vit", models["vit"])
    assert run(tmp_path / "vit", "--check", exported) == cli.FAILED
    assert "is of another model" in capsys.readouterr().err
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "README.md").write_text("changed")
    assert run(saved, "--check", copy) == cli.FAILED
    assert "README.md was changed" in capsys.readouterr().err
    (copy / "README.md").unlink()
    assert run(saved, "--check", copy) == cli.FAILED
    assert "README.md is missing" in capsys.readouterr().err
    assert run(saved, "--check", tmp_path) == cli.FAILED
    assert "was not written by `qualiclip export`" in capsys.readouterr().err


def test_a_program_names_its_expiry(saved, tmp_path, capsys):
    assert run(saved, "--format", "stablehlo", "--platforms", "cpu", "--out", tmp_path / "out") == cli.DONE
    facts = json.loads((tmp_path / "out" / folder.FACTS).read_text())
    assert facts["expiry"] in (tmp_path / "out" / "README.md").read_text()
    assert run(saved, "--check", tmp_path / "out") == cli.DONE
    for name, text in (("facts", json.dumps(facts | {"expiry": "2020-01-01"})), ("sums", "")):
        (tmp_path / "out" / {"facts": folder.FACTS, "sums": folder.SUMS}[name]).write_text(text)
    capsys.readouterr()
    assert run(saved, "--check", tmp_path / "out") == cli.FAILED
    assert "since 2020-01-01" in capsys.readouterr().err


def test_nothing_of_the_users_is_overwritten(saved, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert run(saved, "--out", tmp_path / "mine") == cli.FAILED
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "stablehlo", "--int8", "sample"], "--int8 is for --format onnx"),
        (["--platforms", "cpu"], "--platforms is for --format stablehlo"),
        (["--int8", "sample"], r"this needs onnxruntime: pip install 'qualiclip_jax[onnx]'"),
    ],
)
def test_what_cannot_be_is_one_line(saved, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(saved, "--out", tmp_path / "out", *arguments) == cli.FAILED
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not opened in a browser")
@pytest.mark.skipif(not (WEB / "onnxruntime-web").is_dir(), reason="npm install onnxruntime-web in the checkout first")
def test_the_page_gives_our_score_in_a_browser(exported, saved, tmp_path):
    served = shutil.copytree(exported, tmp_path / "served")
    (served / "node_modules").symlink_to(WEB)
    photo = np.ascontiguousarray(skimage.data.chelsea()[:97, :64])
    Image.fromarray(photo).save(served / "photo.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'user'}"
    address = f"http://localhost:{server.server_port}/index.html?photo=photo.png"
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        command = [CHROMIUM, *flags.split(), "--virtual-time-budget=60000", "--dump-dom", address]
        dom = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()
    score = float(re.search(r'id="score">([\d.]+)<', dom)[1])
    assert score == pytest.approx(QualiCLIP.load(saved).score(photo)[0], abs=1e-4)
