"""Every model by its name, from a hub and a host of releases on this machine."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from qualiclip_jax import QualiCLIP, checkpoint, cli, convert, zoo, zoo_table
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones

pytest.importorskip("torch", reason="PyTorch, an optional extra, is not installed: it writes the files to read")

from qualiclip_jax.models import __main__ as models_command
from tests.published_files import CONTEXT, published

REPOSITORY = "timm/resnet50_clip.openai"
# Of the backbones two: the others differ in nothing that counts here.
NAMES = [name for name in zoo.TABLE if name not in backbones.TABLE or name in ("RN50", "ViT-L/14@336px")]


@pytest.fixture
def world(hub, monkeypatch):
    """The server with every published file, whose digests are the known ones."""
    hub.files |= published().files
    known = {key: (len(content), hashlib.sha256(content).hexdigest()) for key, content in hub.files.items()}
    known = {(key.rpartition("/")[0], key.rpartition("/")[2]): value for key, value in known.items()}
    monkeypatch.setattr(zoo, "KNOWN", {key: known[key] for key in zoo.KNOWN})
    return hub


def refusal(name, call=zoo.load) -> str:
    """The one line with which a name is refused."""
    with pytest.raises(UserError) as error:
        call(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_load_without_pytorch(world, tmp_path):
    """In two processes at once, with the environment variables that a user would set; one fetches, the other waits."""
    code = """
import json, sys
names = json.loads(sys.argv[1])
sys.modules["torch"] = None
from qualiclip_jax import zoo
zoo.KNOWN.clear()
found = {}
for name in names:
    model = zoo.load(name)
    facts = [model.temperature, model.clip.text is None, model.clip.config.position]
    found[name] = [*facts, model.prompt_features.tolist()]
print(json.dumps(found))
"""
    environment = os.environ | {"HF_ENDPOINT": world.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    command, pipe = [sys.executable, "-c", code, json.dumps(NAMES)], subprocess.PIPE
    both = [subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    (output, errors), (other, more_errors) = (process.communicate() for process in both)
    errors += more_errors
    assert [process.returncode for process in both] == [0, 0], errors
    assert output == other
    found = json.loads(output)
    assert list(found) == NAMES
    assert published().features.keys() >= set(NAMES) - {"tiny"}
    for name in found.keys() - {"tiny"}:
        (temperature, lean, position, ours), features = found[name], published().features[name]
        assert (temperature, lean, position) == (2.0 if "+" in name else 1.0, True, "none")
        np.testing.assert_allclose(ours, features, rtol=0, atol=1e-5, err_msg=name)
    assert errors.count("CC BY-NC 4.0, not for commercial use: https://creativecommons.org") == 5
    assert len(world.downloads("qualiclip.pth")) == len(world.downloads("QualiCLIP+_spaq.pth")) == 1
    assert all(zoo.TABLE[name].is_cached for name in NAMES)

    folders = {path.name for path in zoo.TABLE["qualiclip"].folder.parent.iterdir()}
    assert folders == {zoo.TABLE[name].folder.name for name in NAMES if name != "tiny"}

    world.files.clear()  # the network is gone: all is in the cache
    world.requests.clear()
    for name in ("RN50", "qualiclip", "qualiclip+-spaq"):
        np.testing.assert_allclose(zoo.load(name).prompt_features, published().features[name], rtol=0, atol=1e-5)
    assert not world.requests


def test_scores_are_those_of_pytorch(world, capsys):
    """QualiCLIP+ from the files to the score, as IQA-PyTorch's options describe it."""
    import torch

    clip, features = published().clip, torch.tensor(published().features["qualiclip+"])
    pixels = np.random.default_rng(0).random((2, 64, 48, 3), np.float32)
    mean, std = torch.tensor((0.48145466, 0.4578275, 0.40821073)), torch.tensor((0.26862954, 0.26130258, 0.27577711))
    with torch.no_grad():
        images = ((torch.tensor(pixels) - mean) / std).permute(0, 3, 1, 2)
        encoded = torch.nn.functional.normalize(clip.encode_image(images, position=False), dim=-1)
        logits = 100 * torch.einsum("nd,pcd->npc", encoded, features) / 2
        theirs = logits.softmax(-1)[..., 0].mean(-1).numpy()
    model = QualiCLIP.load("qualiclip+")
    np.testing.assert_allclose(model.score(pixels), theirs, rtol=0, atol=1e-5)
    assert capsys.readouterr().err.count("not for commercial use") == 1
    assert model.provenance["licence"] == "CC BY-NC 4.0"
    assert model.provenance["prompts"] == "learned"
    assert model.provenance["sha256"].keys() == {"QualiCLIP.pth", "QualiCLIP+_koniq.pth"}
    assert QualiCLIP.load("qualiclip+").fingerprint == model.fingerprint
    assert capsys.readouterr().err == ""


def test_paths_and_repositories_of_others(world, tmp_path):
    tiny = zoo.load("tiny")
    for file in (path for path in zoo.TABLE["tiny"].folder.rglob("*") if path.is_file()):
        world.files[f"owner/checkpoint/{file.relative_to(zoo.TABLE['tiny'].folder).as_posix()}"] = file.read_bytes()
    world.files["owner/checkpoint/README.md"] = b"a model card"
    assert zoo.load("owner/checkpoint").fingerprint == tiny.fingerprint
    world.files["owner/weights/qualiclip.pth"] = world.files["releases/qualiclip.pth"]
    stored = published().features["qualiclip"]
    for _ in range(2):
        model = zoo.load("owner/weights@v1")
        np.testing.assert_allclose(model.prompt_features, stored, atol=1e-6)
    assert len(list((tmp_path / "cache/qualiclip_jax/models").glob("*/owner-weights-*"))) == 1
    assert "licence" not in model.provenance
    (tmp_path / "q.pth").write_bytes(world.files["releases/qualiclip.pth"])
    assert zoo.load(tmp_path / "q.pth").fingerprint == model.fingerprint
    checkpoint.save_model(tmp_path / "saved", model)
    assert zoo.load(str(tmp_path / "saved")).fingerprint == model.fingerprint


def test_names_that_are_none(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no model 'QualiClip': did you mean qualiclip? `qualiclip models`" in refusal("QualiClip")
    assert "did you mean RN50" in refusal("RN51")
    assert "did you mean ViT-B/32" in refusal("ViT-B-32")
    assert "did you mean ViT-B/16" in refusal("ViT-B/17")  # looks like a repository, which is not there
    assert "no weights ViT-B/17" in refusal("ViT-B/17")
    assert "did you mean qualiclip+-spaq" in refusal("qualiclip_plus-spaq")
    assert "`qualiclip models` lists the names" in refusal("something else")
    assert "did you mean" not in refusal("something else")
    assert "no such file or directory" in refusal("./RN50")
    assert "no such file or directory" in refusal(tmp_path / "x")
    assert "no weights nobody/nothing" in refusal("nobody/nothing")


def test_files_that_are_not_what_they_should_be(world, tmp_path):
    key = f"{REPOSITORY}/open_clip_model.safetensors"
    good = world.files[key]
    world.files[key] = good[:-4] + bytes(4)
    assert "is not the file that is known" in refusal("RN50")
    world.files[key] = good
    world.pages.add("timm/resnet101_clip.openai/open_clip_config.json")
    assert "no weights RN101 (timm/resnet101_clip.openai)" in refusal("RN101")
    world.pages.clear()
    np.testing.assert_allclose(zoo.load("RN50").prompt_features, published().features["RN50"], rtol=0, atol=1e-5)

    release = world.files["releases/qualiclip.pth"]
    for content, named in ((release[:-100], "truncated, corrupt"), (b"<!doctype html>", "truncated, corrupt")):
        world.files["releases/qualiclip.pth"] = content
        assert named in refusal("qualiclip")
    world.pages.add("releases/qualiclip.pth")
    assert "a web page came instead" in refusal("qualiclip")
    world.pages.clear()
    del world.files["releases/qualiclip.pth"]
    assert "404 Not Found" in refusal("qualiclip")
    world.files["releases/qualiclip.pth"] = release
    world.cut["releases/qualiclip.pth"] = [len(release) // 2]
    np.testing.assert_allclose(zoo.load("qualiclip").prompt_features, published().features["qualiclip"], atol=1e-6)

    del world.files[f"{zoo_table.IQA_PYTORCH}/QualiCLIP+_spaq.pth"]
    message = refusal("qualiclip+-spaq")
    assert "none of its files is known here" in message


def test_a_damaged_cache_is_made_again(world):
    model = zoo.load("qualiclip")
    folder = zoo.TABLE["qualiclip"].folder
    (folder / "model/manifest.ocdbt").unlink()
    assert zoo.load("qualiclip").fingerprint == model.fingerprint
    assert (folder / "model/manifest.ocdbt").exists()
    assert len(world.downloads("qualiclip.pth")) == 1


def test_a_disk_that_is_full_after_the_download(world, monkeypatch, capsys):
    def full(path, model):
        raise UserError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(checkpoint, "save_model", full)
    model = zoo.load("qualiclip")
    np.testing.assert_allclose(model.prompt_features, published().features["qualiclip"], atol=1e-6)
    assert "No space left on device: the model is not kept" in capsys.readouterr().err
    assert not zoo.TABLE["qualiclip"].is_cached


def test_prompt_learners_that_do_not_fit(world, tmp_path):
    import torch

    learner = {
        "ctx": torch.zeros(14, CONTEXT, 16),
        "token_prefix": torch.zeros(14, 1, 16),
        "token_suffix": torch.zeros(14, 60, 16),
    }
    faulty = {
        "missing": ({"ctx": learner["ctx"]}, "token_prefix, token_suffix missing"),
        "shapes": (learner | {"token_suffix": torch.zeros(14, 61, 16)}, "do not fit the text encoder"),
    }
    clip = zoo.build("RN50", text_encoder=True).clip
    for name, (tensors, message) in faulty.items():
        torch.save({"params": tensors}, tmp_path / name)
        assert message in refusal(tmp_path / name, lambda path: zoo._learned_features(path, clip))


def test_convert_takes_names_and_changes(world, tmp_path, capsys):
    assert cli.run(convert.main, ["qualiclip", "--out", str(tmp_path / "a"), "--temperature", "3"]) == 0
    model = checkpoint.load_model(tmp_path / "a")
    assert (model.temperature, len(model.prompts)) == (3.0, 7)
    arguments = ["clip-iqa", "--prompts", "Sharp image.", "Blurry image.", "--out", str(tmp_path / "b")]
    assert cli.run(convert.main, arguments) == 0
    np.testing.assert_allclose(
        checkpoint.load_model(tmp_path / "b").prompt_features, published().features["RN50"][1:2], rtol=0, atol=1e-5
    )
    assert cli.run(convert.main, ["RN5", "--out", str(tmp_path / "c")]) == 1
    assert "did you mean RN50" in capsys.readouterr().err


def test_the_list_of_models(world, capsys):
    assert cli.run(models_command.main, ["--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [facts["name"] for facts in listed] == list(zoo.TABLE)
    assert [facts["name"] for facts in listed if facts["here"]] == ["tiny"]
    assert {row["dataset"]: row["srcc"] for row in listed[1]["published"]}["koniq10k"] == 0.817
    assert cli.run(models_command.main, []) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in zoo.TABLE)
    assert max(map(len, output.splitlines())) < 150
