from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from freewheel.data import fashion
from freewheel.data.download import download
from freewheel.data.fashion import fashion_mnist
from freewheel.data.files import DataFile
from freewheel.data.idx import encode
from freewheel.errors import ConfigurationError, DataError

CONTENT = bytes(range(256)) * 4000  # a megabyte: several blocks
FILE = DataFile("set.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Server:
    """A web server of this test alone: `pages` by path; `cut` paths break off half way."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                page = outer.pages.get(self.path)
                if page is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page[: len(page) // 2] if self.path in outer.cut else page)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone(server: Server, tmp_path: Path) -> None:
    server.pages["/set.bin"] = CONTENT
    path = download(FILE, f"{server.url}/set.bin", tmp_path / "new" / "folder", quiet=True)
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["set.bin"]


def test_progress_is_a_plain_line_without_a_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pages["/set.bin"] = CONTENT
    download(FILE, f"{server.url}/set.bin", tmp_path)
    assert capsys.readouterr().err == f"downloading {server.url}/set.bin (1.0 MB)\n"
    download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_on_a_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    server.pages["/set.bin"] = CONTENT
    download(FILE, f"{server.url}/set.bin", tmp_path)
    assert "set.bin" in capsys.readouterr().err
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_download_that_breaks_off_is_named_and_starts_again(server: Server, tmp_path: Path) -> None:
    server.pages["/set.bin"] = CONTENT
    server.cut.add("/set.bin")
    with pytest.raises(DataError, match=f"was truncated: 512000 of {len(CONTENT)} bytes came"):
        download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert names_in(tmp_path) == []
    server.cut.clear()
    assert download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True).read_bytes() == CONTENT


def test_an_http_error_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set\.bin failed: HTTP 404 Not Found.*FREEWHEEL_DATA"):
        download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert names_in(tmp_path) == []


def test_a_bad_sum_is_named(server: Server, tmp_path: Path) -> None:
    wrong = b"x" + CONTENT[1:]
    server.pages["/set.bin"] = wrong
    sums = f"expected sha256 {FILE.sha256}, got {hashlib.sha256(wrong).hexdigest()}"
    with pytest.raises(DataError, match=f"bad checksum: {sums}; nothing was kept"):
        download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert names_in(tmp_path) == []


def test_another_page_is_named(server: Server, tmp_path: Path) -> None:
    server.pages["/set.bin"] = b"<html>log in first</html>"
    with pytest.raises(DataError, match=rf"expected {len(CONTENT)} bytes, got 25 \(truncated\)"):
        download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert names_in(tmp_path) == []


def test_a_page_that_is_too_long_is_not_read_to_its_end(server: Server, tmp_path: Path) -> None:
    server.pages["/set.bin"] = CONTENT * 5
    with pytest.raises(DataError, match=f"expected {len(CONTENT)} bytes, got") as caught:
        download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    got = int(str(caught.value).split("got ")[1].split(";")[0])
    assert len(CONTENT) < got < 2 * len(CONTENT)
    assert names_in(tmp_path) == []


def test_an_old_file_stays_until_the_new_one_is_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(b"old")
    with pytest.raises(DataError):
        download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert (tmp_path / "set.bin").read_bytes() == b"old"


def test_without_a_network_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/set.bin"
        with pytest.raises(DataError, match=r"no answer from the network .*put set\.bin into"):
            download(FILE, url, tmp_path, quiet=True)
    assert names_in(tmp_path) == []


@pytest.mark.timeout(30)  # far above the limit given, and below any default
def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/set.bin"
        with pytest.raises(DataError, match=r"no answer from the network .*timed out"):
            download(FILE, url, tmp_path, quiet=True, timeout_s=0.1)


def test_a_folder_that_cannot_be_written_is_named_before_the_network_is_asked(
    server: Server, tmp_path: Path
) -> None:
    server.pages["/set.bin"] = CONTENT
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write to the folder .*file.*FREEWHEEL_CACHE"):
        download(FILE, f"{server.url}/set.bin", tmp_path / "file", quiet=True)
    assert server.requests == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/x", "set.bin"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="`url` must start with http"):
        download(FILE, url, tmp_path)


def test_leftovers_of_a_killed_download_go_after_a_day(server: Server, tmp_path: Path) -> None:
    server.pages["/set.bin"] = CONTENT
    old, young, other = (tmp_path / name for name in ("set.bin.1.part", "set.bin.2.part", "b.1.part"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    download(FILE, f"{server.url}/set.bin", tmp_path, quiet=True)
    assert names_in(tmp_path) == ["b.1.part", "set.bin", "set.bin.2.part"]


@pytest.fixture
def tiny_fashion(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Serves a Fashion-MNIST of twenty images."""
    pixels = np.array([[[index, 0], [0, index]] for index in range(20)], np.uint8)
    contents = [encode(pixels), encode(np.arange(20, dtype=np.uint8) % 10)]
    files = tuple(
        DataFile(file.name, len(content), hashlib.sha256(content).hexdigest())
        for file, content in zip(fashion.FILES["test"], contents, strict=True)
    )
    monkeypatch.setitem(fashion.FILES, "test", files)
    for file, content in zip(files, contents, strict=True):
        server.pages[f"/base/{file.name}"] = content
    return server


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_set_is_downloaded_once(tiny_fashion: Server, cache: Path, slash: str) -> None:
    for _ in range(2):
        data = fashion_mnist("test", url=f"{tiny_fashion.url}/base{slash}", quiet=True)
    assert len(data) == 20
    assert data.images[7, 0].tolist() == [[7, 0], [0, 7]]
    assert len(tiny_fashion.requests) == 2
    assert len(names_in(cache / "fashion-mnist")) == 2


def test_a_damaged_file_in_the_cache_is_named(tiny_fashion: Server, cache: Path) -> None:
    fashion_mnist("test", url=f"{tiny_fashion.url}/base", quiet=True)
    file = cache / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: expected .*truncated.*; delete it"):
        fashion_mnist("test", url=f"{tiny_fashion.url}/base", quiet=True)


def test_the_official_files_pass_through_a_download(big_data: Path, server: Server, cache: Path) -> None:
    for file in fashion.FILES["test"]:
        server.pages[f"/{file.name}"] = (big_data / "fashion-mnist" / file.name).read_bytes()
    data = fashion_mnist("test", url=server.url, quiet=True)
    assert data.labels.bincount().tolist() == [1000] * 10
    assert len(server.requests) == 2
