"""The files of a directory or a zip archive, read as streams; nothing is ever extracted."""

from __future__ import annotations

import codecs
import errno
import hashlib
import logging
import os
import posixpath
import re
import stat
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from relgan.data.decode import MAX_FILE_BYTES, Unusable, endings
from relgan.options import ConfigError, first_line, user_path

# Number of the root, name within it.
Entry = tuple[int, str]

_OPTION = "dataset.path"
_CLUTTER = frozenset({"__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "#recycle"})
_METHODS = {9: "Deflate64", 93: "Zstandard"}
_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11  # flags of a zip member

log = logging.getLogger("relgan")


class Files:
    """Every regular file below one or more directories and zip archives.

    Names inside an archive are only labels, so ``../`` and absolute ones are harmless, whatever system wrote them;
    of equal ones the last counts, as after unpacking. Links in an archive, and what is hidden or kept by a system for
    itself, are left out. Can be sent to other processes, each of which opens its own handles.

    Args:
        roots: directories and zip archives.
        option: that named them, for messages.

    Attributes:
        entries: every file, sorted.
        unreadable: name → reason, of the files and folders that cannot be read.

    Raises:
        ConfigError: a root cannot be read, or is not a zip archive.
    """

    def __init__(self, roots: list[Path], option: str = _OPTION) -> None:
        self.roots, self._option = roots, option
        self._zips: dict[int, tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]] = {}
        self.unreadable: dict[str, str] = {}
        self.entries: list[Entry] = []
        for number, root in enumerate(roots):
            names = self._listed(root) if root.is_dir() else self._zip(number)[1]
            self.entries += [(number, name) for name in sorted(names)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zips": {}}

    def _listed(self, root: Path) -> Iterable[str]:
        found, unreadable = _below(root, self._option)
        for name, reason in unreadable.items():
            log.warning("skipped %s: %s", printable(name), reason)
        self.unreadable |= unreadable
        return found

    def _zip(self, number: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        if number not in self._zips:
            archive = open_zip(self.roots[number], self._option)
            self._zips[number] = archive, _members(archive)
        return self._zips[number]

    @property
    def dropped(self) -> dict[str, int]:
        """What was left out, as :attr:`relgan.data.sources.Source.dropped` counts it."""
        return {"unreadable": len(self.unreadable)} if self.unreadable else {}

    @contextmanager
    def open(self, entry: Entry) -> Iterator[IO[bytes]]:
        """A stream of one file.

        Raises:
            Unusable: what is wrong with it, whether that shows at once or while it is read.
        """
        try:
            with self._stream(*entry) as file:
                yield file
        except (Unusable, ConfigError):
            raise
        except Exception as error:  # each decompressor has its own
            raise _unusable(error) from error

    def _stream(self, number: int, name: str) -> IO[bytes]:
        root = self.roots[number]
        if root.is_dir():
            return (root / name).open("rb")
        archive, members = self._zip(number)
        info = members[name]
        if info.flag_bits & _ENCRYPTED:
            raise Unusable("encrypted", "it needs a password")
        try:
            return archive.open(info)
        except RuntimeError as error:  # zipfile's word for what it was not made for
            method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise Unusable("not supported", f"compressed by {method}; pack it as an ordinary zip") from error

    def read(self, entry: Entry) -> bytes:
        """The bytes of one file; Unusable if they cannot be had whole or are too many."""
        with self.open(entry) as file:
            # zipfile never gives more than the declared size, whatever the stream would inflate to.
            data = file.read(MAX_FILE_BYTES + 1)
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


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The regular files of an archive by their names, with slashes on every system."""
    found = {}
    for info in archive.infolist():
        name = _name(info)
        if not (info.filename.endswith(("/", "\\")) or stat.S_ISLNK(info.external_attr >> 16) or _is_hidden(name)):
            found[name] = info
    return found


def _name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & _UTF8:
        # Then it should be in the code page of DOS, but macOS and others write UTF-8 without saying so.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _unusable(error: Exception) -> Unusable:
    if _of_file_system(error):
        return Unusable("unreadable", getattr(error, "strerror", "") or str(error))
    return Unusable("damaged", first_line(error))


def _of_file_system(error: Exception) -> bool:
    """Whether the file system refused a file; a decompressor's OSErrors have no number."""
    # EINVAL: a damaged archive names a place in itself that cannot be.
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def roots(path: str, archives: str) -> list[Path]:
    """The user's path and, if it is a directory, the zip archives directly in it named like ``archives``."""
    place = locate(path)
    if not place.is_dir():
        return [place]
    with reading(place):
        files = sorted(file for file in place.iterdir() if file.suffix.lower() == ".zip" and file.is_file())
    return [place, *(file for file in files if re.match(archives, file.name, re.IGNORECASE))]


def image_files(path: str, option: str = _OPTION) -> tuple[Files, list[Entry]]:
    """A directory or zip archive, and which of its files are images by their ending, sorted.

    Args:
        path: the user's.
        option: that named it, for messages.

    Raises:
        ConfigError: nothing is there, or no image file is in it.
    """
    files = Files([locate(path, option)], option)
    others = ", ".join(f"{count} {ending}" for ending, count in passed_over(files).items())
    entries = [entry for entry in files.entries if _ending(entry) in endings()]
    if not entries:
        there = f"; there are {others}" if others else ""
        raise ConfigError(option, f"no image files (.jpg .png .webp … as Pillow reads them) in {path}{there}")
    if others:
        log.warning("%s: files that are no images by their endings are passed over: %s", path, others)
    return files, entries


def passed_over(files: Files) -> dict[str, int]:
    """How many files have an ending that is no image's, by ending; the most frequent first."""
    found = Counter(_ending(entry) or "without ending" for entry in files.entries)
    return {ending: count for ending, count in found.most_common() if ending not in endings()}


def printable(name: str) -> str:
    """The name of a file; bytes of it that are no text are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _ending(entry: Entry) -> str:
    return posixpath.splitext(entry[1])[1].lower()


def locate(path: str, option: str = _OPTION) -> Path:
    """The user's path, expanded; ConfigError if nothing is there, or nothing that holds data."""
    found = user_path(path).absolute()
    with reading(found, option):
        if not found.exists():
            raise ConfigError(option, f"{path} does not exist")
        if not (found.is_dir() or found.is_file()):
            raise ConfigError(option, f"{path} is neither a directory nor a file")
    return found


@contextmanager
def reading(path: Path, option: str = _OPTION) -> Iterator[None]:
    """Turn what the file system refuses inside the block into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(option, f"{path} cannot be read ({error.strerror or error})") from error


def open_zip(path: Path, option: str = _OPTION) -> zipfile.ZipFile:
    """Open an archive; ConfigError telling what the file is instead."""
    with reading(path, option):
        if looks_like_html(path):
            raise ConfigError(
                option,
                f"{path} is a web page (often about a quota), not an archive; download it again in a browser",
            )
        try:
            return zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory of the archive raises nearly anything
            if _of_file_system(error):
                raise
            accepted = "give a directory or a complete zip archive; unpack others (.tar, .7z, .rar)"
            raise ConfigError(
                option, f"{path} is not a complete zip archive ({first_line(error)}); {accepted}"
            ) from error


def looks_like_html(path: Path) -> bool:
    """Whether a file that should be an archive is a web page."""
    with path.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


def as_text(data: bytes) -> str:
    """The text of a list or annotation: UTF-8 or, where it begins with that mark, UTF-16; without the mark."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", "replace")


def identity(*paths: Path) -> str:
    """Changes when a file, or one below a directory, is added, removed, renamed, rewritten or made readable."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"\0{path.resolve()}".encode("utf-8", "surrogateescape"))
        found: Mapping[str, Path | os.DirEntry[str]] = {"": path} if path.is_file() else _below(path, _OPTION)[0]
        for name in sorted(found):
            with suppress(FileNotFoundError):  # deleted since it was listed
                status, readable = found[name].stat(), os.access(found[name], os.R_OK)
                line = f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}\0{readable}"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def beside(path: Path, patterns: Sequence[str]) -> list[Path]:
    """Files whose names from the folder of ``path`` match one of the ``patterns``; those of the first pattern first."""
    return [found for pattern in patterns for found in sorted(path.parent.glob(pattern)) if found.is_file()]


def _below(root: Path, option: str) -> tuple[dict[str, os.DirEntry[str]], dict[str, str]]:
    """The files below a directory, and what cannot be read there: relative name → entry, relative name → reason.

    Linked directories are followed, each directory once and first under its own name, so that circles end.

    Raises:
        ConfigError: the directory itself cannot be read.
    """
    files: dict[str, os.DirEntry[str]] = {}
    unreadable: dict[str, str] = {}
    seen: set[Path] = set()
    own, linked = deque([("", str(root))]), deque[tuple[str, str]]()

    def take(name: str, entry: os.DirEntry[str]) -> None:
        if entry.is_dir():
            (linked if entry.is_symlink() else own).append((f"{name}/", entry.path))
        elif entry.is_file():
            files[name] = entry
        elif entry.is_symlink():
            unreadable[name] = "a link to nothing"

    while own or linked:
        folder, path = own.popleft() if own else linked.popleft()
        with _noting(folder, unreadable):
            for entry in _unseen(path, seen):
                with _noting(folder + entry.name, unreadable):
                    take(folder + entry.name, entry)
    if "" in unreadable:
        raise ConfigError(option, f"{root} cannot be read ({unreadable['']})")
    return files, unreadable


@contextmanager
def _noting(name: str, unreadable: dict[str, str]) -> Iterator[None]:
    """Note what the file system refuses inside the block."""
    try:
        yield
    except OSError as error:
        unreadable[name] = error.strerror or str(error)


def _unseen(path: str, seen: set[Path]) -> list[os.DirEntry[str]]:
    """What is in a directory and not hidden, sorted; nothing if the directory was seen before."""
    place = Path(path).resolve()
    if place in seen:
        return []
    seen.add(place)
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if not _is_hidden(entry.name)), key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    """Whether a file, or a folder above it, is hidden or kept by a system for itself."""
    return any(part in _CLUTTER or (part.startswith(".") and part != "..") for part in name.split("/"))
