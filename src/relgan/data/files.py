"""The files of a directory or a zip archive, read as streams; nothing is ever extracted."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relgan.config import ConfigError
from relgan.data.decode import MAX_FILE_BYTES, Unusable


class Files:
    """Every regular file below one or more directories and zip archives.

    Names inside an archive are only labels, so ``../`` and absolute ones are harmless; links in it and the
    metadata that macOS adds are left out. Can be sent to other processes, each of which opens its own handles.

    Args:
        roots: directories and zip archives.

    Attributes:
        entries: (root number, name within it), sorted.

    Raises:
        ConfigError: a root is missing, or is not a readable zip archive.
    """

    def __init__(self, roots: list[Path]) -> None:
        self.roots = roots
        self._zips: dict[int, zipfile.ZipFile] = {}
        self.entries = sorted(
            (number, name)
            for number, root in enumerate(roots)
            for name in (_directory_names(root) if root.is_dir() else self._zip_names(number))
            if not _is_metadata(name)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zips": {}}

    def _zip(self, number: int) -> zipfile.ZipFile:
        if number not in self._zips:
            self._zips[number] = open_zip(self.roots[number])
        return self._zips[number]

    def _zip_names(self, number: int) -> Iterator[str]:
        for info in self._zip(number).infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield info.filename

    def read(self, entry: tuple[int, str]) -> bytes:
        """The bytes of one file; Unusable if they cannot be had whole or are too many."""
        number, name = entry
        root = self.roots[number]
        try:
            if root.is_dir():
                with (root / name).open("rb") as file:
                    return file.read(MAX_FILE_BYTES + 1)
            info = self._zip(number).getinfo(name)
            if info.file_size > MAX_FILE_BYTES:
                raise Unusable("too large", f"more than {MAX_FILE_BYTES >> 20} MiB")
            # zipfile never returns more than the declared size, whatever the stream would inflate to.
            return self._zip(number).read(info)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise Unusable("damaged", str(error)) from error


def locate(path: str) -> Path:
    """The user's path, expanded; ConfigError if nothing is there."""
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise ConfigError("dataset.path", f"{path} does not exist")
    return found


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive; ConfigError telling what the file is instead."""
    if looks_like_html(path):
        raise ConfigError(
            "dataset.path",
            f"{path} is a web page (often about a quota), not an archive; download it again in a browser",
        )
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError("dataset.path", f"{path} is not a complete zip archive ({error})") from error


def looks_like_html(path: Path) -> bool:
    """Whether a file that should be an archive is a web page."""
    with path.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


def identity(path: Path) -> str:
    """Changes when the file, or any file below the directory, is added, removed, renamed or rewritten."""
    digest = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape"))
    names = sorted(_directory_names(path)) if path.is_dir() else [""]
    for name in names:
        status = (path / name).stat()
        line = f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _directory_names(root: Path) -> Iterator[str]:
    """Relative names of the files below ``root``; links to directories, perhaps circular, are not followed."""
    for folder, _, names in os.walk(root):
        prefix = os.path.relpath(folder, root)
        for name in names:
            relative = name if prefix == "." else f"{prefix}/{name}"
            if (root / relative).is_file():
                yield relative


def _is_metadata(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith(".")
