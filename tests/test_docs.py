"""What the pages say is so: links lead somewhere, commands are taken, samples compile, tables match the code."""

import argparse
import ast
import configparser
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import pytest

from qualiclip_jax import cli
from qualiclip_jax.data.builders import IMAGE_SETS
from qualiclip_jax.training import checks, command_line

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "launch/README.md", ROOT / "benchmarks/README.md"])
PROGRAMS = ("qualiclip", "python", "make", "pip", "sbatch", "launch/", ".venv/", "--config", "pre-commit")


def test_table_of_sets():
    page = (ROOT / "docs/datasets.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| `\w+`.*\]\(http", line)]
    said = {}
    for names, title, images, scale, *_, tried in rows:
        for name in re.findall(r"`(\w+)`", names):
            said[name] = (re.search(r"\((http[^)]*)\)", title)[1], images, scale, tried == "real files")
    known = {s.name: (s.url, f"{s.images:,}", s.rated_text(), s.tried_on_real_files) for s in IMAGE_SETS.values()}
    assert said == known


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, part = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if part:
            assert part in [anchor(line.lstrip("#")) for line in target.read_text().splitlines() if line[:1] == "#"], (
                link
            )


def code_blocks(text):
    """The blocks of code of a page or a docstring, fenced or indented by four."""
    fenced = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = fenced.findall(text)
    indented = re.findall(r"(?:\A|\n\n)((?:    .*\n?|\n(?=    ))+)", fenced.sub("", text))
    return blocks + [textwrap.dedent(block) for block in indented]


def commands(text):
    """The command lines in the blocks of code, without comments, those with a line to follow joined."""
    lines = "\n".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(PROGRAMS)] + re.findall(r"`(make [\w-]+)`", text)


SOURCES = [*PAGES, *sorted(ROOT.glob("configs/*.py")), ROOT / "launch/local.py", ROOT / "launch/slurm.sbatch"]


def text_of(path):
    if path.suffix == ".md":
        return path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(path.read_text()))
    return "".join(line[1:].removeprefix(" ") for line in path.read_text().splitlines(keepends=True) if line[:1] == "#")


COMMANDS = sorted({(path.relative_to(ROOT), command) for path in SOURCES for command in commands(text_of(path))})


class Parsed(Exception):
    """The arguments were taken."""


@pytest.fixture
def parse_only(monkeypatch):
    """Entry points that use argparse stop as soon as they have their arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *arguments, **options):
        parse_args(self, *arguments, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.chdir(ROOT)


def check(words):
    """Checks one command, by the parser of its program."""
    match words:
        case ["qualiclip", "train", *arguments]:
            checks.check(command_line.parse(arguments)[0])
        case ["qualiclip", name, *arguments]:
            assert name in cli.COMMANDS
            module = f"qualiclip_jax.{name}" + (".__main__" if name in cli.PACKAGES else "")
            with pytest.raises(Parsed):
                importlib.import_module(module).main(arguments)
        case ["python" | "python3", "-m", module, *arguments] if module.startswith("qualiclip_jax."):
            check(["qualiclip", module.removeprefix("qualiclip_jax."), *arguments])
        case [first, *_] if first.startswith("--config."):
            check(["qualiclip", "train", "--config", "configs/demo.py", *words])
        case ["python", "launch/local.py", *arguments]:
            assert "--" in arguments
            launched = arguments.index("--") + 1
            local(arguments[:launched] + ["true"])
            check(arguments[launched:])
        case ["python", "-c", code]:
            compile(code, "-c", "exec")
        case ["python", script, *_] | [".venv/bin/python", "-m", "pytest", script]:
            assert (ROOT / script).is_file()
        case [script, *arguments] if script.endswith("tpu_vm.sh"):
            done = subprocess.run(
                ["bash", script, "--dry-run", *arguments], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        case ["sbatch", *arguments]:
            script = arguments.index("launch/slurm.sbatch")
            assert all(option.startswith("--") for option in arguments[:script])
            if arguments[-1] != "...":
                check(["qualiclip", "train", *arguments[script + 1 :]])
        case ["make", target]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", *what]:
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg")
            for extras in re.findall(r"\[(.*?)\]", " ".join(what)):
                assert set(extras.split(",")) <= set(setup["options.extras_require"]), extras
        case ["pre-commit", "install"]:
            assert (ROOT / ".pre-commit-config.yaml").exists()
        case _:
            raise AssertionError("no test knows this program")


@functools.cache
def launcher():
    spec = importlib.util.spec_from_file_location("launch_local", ROOT / "launch/local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def local(arguments):
    with pytest.raises(Parsed):
        launcher().parse(arguments)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_commands_are_taken(parse_only, page, command):
    check([re.sub(r"^[A-Z]+\.py$", "configs/demo.py", word) for word in shlex.split(command, comments=True)])


def test_there_are_commands_from_every_kind_of_page():
    pages = {str(page) for page, _ in COMMANDS}
    assert {"README.md", "docs/training.md", "configs/demo.py", "launch/slurm.sbatch", "CONTRIBUTING.md"} <= pages


SAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(code_blocks(page.read_text()))
    if re.search(r"^(from \S+ )?import ", block, re.MULTILINE)
]


def resolve(node, names):
    """The object that an expression names, or None if that is known at run time only."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        value = resolve(node.value, names)
        if inspect.ismodule(value) or inspect.isclass(value):
            return getattr(value, node.attr)
    return None


@pytest.mark.parametrize("sample", SAMPLES)
def test_samples_import_what_there_is_and_call_it_with_arguments_that_it_has(sample):
    tree = ast.parse(sample)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("qualiclip_jax"):
            package = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(package, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = getattr(package, alias.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name in [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]:
                assert importlib.util.find_spec(name.partition(".")[0]), name
    for node in ast.walk(tree):
        called = resolve(node.func, names) if isinstance(node, ast.Call) else None
        if inspect.isfunction(called) or inspect.ismethod(called):
            keywords = {keyword.arg: None for keyword in node.keywords}
            assert None not in keywords, "write the arguments out"
            inspect.signature(called).bind(*node.args, **keywords)
