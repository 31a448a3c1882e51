"""Prompts: stored ids against another tokenizer, refusals by name, features."""

import json

import numpy as np
import pytest

from qualiclip_jax import models, prompts
from qualiclip_jax.errors import UserError
from tests.small_models import build_clip

TINY = models.CLIPConfig(
    32, models.ViTConfig(1, 64, 1, 16, 32), models.TextConfig(1, 64, 1, vocab_size=49408), position="none"
)


@pytest.fixture(scope="module")
def clip():
    return build_clip(TINY)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A CLIP tokenizer cut down to the words of the published prompts (and single letters), with CLIP's ids."""
    path = tmp_path_factory.mktemp("tokenizer")
    ids = {"<|startoftext|>": prompts.START, "<|endoftext|>": prompts.END}
    merges, spare = [], iter(range(50_000, 60_000))
    for letter in "abcdefghijklmnopqrstuvwxyz.-'":
        ids[letter], ids[letter + "</w>"] = next(spare), next(spare)
    for text, tokens in prompts._KNOWN.items():
        for word, token in zip(text.lower().replace("-", " - ").replace(".", " .").split(), tokens):
            pieces = [*word[:-1], word[-1] + "</w>"]
            while len(pieces) > 1:  # merge from the end, so that merges of different words share suffixes, not prefixes
                merged = "".join(pieces[-2:])
                merges.append(" ".join(pieces[-2:]))
                pieces[-2:] = [merged]
                ids.setdefault(merged, next(spare))
            ids[pieces[0]] = token
    (path / "vocab.json").write_text(json.dumps(ids))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return path


def test_stored_ids_are_those_of_another_tokenizer():
    tokenizer = pytest.importorskip("instant_clip_tokenizer").Tokenizer()
    texts = [text for pair in prompts.PAIRS for text in pair]
    theirs = tokenizer.tokenize_batch(texts, context_length=77).astype(np.int32)
    np.testing.assert_array_equal(prompts.tokenize(prompts.PAIRS).reshape(-1, 77), theirs)


def test_transformers_tokenizer_gives_the_stored_ids(tokenizer_dir):
    own = (
        ("Good photo.", "bad  PHOTO."),
        *prompts.PAIRS,
    )  # not among the known texts, so transformers tokenizes them all
    tokens = prompts.tokenize(own, tokenizer_dir)
    np.testing.assert_array_equal(tokens[0], prompts.tokenize(prompts.PAIRS)[0])
    np.testing.assert_array_equal(tokens[1:], prompts.tokenize(prompts.PAIRS))


def test_pairs_are_seven_and_positive_first():
    assert len(prompts.PAIRS) == 7
    assert prompts.PAIRS[0] == ("Good photo.", "Bad photo.")
    assert prompts.check_prompts([text for pair in prompts.PAIRS for text in pair]) == prompts.PAIRS


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "none given"),
        (["Crisp.", "Dull.", "Vivid."], "'Vivid.'"),
        ("Crisp.", "'Crisp.'"),
        (["Crisp.", "  "], "number 2 is empty"),
        ([("Crisp.", "Dull.", "Vivid.")], "a pair is two texts"),
        ([("Crisp.", 3)], "number 2"),
        (["sharp " * 76, "Dull."], "78 tokens"),
    ],
)
def test_faulty_prompts_are_refused_by_name(given, named):
    with pytest.raises(UserError, match="prompts: ") as refusal:
        prompts.check_prompts(given)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_too_many_tokens_in_few_words_are_refused(tokenizer_dir):
    assert prompts.tokenize([("q" * 75, "Bad photo.")], tokenizer_dir)[0, 0, -1] == prompts.END  # 77 exactly
    with pytest.raises(UserError, match="78 tokens"):
        prompts.tokenize([("q" * 76, "Bad photo.")], tokenizer_dir)


def test_own_prompts_need_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"'Crisp\.'.*name a CLIP tokenizer"):
        prompts.tokenize([("Crisp.", "Dull.")])
    with pytest.raises(UserError, match="no tokenizer in"):
        prompts.tokenize([("Crisp.", "Dull.")], tmp_path)
    with pytest.raises(UserError, match="nobody/nothing: not in the cache") as refusal:
        prompts.tokenize([("Crisp.", "Dull.")], "nobody/nothing")
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_that_does_not_know_a_letter_is_refused(tokenizer_dir):
    with pytest.raises(UserError, match=r"cannot write '5 stars\.'"):
        prompts.tokenize([("5 stars.", "Bad photo.")], tokenizer_dir)


def test_text_features_are_unit_vectors_of_the_right_prompt(clip):
    features = prompts.text_features(clip)
    assert features.shape == (7, 2, 32)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-6)
    swapped = prompts.text_features(clip, [prompts.PAIRS[3][::-1]])
    np.testing.assert_allclose(swapped[0], features[3, ::-1], atol=1e-6)


def test_text_features_refuse_a_foreign_vocabulary(clip):
    import dataclasses

    class Small:
        config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=300))

    with pytest.raises(UserError, match="300 tokens"):
        prompts.text_features(Small())


def test_random_text_features():
    features = prompts.random_text_features(3, 8, seed=1)
    np.testing.assert_allclose(features.reshape(6, 8) @ features.reshape(6, 8).T, np.eye(6), atol=1e-6)
    np.testing.assert_array_equal(features, prompts.random_text_features(3, 8, seed=1))
    assert np.abs(features - prompts.random_text_features(3, 8, seed=2)).max() > 0.1
    crowded = prompts.random_text_features(3, 4)
    np.testing.assert_allclose(np.linalg.norm(crowded, axis=-1), 1, atol=1e-6)
