"""Downloads that survive bad mirrors: resumed, checked, and never trusted before the checksum agrees."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from relgan.cache import Refused, cache_dir, discard, load_or_make, writing
from relgan.data.archives import looks_like_html
from relgan.options import ConfigError, RelganError
from relgan.progress import progress_bar

log = logging.getLogger("relgan")

_ATTEMPTS = 3
_TIMEOUT_S = 15
_BLOCK = 1 << 18


class _Broken(Exception):
    """The connection ended early; another attempt may go on from there."""


class _BadMirror(Exception):
    """This mirror does not have the file."""


class DownloadError(RelganError):
    """No mirror delivered a file; the message says what each of them did."""


def download(name: str, urls: Sequence[str], checksum: str) -> Path:
    """A file of a data set, kept in the cache; where that cannot be written, in a temporary folder.

    Args:
        name: of the file there, perhaps in a directory.
        urls, checksum: see :func:`fetch`.

    Raises:
        ConfigError: no mirror delivered it.
        Refused: neither place can be written.
    """
    try:
        return fetch(cache_dir() / "downloads" / name, urls, checksum)
    except DownloadError as error:
        advice = "name another mirror, or a copy you have with dataset.path=PATH"
        raise ConfigError("dataset.url", f"{name} could not be downloaded ({error}); {advice}") from error


def fetch(target: Path, urls: Sequence[str], checksum: str) -> Path:
    """The file ``target``, from the first mirror that delivers it whole where it is not there yet, or damaged.

    A connection that breaks is resumed, here or at the next mirror; bytes whose checksum is wrong are discarded.

    Args:
        urls: mirrors in the order to try; one that ends in a slash is a directory holding the file.
        checksum: "md5:HEX" or "sha256:HEX" of the whole file; the beginning of HEX is enough.

    Returns:
        ``target``, or its stand-in in a temporary folder where that cannot be written.

    Raises:
        DownloadError: no mirror delivered it.
        Refused: neither place can be written.
    """

    def checked(path: Path) -> Path:
        if not _is_right(path, checksum):
            raise ValueError("wrong checksum")
        return path

    return load_or_make(target, checked, lambda path: _from_mirrors(path, urls, checksum))


def _from_mirrors(target: Path, urls: Sequence[str], checksum: str) -> Path:
    partial = target.with_name(f"{target.name}.partial")
    failures: list[str] = []
    for url in (f"{url}{target.name}" if url.endswith("/") else url for url in urls):
        if failures:
            log.warning("%s; trying another mirror", failures[-1])
        log.info("downloading %s", url)
        try:
            _fetch_whole(url, partial, checksum)
        except _BadMirror as failure:
            failures.append(f"{url}: {failure}")
            continue
        except Refused:
            with contextlib.suppress(OSError):
                discard(partial)  # it would keep the disk full
            raise
        with writing(target):
            if target.is_dir():
                discard(target)
            partial.replace(target)
        return target
    raise DownloadError("; ".join(failures))


def _fetch_whole(url: str, partial: Path, checksum: str) -> None:
    """Bring ``partial`` to the right content; what is wrong is removed, what is only short is kept."""
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            complete = _fetch(url, partial)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code != 416:  # the range asked for starts behind the end: the partial file is not a part
                raise _BadMirror(reason) from error
            partial.unlink()
            continue
        except (urllib.error.URLError, ValueError) as error:  # unreachable, or no URL at all
            raise _BadMirror(str(error)) from error
        except (_Broken, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(error)
            continue
        if looks_like_html(partial):
            partial.unlink()
            raise _BadMirror("sent a web page instead of the file")
        if not complete:
            reason = "the connection broke"
            continue
        if _is_right(partial, checksum):
            return
        reason = "wrong checksum"
        partial.unlink()
    raise _BadMirror(reason)


def _fetch(url: str, partial: Path) -> bool:
    """Append to ``partial`` what is missing, or start over; whether as much arrived as was announced."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "relgan", **({"Range": f"bytes={have}-"} if have else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
        span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != 206 or span is None or int(span[1]) != have:
            have = 0
        announced = int(response.headers.get("Content-Length", 0))
        with (
            writing(partial),
            partial.open("ab" if have else "wb") as file,
            progress_bar(announced, f"downloading {partial.stem}", unit="MB") as bar,
        ):
            for block in _blocks(response):
                file.write(block)
                bar.advance(len(block))
            return file.tell() >= have + announced


def _blocks(response: Any) -> Iterator[bytes]:
    """What arrives; a connection that breaks raises _Broken, to tell it from a full disk: both are OSErrors."""
    try:
        while block := response.read(_BLOCK):
            yield block
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(str(error)) from error


def _is_right(path: Path, checksum: str) -> bool:
    kind, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    return digest.hexdigest().startswith(expected.lower())
