"""Archives and folders as systems and tools make them, what damages them, and whom a message blames."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from relgan.data import PackedStore, prepare
from relgan.data.archives import as_text, image_files
from relgan.data.decode import Unusable
from relgan.metrics.reference import Pictures
from relgan.options import ConfigError

from .conftest import encode, make_folder, make_zip, options, picture

pytestmark = pytest.mark.usefixtures("cache")

PICTURES = {f"{folder}/{seed}.png": encode(picture(seed)) for seed, folder in enumerate(("cats", "cats", "dogs"))}


def folder(path: Path, **values: object) -> PackedStore:
    return prepare(options("folder", path=str(path), **values), progress=False)


def expected(*seeds: int) -> np.ndarray:
    return np.stack([np.asarray(picture(seed)) for seed in seeds])


class Stream(io.RawIOBase):
    """A pipe: nothing in it can be found again, so that sizes follow the data."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.written += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def _piped(path: Path) -> None:
    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for name, data in PICTURES.items():
            archive.writestr(name, data)
    path.write_bytes(stream.written)


def _zip64(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in PICTURES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)


def _renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda path: make_zip(path, {change(name): data for name, data in PICTURES.items()}) and None


def _from_windows(path: Path) -> None:
    folders = {"cats\\": b"", "dogs\\": b""}
    make_zip(path, {**folders, **{name.replace("/", "\\"): data for name, data in PICTURES.items()}})


def _behind_a_program(path: Path) -> None:
    make_zip(path, PICTURES)
    path.write_bytes(b"MZ a program that unpacks itself" * 100 + path.read_bytes())


@pytest.mark.parametrize(
    "make",
    [
        _from_windows,
        _piped,
        _zip64,
        _behind_a_program,
        _renamed(lambda name: f"./{name}"),
        _renamed(lambda name: f"/home/me/{name}"),
        _renamed(lambda name: f"C:\\pictures\\{name}"),
    ],
    ids=["backslashes", "piped", "zip64", "self-extracting", "dot", "absolute", "drive"],
)
def test_archives_of_any_system_and_tool(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "pictures.zip")
    store = folder(tmp_path / "pictures.zip", labels=True)
    np.testing.assert_array_equal(store.images, expected(0, 1, 2))
    assert (store.classes, store.labels.tolist()) == (["cats", "dogs"], [0, 0, 1])  # type: ignore[union-attr]
    assert store.meta["skipped"] == {}


@pytest.mark.parametrize(("written", "read"), [("猫".encode(), "猫"), ("é!".encode("cp437") + b"!", "é!!")])
def test_names_that_do_not_say_how_they_are_written(tmp_path: Path, written: bytes, read: str) -> None:
    """macOS writes UTF-8 and DOS its code page, neither marked."""
    path = make_zip(tmp_path / "pictures.zip", {"xxx/0.png": encode(picture(0)), "yyy/1.png": encode(picture(1))})
    path.write_bytes(path.read_bytes().replace(b"xxx", written))
    assert sorted(folder(path, labels=True).classes) == sorted([read, "yyy"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", encode(picture(5)))
        archive.writestr("./0.png", encode(picture(6)))
        archive.writestr("0.png", encode(picture(7)))
    np.testing.assert_array_equal(folder(path).images, expected(7))


def _flag_encrypted(data: bytearray, local: int, central: int) -> None:
    data[local + 6] |= 1
    data[central + 8] |= 1


def _compress(method: int) -> Callable[[bytearray, int, int], None]:
    def change(data: bytearray, local: int, central: int) -> None:
        data[local + 8] = data[central + 10] = method

    return change


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (_flag_encrypted, "encrypted", "it needs a password"),
        (_compress(9), "not supported", "Deflate64"),
        (_compress(98), "not supported", "method 98"),
    ],
    ids=["encrypted", "deflate64", "ppmd"],
)
def test_a_member_that_cannot_be_unpacked_is_not_called_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[..., None], reason: str, said: str
) -> None:
    path = make_zip(tmp_path / "pictures.zip", PICTURES)
    with zipfile.ZipFile(path) as archive:
        second = archive.getinfo("cats/1.png").header_offset
    data = bytearray(path.read_bytes())
    change(data, second, data.index(b"PK\1\2", data.index(b"PK\1\2") + 4))
    path.write_bytes(data)
    store = folder(path)
    np.testing.assert_array_equal(store.images, expected(0, 2))
    assert store.meta["skipped"] == {reason: 1}
    assert any(line.startswith("skipped cats/1.png: ") and said in line for line in caplog.messages)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("place", ["header", "start", "middle"])
def test_a_damaged_member_costs_no_other(tmp_path: Path, method: int, place: str) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for seed in range(3):
            archive.writestr(f"{seed}.png", encode(picture(seed), compress_level=0))
        member = archive.getinfo("1.png")
    first = member.header_offset + len("1.png") + 30
    offset = {"header": member.header_offset, "start": first, "middle": first + member.compress_size // 2}[place]
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = bytes(value ^ 0xFF for value in data[offset : offset + 8])
    path.write_bytes(data)
    store = folder(path)
    np.testing.assert_array_equal(store.images, expected(0, 2))
    assert store.meta["skipped"] == {"damaged": 1}


def test_a_damaged_directory_of_an_archive_raises_nothing_unforeseen(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "pictures.zip", {"0.png": encode(picture(0))}).read_bytes()
    start = whole.index(b"PK\1\2")
    harmed = tmp_path / "harmed.zip"
    for place in range(start, len(whole)):
        harmed.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(ConfigError):
            files, entries = image_files(str(harmed))
            for entry in entries:
                with suppress(Unusable):
                    files.read(entry)
    harmed.write_bytes(whole[: start + 20])
    with pytest.raises(ConfigError, match="is not a complete zip archive"):
        image_files(str(harmed))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_other_archives_are_told_what_is_accepted(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "pictures.tar"
    with tarfile.open(path, mode) as archive:
        archive.add(make_folder(tmp_path / "pictures", PICTURES))
    with pytest.raises(ConfigError, match=r"^dataset\.path: .* give a directory or a complete zip archive"):
        folder(path)


def test_a_pipe_is_no_data_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is neither a directory nor a file"):
        folder(tmp_path / "pipe")


HIDDEN = (".hidden", ".ipynb_checkpoints", ".Trash-1000/files", "__MACOSX", "lost+found", "$RECYCLE.BIN", "@eaDir")


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_hidden_folders_and_those_of_the_system_are_left_out(tmp_path: Path, make: Callable[..., Path]) -> None:
    hidden = {f"{name}/{place}/9.png": encode(picture(9)) for name in HIDDEN for place in ("", "cats")}
    deep = {f"cats/{name}/9.png": encode(picture(9)) for name in HIDDEN}
    store = folder(make(tmp_path / "pictures", {**PICTURES, **hidden, **deep}))
    np.testing.assert_array_equal(store.images, expected(0, 1, 2))
    assert store.meta["skipped"] == {}


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    assert len(folder(make_folder(tmp_path / ".cache" / "pictures", PICTURES))) == 3


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_endings_are_those_of_pillow_and_others_are_counted(
    tmp_path: Path, make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    jpeg = encode(picture(0), "JPEG")
    read = {"a.jfif": jpeg, "b.JPE": jpeg, "c.TIF": encode(picture(0), "TIFF"), "d.jp2": encode(picture(0), "JPEG2000")}
    passed = {"e.heic": b"", "f.HEIC": b"", "notes.txt": b"", "README": b""}
    store = folder(make(tmp_path / "pictures", {**read, **passed}))
    assert len(store) == 4
    assert store.meta["passed_over"] == {".heic": 2, "without ending": 1, ".txt": 1}
    assert "are passed over: 2 .heic, 1 without ending, 1 .txt" in caplog.text
    with pytest.raises(ConfigError, match=r"no image files \(\.jpg .*\) in .*; there are 2 \.heic, "):
        folder(make(tmp_path / "others", passed))


def linked(tmp_path: Path) -> Path:
    """Two folders of pictures, one of them linked from beside the other, and circles."""
    make_folder(tmp_path / "elsewhere" / "dogs", {"2.png": encode(picture(2)), "deep/3.png": encode(picture(3))})
    path = make_folder(tmp_path / "pictures", {"cats/0.png": encode(picture(0)), "cats/1.png": encode(picture(1))})
    (path / "a_link").symlink_to("cats")
    (path / "dogs").symlink_to("../elsewhere/dogs")
    (path / "dogs_again").symlink_to(tmp_path / "elsewhere" / "dogs")
    (path / "circle").symlink_to(path)
    (tmp_path / "elsewhere" / "dogs" / "back").symlink_to(path)
    return path


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    store = folder(linked(tmp_path), labels=True)
    np.testing.assert_array_equal(store.images, expected(0, 1, 2, 3))
    assert store.classes == ["cats", "dogs", "dogs/deep"]
    assert store.meta["skipped"] == {}


def test_a_change_behind_a_link_is_seen(tmp_path: Path) -> None:
    path = linked(tmp_path)
    assert len(folder(path)) == 4
    make_folder(tmp_path / "elsewhere" / "dogs", {"4.png": encode(picture(4))})
    assert len(folder(path)) == 5


def refuse(monkeypatch: pytest.MonkeyPatch, where: object, name: str, *refused: Path) -> None:
    """Let a function that takes a path first fail as without permission; root is allowed everything."""
    allowed = getattr(where, name)

    def call(path: object, *arguments: object, **named: object) -> object:
        if Path(str(path)) in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *arguments, **named)

    monkeypatch.setattr(where, name, call)


def test_what_cannot_be_read_is_named_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_folder(tmp_path / "pictures", {**PICTURES, "secret/9.png": b"", "cats/private.png": b""})
    (path / "gone.png").symlink_to("nowhere.png")
    (path / "itself.png").symlink_to("itself.png")
    refuse(monkeypatch, os, "scandir", path / "secret")
    refuse(monkeypatch, Path, "open", path / "cats" / "private.png")
    store = folder(path)
    np.testing.assert_array_equal(store.images, expected(0, 1, 2))
    assert store.meta["skipped"] == {"unreadable": 4}
    assert set(caplog.messages) >= {
        "skipped secret/: Permission denied",
        "skipped cats/private.png: Permission denied",
        "skipped gone.png: a link to nothing",
    }
    assert "skipped itself.png: " in caplog.text
    with pytest.raises(ConfigError, match=r"^images: \S+ cannot be read \(.*\); remove it$"):
        Pictures(str(path), "images")


def test_a_file_that_has_become_readable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_folder(tmp_path / "pictures", PICTURES)
    private = path / "cats" / "0.png"
    private.chmod(0)
    with monkeypatch.context() as patched:
        refuse(patched, Path, "open", private)
        patched.setattr(os, "access", lambda file, _: Path(file) != private)
        assert len(folder(path)) == 2
    private.chmod(0o600)
    complete = folder(path)
    assert len(complete) == 3
    private.chmod(0o644)
    assert folder(path).path == complete.path


def test_a_folder_or_archive_without_permission_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, archive = make_folder(tmp_path / "pictures", PICTURES), make_zip(tmp_path / "pictures.zip", PICTURES)
    refuse(monkeypatch, os, "scandir", path)
    refuse(monkeypatch, Path, "open", archive)
    for place in (path, archive):
        with pytest.raises(ConfigError, match=r"^dataset\.path: .* cannot be read \(Permission denied\)$"):
            folder(place)
    with pytest.raises(ConfigError, match=r"^dataset\.path: .* cannot be read \(Permission denied\)$"):
        prepare(options("cifar10", path=str(archive)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_lists_in_any_encoding(encoding: str) -> None:
    assert as_text("000001.jpg 0\r\n".encode(encoding)) == "000001.jpg 0\r\n"


def test_a_class_whose_name_is_no_text_gets_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_folder(tmp_path / "pictures", PICTURES)
    os.rename(path / "cats", os.fsencode(path) + b"/caf\xe9")  # noqa: PTH104
    (path / os.fsdecode(b"caf\xe9") / "9.png").write_bytes(b"damaged")
    store = folder(path, labels=True)
    assert store.classes == ["caf\\udce9", "dogs"]
    assert "caf\\udce9/9.png" in caplog.text
