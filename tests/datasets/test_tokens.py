"""Tokens are the same in every process, and no document decides what they are."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxdp._distribution import DISTRIBUTION
from jaxdp.datasets.sources import PADDING
from jaxdp.datasets.tokens import make_tokens

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [text]")

CANARY = "xylocanary"  # a word of a private document


def word_level(folder, unknown="[UNK]", **settings):
    """A tokenizer file with the words the, cat and sat."""
    model = tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "sat": 3}, unknown)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if settings.get("padded"):
        tokenizer.enable_padding(pad_id=3)
        tokenizer.enable_truncation(2)
    if settings.get("special") is not None:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[END] $A", special_tokens=[("[END]", settings["special"])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_bytes_are_utf8_plus_one():
    tokens = make_tokens("bytes", 99, 4)
    assert (tokens.vocabulary, PADDING) == (257, 0)
    encoded = tokens.encode(["ab", "", "\0é\x7f", "abcdefg"])
    assert encoded.dtype == np.int32
    expected = [[98, 99, 0, 0], [0, 0, 0, 0], [1, 0xC3 + 1, 0xA9 + 1, 0x80], [98, 99, 100, 101]]
    assert encoded.tolist() == expected


def test_words_are_hashed():
    tokens = make_tokens("hash", 1000, 6)
    one, same, other = tokens.encode(["The cat, 42!", "the  CAT , 42 !", "the dog , 42 !"])
    np.testing.assert_array_equal(one, same)
    assert (one != other).tolist() == [False, True, False, False, False, False]
    assert np.count_nonzero(one) == 5
    assert one[5] == PADDING
    assert tokens.encode(["  \n", ""]).tolist() == [[PADDING] * 6] * 2
    words = " ".join(f"word{i}" for i in range(5000))
    found = make_tokens("hash", 10, 5000).encode([words])[0]
    assert set(found.tolist()) == set(range(1, 10))
    counts = np.bincount(found)[1:]
    assert counts.min() > 450
    assert counts.max() < 660


@pytest.mark.slow
def test_the_hash_is_the_same_in_every_process():
    program = (
        "from jaxdp.datasets.tokens import make_tokens;"
        "print(make_tokens('hash', 16384, 4).encode(['a private review'])[0].tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "7"} | {"PYTHONPATH": ":".join(filter(None, sys.path))},
        check=True,
    ).stdout
    assert json.loads(found) == [5433, 12355, 8536, 0]
    here = make_tokens("hash", 16384, 4).encode(["a private review"])
    assert here.tolist() == [[5433, 12355, 8536, 0]]


@pytest.mark.parametrize("kind", ["bytes", "hash"])
def test_documents_do_not_decide_each_others_tokens(kind):
    documents = ["some words", "", "others that are longer than some words", "\udc80 lone"]
    tokens = make_tokens(kind, 500, 8)
    together = tokens.encode(documents)
    apart = [tokens.encode([document])[0] for document in documents]
    np.testing.assert_array_equal(together, apart)
    assert tokens.encode([]).shape == (0, 8)
    assert together.max() < tokens.vocabulary


def test_a_tokenizer_file_numbers_documents(tmp_path):
    tokens = make_tokens(str(word_level(tmp_path)), 99, 3)
    assert tokens.vocabulary == 5
    found = tokens.encode(["the cat", "dog sat the cat", ""])
    assert found.dtype == np.int32
    assert found.tolist() == [[2, 3, 0], [1, 4, 2], [0, 0, 0]]
    assert "declared public" in tokens.told
    assert str(tmp_path) not in tokens.about + tokens.told


def test_padding_and_truncation_of_the_file_count_for_nothing(tmp_path):
    tokens = make_tokens(str(word_level(tmp_path, padded=True)), 99, 4)
    assert tokens.encode(["the", "the cat sat the"]).tolist() == [[2, 0, 0, 0], [2, 3, 4, 2]]


def test_all_that_decides_tokens_is_told(tmp_path):
    file = str(word_level(tmp_path))
    first = make_tokens(file, 99, 4).about
    assert make_tokens(file, 98, 4).about == first  # it is of "hash" only
    word_level(tmp_path, unknown="[ANY]")  # a file as long as before
    about = {
        first,
        make_tokens(file, 99, 4).about,
        make_tokens(file, 99, 5).about,
        *(make_tokens("bytes", 99, length).about for length in (4, 5)),
        *(make_tokens("hash", size, length).about for size in (98, 99) for length in (4, 5)),
    }
    assert len(about) == 9


def junk(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    return folder / "tokenizer.json"


WRONG_FILES = {
    "missing": (lambda folder: folder / "none.json", "can't be read .no such file"),
    "misspelt": (lambda folder: "hsh", "'hsh', a file that can't be read"),
    "a folder": (lambda folder: folder, "can't be read .is a directory"),
    "empty": (lambda folder: junk(folder, b""), "is no tokenizer"),
    "no JSON": (lambda folder: junk(folder, b"the cat sat"), "is no tokenizer"),
    "other JSON": (lambda folder: junk(folder, b'{"a": 1}'), "is no tokenizer"),
    "not UTF-8": (lambda folder: junk(folder, b"\xff\xfe\0{"), "is no tokenizer"),
    "cut": (lambda folder: junk(folder, word_level(folder).read_bytes()[:90]), "is no tokenizer"),
    "no tokens": (
        lambda folder: junk(
            folder, tokenizers.Tokenizer(tokenizers.models.BPE()).to_str().encode()
        ),
        "has 0 tokens: give a tokenizer that was trained",
    ),
    "no unknown": (lambda folder: word_level(folder, unknown="[NONE]"), "token for unknown words"),
    "beyond": (lambda folder: word_level(folder, special=4), "beyond its 4 tokens"),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_tokenizer_files_are_one_line(wrong, tmp_path):
    make, message = WRONG_FILES[wrong]
    with pytest.raises(ValueError, match=message) as error:
        make_tokens(str(make(tmp_path)), 99, 4).encode([f"the {CANARY}"])
    assert len(str(error.value).splitlines()) == 1
    assert CANARY not in str(error.value)


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=rf"pip install '{DISTRIBUTION}\[text\]'"):
        make_tokens(str(word_level(tmp_path)), 99, 4)
