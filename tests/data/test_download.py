"""Downloads from a local server: one that breaks off, one that sends other bytes, and archives that lead out."""

import hashlib
import http.client
import io
import re
import shutil
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dual_cross_attention.data import FGVC_DATASETS, load_fgvc
from dual_cross_attention.data import download as downloads
from dual_cross_attention.data.download import ATTEMPTS, Archive, download, fetch
from dual_cross_attention.errors import InputError
from tests.helpers import assert_refused, assert_says

CUB = {
    "classes.txt": "1 001.Crow\n2 002.Wren\n",
    "images.txt": "".join(f"{n} c/{n}.png\n" for n in range(1, 5)),
    "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n4 0\n",
}


def tar_of(files: dict[str, str], *members: tuple[str, bytes, str]) -> bytes:
    """A .tar.gz of files, and of further members: name, type, target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return buffer.getvalue()


class Server:
    """Serves one file.

    Attributes:
        content: of the file.
        breaks: for each of the next requests, after how many bytes it ends; then none does.
        ranges: whether it honors Range.
        requests: the header Range of each request.
    """

    def __init__(self, content: bytes):
        self.content, self.breaks, self.ranges, self.requests = content, [], True, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers["Range"]
                outer.requests.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and outer.ranges else 0
                if start and start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", f"{len(body)}")
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                self.end_headers()
                self.wfile.write(body[: outer.breaks.pop(0)] if outer.breaks else body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/birds.tgz?download=1"

    def archive(self, md5: str | None = None, folder: str = "CUB_200_2011") -> Archive:
        return Archive(self.url, md5 or hashlib.md5(self.content).hexdigest(), len(self.content), folder)


@pytest.fixture
def serve(monkeypatch) -> Callable[[bytes], Server]:
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = []

    def start(content: bytes) -> Server:
        running.append(Server(content))
        return running[-1]

    yield start
    for server in running:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def cub(serve, tmp_path) -> Server:
    return serve(tar_of({f"CUB_200_2011/{name}": text for name, text in CUB.items()} | {"attributes.txt": "x"}))


def test_a_broken_connection_continues_where_it_ended(cub, tmp_path):
    cub.breaks = [100, 50, 0]
    seen = []
    folder = download(cub.archive(), tmp_path / "data", lambda done, total: seen.append((done, total)))
    assert cub.requests == [None, "bytes=100-", "bytes=150-", "bytes=150-"]
    assert seen[-1] == (len(cub.content), len(cub.content))
    assert {path.name: path.read_text() for path in folder.iterdir()} == CUB
    assert [path.name for path in (tmp_path / "data").iterdir() if not path.name.endswith(".lock")] == ["CUB_200_2011"]
    assert download(cub.archive(), tmp_path / "data") == folder and len(cub.requests) == 4  # it is there


def test_the_next_command_continues(cub, tmp_path):
    cub.breaks = [100] + [0] * 10
    with pytest.raises(InputError) as caught:
        download(cub.archive(), tmp_path)
    assert_says(caught.value, "100 bytes", "continues")
    cub.breaks, cub.requests[:] = [], []
    assert download(cub.archive(), tmp_path).is_dir() and cub.requests == ["bytes=100-"]


def test_a_server_without_ranges_starts_over(cub, tmp_path):
    cub.ranges, cub.breaks = False, [100]
    download(cub.archive(), tmp_path)
    assert cub.requests == [None, "bytes=100-"]


def test_a_whole_file_that_was_not_unpacked_is_not_requested_again(cub, tmp_path):
    fetch(cub.url, tmp_path / "birds.tgz.part")
    download(cub.archive(), tmp_path)
    assert len(cub.requests) == 1


def test_another_checksum_is_refused(cub, tmp_path):
    with pytest.raises(InputError) as caught:
        download(cub.archive(md5="0" * 32), tmp_path)
    assert_says(caught.value, "0" * 32, hashlib.md5(cub.content).hexdigest())
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]  # nothing of it stays


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", tarfile.REGTYPE, ""),
        ("CUB_200_2011/../../evil", tarfile.REGTYPE, ""),
        ("CUB_200_2011/link", tarfile.SYMTYPE, "/etc"),
        ("CUB_200_2011/link", tarfile.SYMTYPE, "../../evil"),
        ("CUB_200_2011/link", tarfile.LNKTYPE, "../evil"),
        ("CUB_200_2011/device", tarfile.CHRTYPE, ""),
    ],
)
def test_archives_that_lead_out_are_refused(serve, tmp_path, member):
    server = serve(tar_of({"CUB_200_2011/classes.txt": "x"}, member))
    with pytest.raises(InputError) as caught:
        download(server.archive(), tmp_path / "a" / "data")
    assert_says(caught.value, "cannot be unpacked")
    there = [path for path in tmp_path.rglob("*") if not path.is_dir() and not path.name.endswith((".lock", ".part"))]
    assert not there and not (tmp_path / "a" / "data" / "CUB_200_2011").exists()


@pytest.mark.parametrize(
    "content",
    [b"no archive", tar_of({"other/x": "y"}), tar_of({"CUB_200_2011/x": "y"})[:-20]],
    ids=["no archive", "another folder", "damaged"],
)
def test_damaged_and_other_archives_are_refused(serve, tmp_path, content):
    with pytest.raises(InputError):
        download(serve(content).archive(), tmp_path)
    assert not (tmp_path / "CUB_200_2011").exists()


def test_attempts_without_progress_are_counted(cub, tmp_path):
    """Also where a server cannot continue, and the file is shorter again; and where no byte came yet."""
    cub.ranges, cub.breaks = False, [200] + [100, 150] * 50
    with pytest.raises(InputError):
        fetch(cub.url, tmp_path / "file")
    assert len(cub.requests) == 1 + ATTEMPTS - 1
    cub.ranges, cub.breaks, cub.requests[:] = True, [0] * (ATTEMPTS - 1), []
    fetch(cub.url, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == cub.content and len(cub.requests) == ATTEMPTS


def test_a_folder_that_is_empty_or_incomplete_is_not_the_dataset(cub, tmp_path):
    archive = replace(cub.archive(), contents=("classes.txt", "images.txt"))
    folder = tmp_path / archive.folder
    folder.mkdir()
    assert download(archive, tmp_path) == folder and (folder / "images.txt").is_file()
    (folder / "images.txt").unlink()
    with pytest.raises(InputError) as caught:
        download(archive, tmp_path)
    assert_says(caught.value, folder, "images.txt")
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(InputError) as caught:
        download(archive, tmp_path)
    assert_says(caught.value, folder, "not a folder")


def test_what_is_not_there_is_refused(cub, tmp_path):
    cub.http.RequestHandlerClass.do_GET = lambda self: self.send_error(404)
    with pytest.raises(InputError) as caught:
        fetch(cub.url, tmp_path / "file")
    assert_says(caught.value, "HTTP 404", tmp_path)


@pytest.mark.parametrize("place", ["connect", "answer", "content"])
def test_a_network_that_fails_is_said(cub, tmp_path, monkeypatch, place):
    """No route and TLS are OSErrors too, and not of the folder."""
    error = OSError(113, "No route to host")

    def fail(*_, **__):
        raise urllib.error.URLError(error) if place == "connect" else error

    if place == "content":
        monkeypatch.setattr(http.client.HTTPResponse, "read", fail)
    else:
        monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(InputError) as caught:
        download(cub.archive(), tmp_path)
    assert_says(caught.value, "download of", "failed", "No route to host")
    assert "cannot write" not in f"{caught.value}"


def test_a_folder_that_cannot_be_written_is_said(cub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        download(cub.archive(), tmp_path / "file" / "data")


def test_commands(cub, dcal, tmp_path, monkeypatch):
    """`dcal download`, and `--download true` without a data_root."""
    monkeypatch.chdir(tmp_path)
    entry = FGVC_DATASETS["cub"]
    monkeypatch.setitem(FGVC_DATASETS, "cub", type(entry)(**vars(entry) | {"archive": cub.archive()}))
    listed = dcal("download")
    assert listed.status == 0 and "dcal download cub" in listed.out and "market1501" in listed.out
    done = dcal("download", "cub", "--data_root", "there")
    assert done.status == 0 and f"{tmp_path}/there/CUB_200_2011" in done.out
    assert dcal("download", "cub", "--data_root", "there/CUB_200_2011").status == 0 and len(cub.requests) == 1
    (tmp_path / "there/CUB_200_2011/images").mkdir()
    assert load_fgvc("cub", "there", download=True).classes == ["001.Crow", "002.Wren"] and len(cub.requests) == 1
    with pytest.raises(InputError) as caught:
        load_fgvc("cub", None, download=True)
    assert_says(caught.value, f"{tmp_path}/data/CUB_200_2011/images")
    assert len(cub.requests) == 2
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setenv("DCAL_DATA", f"{tmp_path}/elsewhere")
    assert dcal("download", "cub").status == 0 and (tmp_path / "elsewhere" / "CUB_200_2011").is_dir()
    assert_refused(dcal("download", "market1501"), "market1501", "http")
    assert_refused(dcal("download", "birds"), "birds", "aircraft")


def test_published_archives():
    for name in ("cub", "aircraft"):
        archive = FGVC_DATASETS[name].archive
        assert archive.url.startswith("https://") and re.fullmatch("[0-9a-f]{32}", archive.md5)
        assert archive.file_name in ("CUB_200_2011.tgz", "fgvc-aircraft-2013b.tar.gz")
