"""Arrays on disk, and the hash of everything that a result depends on."""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import advice, arrays
from pipeline.artifacts.hashing import content_hash, identity
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StillhouseError
from pipeline.params.recipe import Recipe

HINT = "dvc repro fit_table@T-words"
CONTENT: dict[str, Any] = {
    "mean": np.arange(3.0),
    "words": np.arange(4, dtype=np.uint16),
    "t": np.float32(0.5),
}


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    about = {"teacher": "T", "made_by": "fit_table@T-words", "clusters": 4}
    arrays.write(tmp_path / "a.npz", CONTENT, about)
    found = arrays.read(tmp_path / "a.npz", HINT)
    assert list(found) == list(CONTENT)
    for name, array in CONTENT.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype
    assert arrays.read_about(tmp_path / "a.npz", HINT) == about
    assert list(arrays.read(tmp_path / "a.npz", HINT, ("words",))) == ["words"]


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    arrays.write(tmp_path / "a.npz", CONTENT, {"b": 1, "a": 2})
    arrays.write(tmp_path / "b.npz", CONTENT, {"a": 2, "b": 1})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}  # no clock in the file


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pickle"):
        arrays.write(tmp_path / "a.npz", {"mean": np.array([{}])})


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    for read in (arrays.read, arrays.read_about):
        with pytest.raises(MissingArtifactError) as caught:
            read(tmp_path / "a.npz", HINT)
        assert str(caught.value) == f"{tmp_path / 'a.npz'} does not exist. Make it with: {HINT}"


def damaged(path: Path, kind: str) -> None:
    arrays.write(path, CONTENT, {})
    content = path.read_bytes()
    match kind:
        case "text":
            path.write_text("no arrays")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped byte":
            start = content.index(np.arange(3.0).tobytes())
            path.write_bytes(content[:start] + b"\x01" + content[start + 1 :])
        case "header":
            start = content.index(b"NUMPY")
            path.write_bytes(content[:start] + b"XXXXX" + content[start + 5 :])
        case "npy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        case "pickled":
            np.savez(path, mean=np.array([{}]))
        case "folder":
            path.unlink()
            path.mkdir()
        case "another":
            arrays.write(path, {"x": np.zeros(1)}, {})


@pytest.mark.parametrize(
    "kind", ["text", "empty", "truncated", "flipped byte", "header", "npy", "pickled", "folder", "another"]
)
def test_a_damaged_file_is_reported_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    damaged(path, kind)
    with pytest.raises(DamagedArtifactError) as caught:
        arrays.read(path, HINT, ("mean",))
    line = str(caught.value)
    assert line.startswith(f"{path} cannot be read (")
    assert line.endswith(f"). {advice.again(HINT)}")
    assert "unsafe" not in line


def of_zip(content: bytes, name: str = "mean.npy", **attributes: Any) -> bytes:
    """Return an npz of one entry, which says of itself what it is told to."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content, **attributes)
    return buffer.getvalue()


def of_npy(shape: tuple[int, ...], data: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


HOSTILE = {
    "an array that no memory holds": of_zip(of_npy((1 << 50,), bytes(24))),
    "a size of too many digits": of_zip(of_npy((1 << 62, 1 << 62), bytes(24))),
    "fewer values than its shape": of_zip(of_npy((4,), bytes(24))),
    "more values than its shape": of_zip(of_npy((2,), bytes(24))),
    "zeros that unpack to more than the file": of_zip(of_npy((1 << 20,), bytes(8 << 20)), compress_type=8),
    "a header of brackets": of_zip(b"\x93NUMPY\x01\x00\xd0\x07" + b"(" * 2000),
    "a header that is no utf-8": of_zip(b"\x93NUMPY\x03\x00\x04\x00\x00\x00\xff\xff\xff\xff"),
    "an entry that is no array": of_zip(b"", "mean.txt"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("names", [None, ("mean",)])
def test_what_nobody_wrote_is_refused_before_it_is_unpacked(
    tmp_path: Path, kind: str, names: tuple[str, ...] | None
) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(DamagedArtifactError) as caught:
        arrays.read(path, HINT, names)
    assert str(caught.value).startswith(f"{path} cannot be read (")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_not_called_damaged(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every file can be read, so the system's answer is put in."""
    path = tmp_path / "a.npz"
    arrays.write(path, CONTENT, {})

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", refused)
    for read in (arrays.read, arrays.read_about):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            read(path, HINT)
        assert not isinstance(caught.value, StillhouseError)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))


def test_memory_that_is_short_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays.write(tmp_path / "a.npz", CONTENT, {})

    def full(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(zipfile.ZipFile, "read", full)
    with pytest.raises(MemoryError):
        arrays.read(tmp_path / "a.npz", HINT)


def test_arrays_that_say_nothing_of_themselves(tmp_path: Path) -> None:
    arrays.write(tmp_path / "a.npz", CONTENT)
    assert list(arrays.read(tmp_path / "a.npz", HINT)) == list(CONTENT)
    with pytest.raises(DamagedArtifactError, match=arrays.ABOUT):
        arrays.read_about(tmp_path / "a.npz", HINT)


def test_an_identity_is_that_of_all_its_parts() -> None:
    recipe = Recipe(epochs=3)
    assert identity(recipe, 1, "ab") == content_hash([recipe.model_dump(mode="json"), 1, "ab"])
    others = [identity(Recipe(epochs=4), 1, "ab"), identity(recipe, 2, "ab"), identity(recipe, "ab", 1)]
    assert len({identity(recipe, 1, "ab"), *others}) == 4
