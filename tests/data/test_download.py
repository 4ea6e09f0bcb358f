"""Downloads against a server on this machine that plays the mirrors."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from relgan.data.download import download, fetch
from relgan.options import ConfigError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"

Handler = BaseHTTPRequestHandler


def unavailable(handler: Handler) -> None:
    handler.send_error(503)


def missing(handler: Handler) -> None:
    handler.send_error(404)


def web_page(handler: Handler) -> None:
    send(handler, b"<!DOCTYPE html><html>Too many downloads</html>")


def tampered(handler: Handler) -> None:
    send(handler, b"\0" + CONTENT[1:])


def send(handler: Handler, data: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def cuts_off(handler: Handler) -> None:
    """Announces everything, sends a third, and closes; ignores ranges."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:100_000])


def serves(handler: Handler) -> None:
    """A good mirror, which knows ranges."""
    wanted = handler.headers.get("Range")
    if wanted is None:
        send(handler, CONTENT)
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(CONTENT):
        handler.send_error(416)
    else:
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        send(handler, CONTENT[start:], 206, Content_Range=span)


class Mirrors:
    """One loopback server; the first part of a path names how it behaves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.names = {"data.bin"}
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, *behaviours: Callable[[Handler], None]) -> list[str]:
        return [f"{self.url}/{behaviour.__name__}/" for behaviour in behaviours]


@pytest.fixture
def mirrors() -> Iterator[Mirrors]:
    class Play(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour, name = self.path.strip("/").split("/", 1)
            assert name in served.names
            served.asked.append((behaviour, self.headers.get("Range")))
            globals()[behaviour](self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Play)
    served = Mirrors(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_fourth_mirror_completes_what_the_third_began(
    cache: Path, mirrors: Mirrors, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relgan")
    path = download("data.bin", mirrors(unavailable, web_page, cuts_off, serves), MD5)
    assert path.read_bytes() == CONTENT
    assert [behaviour for behaviour, _ in mirrors.asked] == ["unavailable", "web_page", *["cuts_off"] * 3, "serves"]
    assert mirrors.asked[-1] == ("serves", "bytes=100000-")
    assert "HTTP 503" in caplog.text
    assert "sent a web page instead of the file" in caplog.text
    assert "the connection broke" in caplog.text
    assert [file.name for file in (cache / "downloads").iterdir() if not file.name.startswith(".")] == ["data.bin"]


def test_a_finished_download_is_not_fetched_again(cache: Path, mirrors: Mirrors) -> None:
    for _ in range(2):
        download("data.bin", mirrors(serves), MD5)
    assert len(mirrors.asked) == 1


def test_a_finished_download_that_changed_is_fetched_again(cache: Path, mirrors: Mirrors) -> None:
    download("data.bin", mirrors(serves), MD5).write_bytes(CONTENT[:-1])
    assert download("data.bin", mirrors(serves), MD5).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "partial", [CONTENT[:1], CONTENT[:200_000], b"other bytes", CONTENT + b"and more", b"\0" + CONTENT[1:]]
)
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_partial_file_is_completed_or_replaced_but_never_trusted(
    cache: Path, mirrors: Mirrors, partial: bytes, knows_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not knows_ranges:
        monkeypatch.setitem(globals(), "serves", lambda handler: send(handler, CONTENT))
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / "data.bin.partial").write_bytes(partial)
    assert download("data.bin", [f"{mirrors.url}/serves/"], MD5).read_bytes() == CONTENT


def test_a_wrong_checksum_is_never_accepted(cache: Path, mirrors: Mirrors) -> None:
    assert download("data.bin", mirrors(tampered, serves), MD5).read_bytes() == CONTENT


def test_where_it_cannot_be_written_a_temporary_folder_serves(
    cache: Path, mirrors: Mirrors, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "downloads" / "data.bin.partial").mkdir(parents=True)
    path = download("data.bin", mirrors(serves), MD5)
    assert path.read_bytes() == CONTENT
    assert not path.is_relative_to(cache)
    assert "data.bin.partial cannot be written (Is a directory): using a temporary folder" in caplog.text


@pytest.mark.parametrize("checksum", [MD5, SHA256, SHA256[:15]], ids=["md5", "sha256", "prefix"])
def test_a_checksum_of_either_kind_or_its_beginning(tmp_path: Path, mirrors: Mirrors, checksum: str) -> None:
    assert fetch(tmp_path / "new" / "data.bin", mirrors(tampered, serves), checksum).read_bytes() == CONTENT


def test_when_all_mirrors_fail_one_line_says_what_each_did(cache: Path, mirrors: Mirrors) -> None:
    urls = [*mirrors(missing, web_page, cuts_off, tampered), "http://127.0.0.1:9/data.bin", "data.bin"]
    with pytest.raises(ConfigError) as caught:
        download("data.bin", urls, MD5)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("dataset.url: data.bin could not be downloaded (")
    for reason in (
        "HTTP 404",
        "sent a web page",
        "the connection broke",
        "wrong checksum",
        "refused",
        "unknown url type",
    ):
        assert reason in message
    assert "dataset.path=PATH" in message
    assert not (cache / "downloads" / "data.bin").exists()
