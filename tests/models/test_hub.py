"""`pull` against a hub of this test's own: real requests of huggingface_hub, on the loopback."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tenuto.errors import CheckpointError, ConfigError
from tenuto.models.checkpoint import locate, locate_adapter
from tenuto.models.hub import Pulled, free_bytes_at, pull
from tests.conftest import make_registry

REPO, COMMIT = "owner/name", "0123456789abcdef0123456789abcdef01234567"
# A hub on this machine, and disks that fill: too slow for the fast group.
pytestmark = pytest.mark.models
SHARD, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
# Larger than one read of the downloader's, so that a connection can break between two.
WEIGHTS = bytes(range(256)) * 2**16
SMALL = {"config.json", "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"}
REFUSED = {"pytorch_model.bin", "model.pt", "consolidated.00.pth", "args.pkl", "model.gguf"}
REFUSED |= {"consolidated.safetensors", "modeling_own.py", "README.md", "original/params.json"}
CHECKPOINT = {SHARD: WEIGHTS, SECOND: b"second" * 1000, **dict.fromkeys(SMALL | REFUSED, b"{}")}
TAKEN = {SHARD, SECOND, *SMALL}
LORA_TAKEN = {"adapter_config.json", "adapter_model.safetensors"}
LORA = dict.fromkeys(LORA_TAKEN | {"adapter_model.bin", "optimizer.safetensors"}, b"{}")


@dataclass
class Hub:
    """What the hub has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(CHECKPOINT))
    commit: str = COMMIT
    # Sent in place of the first shard.
    corrupt: bytes | None = None
    # How often a connection breaks near the end of the first shard.
    breaks: int = 0
    # A status and its X-Error-Code, for the parts of addresses.
    refusals: dict[str, tuple[int, str]] = field(
        default_factory=lambda: {"/owner/other/": (404, "RepoNotFound")}
    )
    # Method, path and Range header.
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def got(self, name: str) -> list[str | None]:
        """The Range header of each download of a file."""
        return [part for how, path, part in self.requests if how == "GET" and name in path]

    def described(self, name: str) -> dict[str, object]:
        content = self.files[name]
        row = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 135}
        return {**row, "lfs": lfs} if name.endswith(".safetensors") else row


class Handler(BaseHTTPRequestHandler):
    """The routes that `pull` needs, answered as huggingface.co answers them."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.requests.append((self.command, path, self.headers["Range"]))
        refused = [answer for part, answer in hub.refusals.items() if part in path]
        route = re.fullmatch(f"/(api/models/)?{REPO}/(revision|tree|resolve)/(.+)", path)
        if refused and self.command == "GET":
            self.send(refused[0][0], b"{}", {"X-Error-Code": refused[0][1]})
        elif route is None or (route[1] and route[3] not in ("main", "v1", "refs/1", hub.commit)):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif route[2] == "revision":
            self.send(200, json.dumps({"id": REPO, "sha": hub.commit}).encode())
        elif route[2] == "tree":
            folder = {"type": "directory", "path": "original", "oid": "0" * 40}
            rows = [folder, *map(hub.described, hub.files)]
            self.send(200, json.dumps(rows).encode())
        else:
            self.send_file(route[3].removeprefix(f"{hub.commit}/"))

    do_HEAD = do_GET

    def send_file(self, name: str) -> None:
        content = self.hub.files[name]
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{sha256(content)}"'}
        if name.endswith(".safetensors"):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if name == SHARD and self.hub.corrupt is not None:
            content = self.hub.corrupt
        if self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], headers)
        else:
            self.send(200, content, headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.hub.breaks and self.command == "GET" and SHARD in self.path:
            self.hub.breaks -= 1
            self.close_connection = True
            body = body[: len(body) * 7 // 8]
        self.wfile.write(body if self.command == "GET" else b"")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def names_in(pulled: Pulled) -> set[str]:
    found = [path for path in pulled.directory.rglob("*") if path.is_file()]
    return {path.relative_to(pulled.directory).as_posix() for path in found}


def test_safetensors_configs_and_tokenizer_are_taken_and_nothing_else(hub: Hub) -> None:
    pulled = pull(REPO, None, endpoint=f"{hub.url}/")
    assert names_in(pulled) == TAKEN
    assert (pulled.directory / SHARD).read_bytes() == WEIGHTS
    assert names_in(pull(REPO, None, endpoint=hub.url, code=True)) == {*TAKEN, "modeling_own.py"}


@pytest.mark.parametrize("revision", [None, "v1", "refs/1", COMMIT])
def test_the_download_is_pinned_and_found_by_its_revision(
    hub: Hub, cache: Path, revision: str | None
) -> None:
    pulled = pull(REPO, revision, endpoint=hub.url)
    assert pulled.commit == COMMIT
    assert locate(REPO, revision, cache) == locate(REPO, COMMIT, cache) == pulled.directory
    files = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{COMMIT}/" in path for path in files)


def test_a_newer_commit_is_taken_and_the_old_one_stays(hub: Hub, cache: Path) -> None:
    old = pull(REPO, None, endpoint=hub.url)
    hub.commit, hub.files["config.json"] = "f" * 40, b'{"new": true}'
    # Its weights are there already, and need no room.
    new = pull(REPO, None, endpoint=hub.url, free_bytes=lambda _: 2**26 + 1000)
    assert locate(REPO, None, cache) == new.directory != old.directory
    assert (old.directory / "config.json").read_bytes() == b"{}"
    assert len(hub.got(SHARD)) == 1


def test_a_lora(hub: Hub, cache: Path) -> None:
    hub.files = dict(LORA)
    pulled = pull(REPO, None, adapter=True, endpoint=hub.url)
    assert names_in(pulled) == LORA_TAKEN
    assert locate_adapter(REPO, cache) == pulled.directory


def test_a_broken_connection_is_resumed(hub: Hub) -> None:
    hub.breaks = 1
    pulled = pull(REPO, None, endpoint=hub.url)
    assert (pulled.directory / SHARD).read_bytes() == WEIGHTS
    first, second = hub.got(SHARD)
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").rstrip("-")) > 0


def test_an_ended_pull_goes_on_with_the_files_that_lack(hub: Hub, cache: Path) -> None:
    hub.refusals[SHARD] = (403, "")
    with pytest.raises(CheckpointError, match="answered with status 403"):
        pull(REPO, COMMIT, endpoint=hub.url)
    assert locate(REPO, COMMIT, cache) is None
    del hub.refusals[SHARD]
    assert names_in(pull(REPO, COMMIT, endpoint=hub.url)) == TAKEN
    assert len(hub.got(SECOND)) == 1


def test_a_wrong_checksum(hub: Hub, cache: Path) -> None:
    hub.corrupt = b"!" + WEIGHTS[1:]
    with pytest.raises(CheckpointError, match=f"{SHARD}: differs from the hub's size or checksum"):
        pull(REPO, None, endpoint=hub.url)
    assert locate(REPO, None, cache) is None
    assert b"!" not in {path.read_bytes()[:1] for path in cache.rglob("blobs/*")}
    hub.corrupt = None
    assert (pull(REPO, None, endpoint=hub.url).directory / SHARD).read_bytes() == WEIGHTS
    assert len(hub.got(SECOND)) == 1


def test_what_rotted_on_the_disk_is_found_and_fetched_again(hub: Hub, cache: Path) -> None:
    pulled = pull(REPO, None, endpoint=hub.url)
    (pulled.directory / SHARD).write_bytes(b"!" + WEIGHTS[1:])
    with pytest.raises(CheckpointError, match="pull again"):
        pull(REPO, None, endpoint=hub.url)
    assert locate(REPO, None, cache) is None
    pull(REPO, None, endpoint=hub.url)
    assert (pulled.directory / SHARD).read_bytes() == WEIGHTS
    assert locate(REPO, None, cache) == pulled.directory


def test_too_little_disk(hub: Hub, cache: Path) -> None:
    asked: list[Path] = []

    def free(directory: Path) -> int:
        asked.append(directory)
        return 2**26

    with pytest.raises(CheckpointError, match=r"needs 0\.1 GiB more, and .* has 0\.1 GiB free"):
        pull(REPO, None, endpoint=hub.url, free_bytes=free)
    assert asked == [cache]
    assert free_bytes_at(cache) > 0
    assert not hub.got(SHARD)
    pull(REPO, None, endpoint=hub.url)
    # What is there needs no more room. Before the first pull the folder was not there.
    pull(REPO, None, endpoint=hub.url, free_bytes=free)


@pytest.mark.parametrize(
    ("missing", "adapter", "message"),
    [
        (SHARD, False, "has no safetensors weights"),
        ("config.json", False, "has no config.json"),
        ("adapter_config.json", True, "has no adapter_config.json"),
        ("adapter_model.safetensors", True, "has no adapter_model.safetensors"),
    ],
)
def test_a_repo_without_what_is_served(hub: Hub, missing: str, adapter: bool, message: str) -> None:
    hub.files = dict(LORA if adapter else {SHARD: WEIGHTS, "config.json": b"{}"})
    del hub.files[missing]
    with pytest.raises(CheckpointError) as caught:
        pull(REPO, None, adapter=adapter, endpoint=hub.url)
    assert caught.value.message == f"{REPO}: {message}"
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        (REPO, "nope", "owner/name: has no revision nope"),
        ("owner/other", None, r"127\.0\.0\.1:\d+ has no such repo, or it needs your HF_TOKEN"),
        ("a/b/c", None, "a/b/c: is not the name of a repo"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: Hub, source: str, revision: str | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        pull(source, revision, endpoint=hub.url)
    assert "\n" not in caught.value.message


def test_a_commit_that_is_none(hub: Hub) -> None:
    hub.commit = "../../elsewhere"
    with pytest.raises(CheckpointError, match="names no commit for revision main"):
        pull(REPO, None, endpoint=hub.url)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated: accept its terms at the hub, and set HF_TOKEN"),
        (500, "", "answered with status 500"),
    ],
)
def test_a_hub_that_refuses(hub: Hub, status: int, code: str, message: str) -> None:
    hub.refusals["/api/"] = (status, code)
    with pytest.raises(CheckpointError, match=message):
        pull(REPO, None, endpoint=hub.url)


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="while HF_HUB_OFFLINE is set"):
        pull(REPO, None, endpoint=hub.url)


def test_an_unreachable_hub_and_no_credentials_in_the_error(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        pull(REPO, None, endpoint="http://user:secret@127.0.0.1:9")
    assert caught.value.message == f"{REPO}: 127.0.0.1:9 cannot be reached (ConnectError)"


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "http://", "http://hub:port"])
def test_an_endpoint_that_is_none(cache: Path, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="no address such as"):
        pull(REPO, None, endpoint=endpoint)


@pytest.mark.parametrize("how", ["HF_ENDPOINT", "--endpoint"])
def test_the_command(hub: Hub, cache: Path, tmp_path: Path, how: str) -> None:
    lora = {"id": "lora", "source": REPO}
    make_registry(tmp_path, [{"id": "far", "source": REPO, "revision": "v1", "loras": [lora]}])
    arguments = ["models", "pull", "far", "--registry", str(tmp_path / "registry.yaml")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    if how == "HF_ENDPOINT":
        environment[how] = hub.url
    else:
        arguments += [how, hub.url]
    command = [str(Path(sys.executable).with_name("tenuto")), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
    assert ended.stdout.splitlines() == [str(snapshot), f"revision: {COMMIT}"]
    assert "100%" in ended.stderr
