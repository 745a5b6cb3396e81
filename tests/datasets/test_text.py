"""Characters: windows share nothing, and nothing is learnt from the text."""

import numpy as np
import pytest

from jaxdp.datasets import text


def test_windows_cover_the_text_without_overlap(tmp_path):
    file = tmp_path / "a.txt"
    letters = "".join(map(chr, range(32, 127))) * 3
    file.write_text(letters, encoding="utf-8")
    inputs, targets = text.read_windows(str(file), 9)
    assert inputs.shape == targets.shape == (28, 9)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    windows = np.concatenate([inputs, targets[:, -1:]], axis=1).reshape(-1)
    assert "".join(text.CHARACTERS[code] for code in windows) == letters[:280]


def test_the_vocabulary_does_not_depend_on_the_text():
    codes = text.encode("\nA~é語\t")
    assert codes.tolist() == [0, 34, 95, text.UNKNOWN, text.UNKNOWN, text.UNKNOWN]
    assert codes.dtype == np.uint8
    assert text.VOCABULARY_SIZE == 97


@pytest.mark.parametrize(
    ("content", "window", "message"),
    [
        (b"abc", 64, "has 3 characters: too few"),
        (b"\xff\xfe" * 100, 9, "is not UTF-8 from byte 0 on"),
        (b"abc", 0, "windows of 0 characters"),
        (None, 9, r"can't be read \(no such file or directory\): put it there"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, window, message):
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text.read_windows(str(file), window)
