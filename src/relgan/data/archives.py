"""The files of a directory or a zip archive, read as streams; nothing is ever extracted."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from relgan.data.decode import EXTENSIONS, MAX_FILE_BYTES, Unusable
from relgan.options import ConfigError

# Number of the root, name within it.
Entry = tuple[int, str]

_OPTION = "dataset.path"


class Files:
    """Every regular file below one or more directories and zip archives.

    Names inside an archive are only labels, so ``../`` and absolute ones are harmless; links in it and the
    metadata that macOS adds are left out. Can be sent to other processes, each of which opens its own handles.

    Args:
        roots: directories and zip archives.
        option: that named them, for messages.

    Attributes:
        entries: every file, sorted.

    Raises:
        ConfigError: a root is missing, or is not a readable zip archive.
    """

    def __init__(self, roots: list[Path], option: str = _OPTION) -> None:
        self.roots, self._option = roots, option
        self._zips: dict[int, zipfile.ZipFile] = {}
        self.entries = sorted(
            (number, name)
            for number, root in enumerate(roots)
            for name in ((n for n, _ in _below(root)) if root.is_dir() else self._zip_names(number))
            if not _is_metadata(name)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zips": {}}

    def _zip(self, number: int) -> zipfile.ZipFile:
        if number not in self._zips:
            self._zips[number] = open_zip(self.roots[number], self._option)
        return self._zips[number]

    def _zip_names(self, number: int) -> Iterator[str]:
        for info in self._zip(number).infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield info.filename

    def open(self, entry: Entry) -> IO[bytes]:
        """A stream of one file."""
        number, name = entry
        root = self.roots[number]
        return (root / name).open("rb") if root.is_dir() else self._zip(number).open(name)

    def read(self, entry: Entry) -> bytes:
        """The bytes of one file; Unusable if they cannot be had whole or are too many."""
        try:
            with self.open(entry) as file:
                # zipfile never gives more than the declared size, whatever the stream would inflate to.
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise Unusable("damaged", str(error)) from error
        if not data:
            raise Unusable("empty", "the file is empty")
        if len(data) > MAX_FILE_BYTES:
            raise Unusable("too large", f"more than {MAX_FILE_BYTES >> 20} MiB")
        return data

    def matching(self, pattern: str) -> list[Entry]:
        """Entries whose file name matches the whole ``pattern``, case ignored; of equal names the first."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            name = entry[1].rsplit("/", 1)[-1]
            if re.fullmatch(pattern, name, re.IGNORECASE):
                found.setdefault(name, entry)
        return list(found.values())


def roots(path: str, archives: str) -> list[Path]:
    """The user's path and, if it is a directory, the zip archives directly in it named like ``archives``."""
    place = locate(path)
    if not place.is_dir():
        return [place]
    return [place, *sorted(file for file in place.glob("*.zip") if re.match(archives, file.name, re.IGNORECASE))]


def image_files(path: str, option: str = _OPTION) -> tuple[Files, list[Entry]]:
    """A directory or zip archive, and which of its files are images by their extension, sorted.

    Args:
        path: the user's.
        option: that named it, for messages.

    Raises:
        ConfigError: nothing is there, or no image file is in it.
    """
    files = Files([locate(path, option)], option)
    entries = [entry for entry in files.entries if entry[1].lower().endswith(EXTENSIONS)]
    if not entries:
        raise ConfigError(option, f"no image files ({' '.join(EXTENSIONS)}) in {path}")
    return files, entries


def locate(path: str, option: str = _OPTION) -> Path:
    """The user's path, expanded; ConfigError if nothing is there."""
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise ConfigError(option, f"{path} does not exist")
    return found


def open_zip(path: Path, option: str = _OPTION) -> zipfile.ZipFile:
    """Open an archive; ConfigError telling what the file is instead."""
    try:
        if looks_like_html(path):
            raise ConfigError(
                option,
                f"{path} is a web page (often about a quota), not an archive; download it again in a browser",
            )
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(option, f"{path} is not a complete zip archive ({error})") from error


def looks_like_html(path: Path) -> bool:
    """Whether a file that should be an archive is a web page."""
    with path.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


def identity(path: Path) -> str:
    """Changes when the file, or any file below the directory, is added, removed, renamed or rewritten."""
    digest = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape"))
    stats = {"": path.stat()} if path.is_file() else {name: file.stat() for name, file in _below(path)}
    for name, status in sorted(stats.items()):
        line = f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _below(folder: Path | str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Relative names and entries of the files below a directory; links to directories, perhaps circular, are left."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry


def _is_metadata(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith(".")
