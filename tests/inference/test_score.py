"""`python -m qualiclip_jax.score`: files in, table out, whatever happens on the way."""

import csv
import errno
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from qualiclip_jax import QualiCLIP, cli, score
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import write_image
from qualiclip_jax.inference import files
from qualiclip_jax.storage import JsonLines, read_jsonl


@pytest.fixture(scope="module")
def photos(photos) -> list[np.ndarray]:
    """Of sizes that share one padded shape: fewer compilations."""
    return [photos[3][k:64, k : 64 - 2 * k] for k in range(6)]


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """Six images, one of them deeper, and five files that cannot be scored."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    for k, photo in enumerate(photos):
        write_image(folder / ("deeper" if k == 2 else "") / f"photo{k}.png", photo)
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "photo3.png").read_bytes()[:-2000])
    write_image(folder / "small.png", photos[0][:31])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(resnet, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model"
    resnet.save(path)
    return str(path)


@pytest.fixture(autouse=True)
def _one_model(resnet, checkpoint, monkeypatch):
    """Loads the checkpoint once for all tests: compiling it anew each time would take most of their time."""
    load = QualiCLIP.load
    monkeypatch.setattr(QualiCLIP, "load", lambda path: resnet if str(path) == checkpoint else load(path))


def run(*arguments) -> int:
    return cli.run(score.main, [str(argument) for argument in arguments])


def read_csv(text: str) -> dict[str, dict[str, str]]:
    return {record["path"]: record for record in csv.DictReader(io.StringIO(text))}


def test_scores_a_folder_and_says_why_some_files_are_not(folder, checkpoint, resnet, photos, capsys):
    assert run("--checkpoint", checkpoint, folder) == 2
    out, err = capsys.readouterr()
    records = read_csv(out)
    scores = [float(records[str(path)]["score"]) for path in sorted(folder.rglob("photo*.png"), key=lambda p: p.name)]
    np.testing.assert_allclose(scores, resnet.score(photos), atol=1e-5)
    errors = {Path(path).name: record["error"] for path, record in records.items() if record["error"]}
    assert set(errors) == {"empty.jpg", "text.png", "cut.png", "small.png", "gone.png"}
    assert errors["empty.jpg"] == "empty file"
    assert "truncated" in errors["cut.png"]
    assert "31 x 64 pixels" in errors["small.png"]
    assert errors["gone.png"] == "no such file"
    assert all(not records[path]["score"] for path in records if Path(path).name in errors)
    assert "6 scored, 5 failed" in err
    assert "higher is better" in err


def test_a_table_on_a_terminal(folder, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    files = [folder / "photo0.png", folder / "empty.jpg", folder / "photo1.png", folder / "photo3.png"]
    assert run("--checkpoint", checkpoint, "--attributes", *files) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["score", "good_photo", "sharp_image", "noise_free_image", "path"]
    assert lines[-1].split()[0] == "failed"
    assert lines[-1].endswith("empty.jpg: empty file")
    scores = {line.split()[-1]: float(line.split()[0]) for line in lines[1:-1]}
    assert sorted(scores) == [str(file) for file in files if file.suffix == ".png"]
    assert list(scores.values()) == sorted(scores.values(), reverse=True)  # best first
    values = [float(value) for value in lines[1].split()[:-1]]
    assert abs(np.mean(values[1:]) - values[0]) < 2e-4
    assert run("--checkpoint", checkpoint, "--sort", "none", *files) == 2
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[3:]] == [str(file) for file in files[2:]]


def test_patterns_and_standard_input(folder, checkpoint, capsys, monkeypatch):
    assert run("--checkpoint", checkpoint, f"{folder}/photo*.png") == 0
    assert len(read_csv(capsys.readouterr().out)) == 5
    names = f"{folder}/photo1.png\n\n{folder}/deeper\n{folder}/photo1.png\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    assert run("--checkpoint", checkpoint, "-") == 0
    names = [Path(path).name for path in read_csv(capsys.readouterr().out)]
    assert names == ["photo1.png", "photo2.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "no images there"),
        (["nothing*.png"], "no such file or folder|no images there"),
        (["--checkpoint", "{empty}", "{photo}"], "no checkpoint in"),
        (["--checkpoint", "{empty}/none", "{photo}"], "no such file or directory"),
        (["--output", "scores.txt", "{photo}"], "must be one of .csv"),
        (["--report", "report.pdf", "{photo}"], "must end in .html"),
        (["--part", "1/2", "{photo}"], "need an --output"),
        (["--part", "3/2", "{photo}"], "not K/N"),
        (["--keep-ratings", "{photo}"], "goes with --xmp"),
        (["--burst-gap", "2", "{photo}"], "goes with --bursts"),
        (["--below", "nan", "{photo}"], "is not a number"),
        (["--copy-to", "x", "--link-to", "y", "{photo}"], "not allowed with"),
        ([], "PATH"),
    ],
)
def test_one_line_for_what_is_wrong_with_the_arguments(arguments, message, folder, checkpoint, tmp_path, capsys):
    places = {"empty": tmp_path, "photo": folder / "photo0.png"}
    arguments = [argument.format(**places) for argument in arguments]
    if "--checkpoint" not in arguments:
        arguments = ["--checkpoint", checkpoint, *arguments]
    assert run(*arguments) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last
    assert any(words in last for words in message.split("|")), last


def test_nothing_could_be_scored(folder, checkpoint, capsys):
    assert run("--checkpoint", checkpoint, folder / "nothing.png") == 1
    assert "no such file" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_second_run_scores_only_what_is_new(suffix, folder, checkpoint, resnet, tmp_path, capsys, monkeypatch):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"scores{suffix}"
    assert run("--checkpoint", checkpoint, "--output", output, folder / "photo0.png", folder / "photo1.png") == 0
    started = []
    start = resnet._encoder.start
    monkeypatch.setattr(resnet._encoder, "start", lambda batch, images: started.append(images) or start(batch, images))
    assert run("--checkpoint", checkpoint, "--output", output, folder / "photo0.png", folder / "photo1.png") == 0
    assert not started
    assert "an earlier run scored 2 of 2 images" in capsys.readouterr().err
    assert run("--checkpoint", checkpoint, "--output", output, folder / "photo0.png", folder / "photo4.png") == 0
    assert started
    assert "2 scored, 0 failed; 1 row of other files kept" in capsys.readouterr().err
    started.clear()
    assert run("--checkpoint", checkpoint, "--output", output, f"{folder}/photo[014].png") == 0
    assert not started


def test_another_checkpoint_in_the_same_output_is_refused(folder, checkpoint, resnet, tmp_path, capsys, monkeypatch):
    output = tmp_path / "scores.csv"
    assert run("--checkpoint", checkpoint, "--output", output, folder / "photo0.png") == 0
    before = output.read_bytes()
    monkeypatch.setitem(vars(resnet), "fingerprint", "another")
    capsys.readouterr()
    assert run("--checkpoint", checkpoint, "--output", output, folder / "photo0.png") == 1
    assert capsys.readouterr().err.startswith(f"error: {output} holds scores of another checkpoint")
    assert output.read_bytes() == before


KILLED = """
import os, signal, sys
from qualiclip_jax import cli, score
from qualiclip_jax.storage import JsonLines
append, written = JsonLines.append, []
def killed_at_the_fourth_row(lines, value):
    written.append(value)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    append(lines, value)
JsonLines.append = killed_at_the_fourth_row
cli.run(score.main, sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_gives_the_same_file(folder, checkpoint, tmp_path, capsys):
    """Killed for good by SIGKILL, in the middle of the table."""
    output = tmp_path / "scores.csv"
    arguments = ["--checkpoint", checkpoint, "--attributes", str(folder), "--output"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments, str(output)], capture_output=True, check=False)
    assert killed.returncode == -9
    assert not output.exists()
    assert len((tmp_path / "scores.csv.part-1-of-1").read_text().splitlines()) == 3
    assert run(*arguments, output) == 2
    assert run(*arguments, tmp_path / "uncut.csv") == 2
    assert output.read_bytes() == (tmp_path / "uncut.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "uncut.csv"]


def test_two_processes_share_one_list(folder, checkpoint, tmp_path):
    """At the same time, each in a process of its own; whoever is last merges."""
    base = [sys.executable, "-m", "qualiclip_jax.score", "--checkpoint", checkpoint, str(folder)]
    base += ["--output", str(tmp_path / "scores.csv"), "--report", str(tmp_path / "report.html")]
    others = {"QUALICLIP_PROCESSES": "2", "QUALICLIP_PROCESS": "1"}  # as launch/local.py tells it
    processes = [
        subprocess.Popen([*base, "--part", "1/2"], stderr=subprocess.PIPE, text=True),
        subprocess.Popen(base, stderr=subprocess.PIPE, text=True, env=os.environ | others),
    ]
    messages = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], messages
    assert sum("wrote" in message for message in messages) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "scores.csv"]
    assert run(*base[3:-3], tmp_path / "alone.csv") == 2
    shared, alone = (read_csv((tmp_path / name).read_text()) for name in ("scores.csv", "alone.csv"))
    assert list(shared) == list(alone)
    for path, record in alone.items():
        assert shared[path]["error"] == record["error"]
        if record["score"]:
            assert abs(float(shared[path]["score"]) - float(record["score"])) < 1e-5


def test_a_report(folder, checkpoint, tmp_path):
    page = tmp_path / "report.html"
    assert run("--checkpoint", checkpoint, "--report", page, folder) == 2
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 6
    assert '<a href="#failed">5 failed</a>' in text
    assert '<h2 id="failed">Not scored: 5</h2>' in text
    assert "<b>6</b> images scored" in text
    order = [text.index(f'title="{path}"') for path in map(str, sorted(folder.rglob("photo*.png")))]
    assert len(order) == 6
    (link,) = re.findall(r'<a href="([^"]*)">[^<]*empty\.jpg</a>', text)
    assert (tmp_path / unquote(link)).resolve() == folder.resolve() / "empty.jpg"
    for outside in ("http://", "https://", "src='/", 'src="/'):
        assert outside not in text


@pytest.mark.parametrize("content", ["<html>mine</html>", ""])
def test_a_page_of_others_is_left_alone_and_an_empty_file_is_filled(content, folder, checkpoint, tmp_path, capsys):
    page = tmp_path / "index.html"
    page.write_text(content)
    for _ in range(2):
        status = run("--checkpoint", checkpoint, "--report", page, folder / "photo0.png")
        assert status == (1 if content else 0)
    if content:
        assert page.read_text() == content
        assert capsys.readouterr().err.endswith("is not a report of this command; choose another one\n")
    else:
        assert "<b>1</b> image scored" in page.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_names_that_are_not_plain_text_come_out_as_they_are(folder, checkpoint, tmp_path):
    """With the strictest of outputs; each in a process of its own, as an environment takes."""
    names = [b"caf\xe9.png", b"two\nlines.png", b"<b>&quot;.png", b"a:b%20?.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes((folder / "photo0.png").read_bytes())
    command = [sys.executable, "-m", "qualiclip_jax.score", "--checkpoint", checkpoint, "-0", "-"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "LC_ALL": "C", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    listed = b"\0".join(b"in/" + name for name in names)
    out = subprocess.run(
        [*command, "--report", "report.html"], input=listed, cwd=tmp_path, env=environment, capture_output=True
    )
    assert out.returncode == 0, out.stderr
    records = list(csv.reader(io.StringIO(out.stdout.decode("utf-8", "surrogateescape"), newline="")))
    assert [os.fsencode(record[1]) for record in records[1:]] == [b"in/" + name for name in names]
    facts = json.loads(re.search(r"IMAGES = (.*);", (tmp_path / "report.html").read_text())[1])
    assert sorted(os.fsencode(unquote(fact["link"], errors="surrogateescape")) for fact in facts) == sorted(
        b"in/" + name for name in names
    )


def test_a_folder_that_cannot_be_read_is_named_and_counts(folder, checkpoint, tmp_path, capsys, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    arguments = ["--checkpoint", checkpoint, f"{folder}/deeper"]
    assert run(*arguments, f"{folder}/photo0.png", "--output", tmp_path / "o.jsonl") == 2
    err = capsys.readouterr().err
    assert f"{folder}/deeper: the folder cannot be read (Permission denied)" in err
    assert "1 scored, 0 failed, 1 folder or pattern gave no images" in err
    assert [row["path"] for row in read_jsonl(tmp_path / "o.jsonl")] == [f"{folder}/photo0.png"]
    assert run(*arguments) == 1


def test_two_runs_into_one_output(folder, checkpoint, tmp_path, capsys):
    from qualiclip_jax.inference.output import Table

    with Table(tmp_path / "scores.csv"):
        assert run("--checkpoint", checkpoint, "--output", tmp_path / "scores.csv", folder / "photo0.png") == 1
    assert "is being written by another run" in capsys.readouterr().err


def test_what_was_scored_is_printed_when_interrupted(folder, checkpoint, capsys, monkeypatch):
    from qualiclip_jax.inference import files, scoring

    def interrupted(model, paths, known):
        yield files.Row("a.png", 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score_files", interrupted)
    assert run("--checkpoint", checkpoint, "a.png", "b.png") == 130
    assert capsys.readouterr().out == "score,path,error\n0.5,a.png,\n"


def test_a_vanished_and_a_changed_file_fail_alone(folder, checkpoint, resnet, tmp_path, photos):
    from qualiclip_jax.inference import files

    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for path in paths:
        write_image(path, photos[0])

    class Meanwhile:
        """A model before whose first image two of the three files change."""

        prompts, score_of, rating_of = resnet.prompts, resnet.score_of, resnet.rating_of

        def run(self, windows, fetch, done):
            windows = list(windows)
            if paths[0].exists():
                paths[0].unlink()
                write_image(paths[1], photos[3])
            return resnet.run(windows, fetch, done)

    rows = {Path(row.path).name: row for row in files.score_files(Meanwhile(), paths)}
    assert rows["0.png"].error == "no such file"
    np.testing.assert_allclose(rows["1.png"].score, resnet.score(photos[3])[0], atol=1e-5)
    assert rows["1.png"].height == photos[3].shape[0]
    np.testing.assert_allclose(rows["2.png"].score, resnet.score(photos[0])[0], atol=1e-5)


def test_the_first_score_does_not_wait_for_the_sizes_of_all(folder, resnet, photos, monkeypatch):
    first, read_size, looked_at = threading.Event(), files.read_size, itertools.count()

    def slow(path):
        if next(looked_at) >= 200:
            assert first.wait(60)
        return read_size(path)

    monkeypatch.setattr(files, "read_size", slow)
    rows = files.score_files(resnet, [folder / "photo0.png"] * 300)
    row = next(rows)
    first.set()
    expected = resnet.score(photos[0])[0]
    assert all(abs(one.score - expected) < 1e-5 for one in [row, *rows])
    assert next(looked_at) == 300


def test_score_files_of_the_library(folder, resnet, photos):
    paths = [folder / "photo0.png", folder / "photo3.png"]
    np.testing.assert_allclose(resnet.score_files(paths), resnet.score([photos[0], photos[3]]), atol=1e-5)
    with pytest.raises(UserError, match="empty.jpg: empty file"):
        resnet.score_files([*paths, folder / "empty.jpg"])


def test_the_error_of_a_full_disk_is_the_last_line(folder, tmp_path, monkeypatch, capsys):
    """Not the progress by then, which a caller who looks at the last line would take for the reason."""

    def full(lines, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(lines.path))

    monkeypatch.setattr(JsonLines, "append", full)
    assert cli.run(score.main, [str(folder), "--output", str(tmp_path / "o.csv")]) == cli.FAILED
    assert re.fullmatch(r"error: .*o\.csv.*: No space left on device", capsys.readouterr().err.splitlines()[-1])


def test_what_photographers_ask_for(folder, checkpoint, tmp_path, capsys):
    """Causes, ratings, copies, maps in one run; a second run keeps the column, another size is another table."""
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos, symlinks=True)
    table, page = tmp_path / "scores.csv", tmp_path / "report.html"
    base = ["--checkpoint", checkpoint, photos, "--output", table]
    wanted = [
        "--explain",
        "--xmp",
        "--worst",
        "2",
        "--copy-to",
        tmp_path / "bad",
        "--report",
        page,
        "--maps",
        "--bursts",
    ]
    assert run(*base, *wanted) == 2
    out, err = capsys.readouterr()
    rows = read_csv(table.read_text())
    scored = sorted((float(row["score"]), path) for path, row in rows.items() if row["score"])
    assert all(bool(row["causes"]) == bool(row["score"]) for row in rows.values())
    assert [line.split(",")[-2] for line in out.splitlines()[1:]] == [path for _, path in reversed(scored[:2])]
    assert "2 of 2 photos copied" in err
    assert "6 ratings written" in err
    assert "no photo tells when it was taken" in err
    assert sorted(path.name for path in (tmp_path / "bad").iterdir()) == sorted(Path(p).name for _, p in scored[:2])
    assert 'xmp:Rating="1"' in Path(f"{scored[0][1]}.xmp").read_text()
    assert 'xmp:Rating="5"' in Path(f"{scored[-1][1]}.xmp").read_text()
    assert page.read_text().count("data:image/webp;base64,") == 2
    assert run(*base) == 2
    assert [row["causes"] for row in read_csv(table.read_text()).values()] == [row["causes"] for row in rows.values()]
    assert run(*base, "--max-side", "64") == 1
    assert "scores of another checkpoint" in capsys.readouterr().err
    small = tmp_path / "small.csv"
    assert run("--checkpoint", checkpoint, scored[0][1], "--output", small, "--max-side", "48") == 0
    (row,) = read_csv(small.read_text()).values()
    assert (row["width"], row["height"]) == (rows[scored[0][1]]["width"], rows[scored[0][1]]["height"])


def test_pictures_of_many_photos_lie_beside_the_page(tmp_path, monkeypatch):
    from PIL import Image

    from qualiclip_jax.inference import page

    monkeypatch.setattr(page, "_PREVIEWS", ((2, 32),))
    rows = []
    for k in range(4):
        Image.new("RGB", (40, 40), (60 * k, 50, 90)).save(tmp_path / f"{k}.png")
        rows.append(files.Row(str(tmp_path / f"{k}.png"), k / 10, (k / 10,)))
    report, beside = tmp_path / "report.html", tmp_path / "report_files"
    page.write_report(report, rows, ["good"], "a model")
    shown = re.findall(r'src="(report_files/[0-9a-f]{16}\.jpg)"', report.read_text())
    assert sorted(shown) == sorted(f"report_files/{path.name}" for path in beside.iterdir())
    assert len(shown) == 4
    page.write_report(report, rows[:2], ["good"], "a model")
    assert not beside.exists()
    beside.mkdir()
    (beside / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not the folder of a report"):
        page.check(report)
