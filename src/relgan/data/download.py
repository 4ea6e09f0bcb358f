"""Downloads that survive bad mirrors: resumed, checked, and never trusted before the checksum agrees."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from relgan.config import RelganError
from relgan.data.cache import cache_dir, locked, progress_bar
from relgan.data.files import looks_like_html

log = logging.getLogger("relgan")

_ATTEMPTS = 3
_TIMEOUT_S = 30
_BLOCK = 1 << 18
# URLError is an OSError, but a full disk is too: only those of the network lead to the next attempt.
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError)


class _BadMirror(Exception):
    """This mirror does not have the file."""


def download(name: str, urls: Sequence[str], md5: str) -> Path:
    """The file ``name`` in the cache, from the first mirror that delivers it whole.

    A connection that breaks is resumed, here or at the next mirror; bytes whose checksum is wrong are discarded.

    Args:
        name: of the file, perhaps in a directory.
        urls: mirrors in the order to try; one that ends in a slash is a directory holding ``name``.
        md5: of the whole file.

    Raises:
        RelganError: no mirror delivered it; the line says what each of them did.
    """
    target = cache_dir() / "downloads" / name
    with locked(target):
        if target.exists() and _md5(target) == md5:
            return target
        partial = target.with_name(f"{target.name}.partial")
        failures = []
        for url in (f"{url}{target.name}" if url.endswith("/") else url for url in urls):
            log.info("downloading %s", url)
            try:
                _fetch_whole(url, partial, md5)
            except _BadMirror as failure:
                log.warning("%s: %s", url, failure)
                failures.append(f"{url}: {failure}")
                continue
            partial.replace(target)
            return target
    raise RelganError(
        f"dataset.url: {name} cannot be downloaded ({'; '.join(failures)}); "
        "name another mirror, or a copy you have with dataset.path=PATH"
    )


def _fetch_whole(url: str, partial: Path, md5: str) -> None:
    """Bring ``partial`` to the right content; what is wrong is removed, what is only short is kept."""
    reason = "unreachable"
    for _ in range(_ATTEMPTS):
        try:
            complete = _fetch(url, partial)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # the range asked for starts behind the end: the partial file is not a part
                raise _BadMirror(f"HTTP {error.code} {error.reason}") from error
            partial.unlink()
            continue
        except _NETWORK_ERRORS as error:
            reason = str(error)
            continue
        if looks_like_html(partial):
            partial.unlink()
            raise _BadMirror("sent a web page instead of the file")
        if not complete:
            reason = "the connection broke"
            continue
        if _md5(partial) == md5:
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
            partial.open("ab" if have else "wb") as file,
            progress_bar(announced, f"downloading {partial.stem}") as advance,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                advance(len(block))
            return file.tell() >= have + announced


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
