"""nginx and Caddy, real ones, with the configurations of deploy/ in front of a scripted server."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from scripts.benchmarks.peers import free_port
from tenuto.access.keys import Keys
from tenuto.wire.bounds import Bounds
from tests.conftest import MODEL, Running, Serve
from tests.deploy.conftest import (
    DEPLOY,
    HOST,
    Installed,
    child,
    nginx_command,
    replaced,
    wait_listening,
)
from tests.engines import StepwiseBackend, StepwiseEngine
from tests.sse import DONE, chat_body

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(120)]
USER = {"authorization": "Bearer sk-user"}
ADMIN = {"authorization": "Bearer sk-admin"}
PACKAGES = {"nginx": "nginx-light", "caddy": "caddy"}


@dataclass(frozen=True)
class Proxied:
    """A server with one step to give, and a client that has the proxy's address alone."""

    name: str
    server: Running
    client: httpx.Client
    log: Path

    def engine(self) -> StepwiseEngine:
        engine = self.server.engine()
        assert isinstance(engine, StepwiseEngine)
        return engine


def nginx_files(folder: Path, tls: Path, upstream: str, port: int) -> list[str | Path]:
    text = (DEPLOY / "nginx" / "tenuto.conf").read_text()
    site = replaced(text, {"server 127.0.0.1:8000": f"server {upstream}"})
    return nginx_command(folder, tls, site, port)


def caddy_files(folder: Path, tls: Path, upstream: str, port: int) -> list[str | Path]:
    site = replaced(
        (DEPLOY / "caddy" / "Caddyfile").read_text(),
        {
            f"{HOST} {{": f"https://localhost:{port} {{\n\tbind 127.0.0.1\n"
            f"\ttls {tls}/chain.pem {tls}/key.pem",
            "127.0.0.1:8000": upstream,
        },
    )
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + site)
    return ["/usr/bin/caddy", "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]


FILES = {"nginx": nginx_files, "caddy": caddy_files}


@pytest.fixture(params=["nginx", "caddy"])
def proxied(
    request: pytest.FixtureRequest,
    installed: Installed,
    certificate: Path,
    serve: Serve,
    tmp_path: Path,
) -> Iterator[Proxied]:
    name: str = request.param
    installed(PACKAGES[name])
    server = serve(backend=StepwiseBackend(), keys=Keys(["sk-user"], ["sk-admin"]))
    port, log = free_port(), tmp_path / "proxy.log"
    folder = tmp_path / name
    folder.mkdir()
    command = FILES[name](folder, certificate, urlsplit(server.url).netloc, port)
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    trusted = ssl.create_default_context(cafile=certificate / "chain.pem")
    with child(command, log, home) as process:
        wait_listening(process, port, log)
        address = f"https://localhost:{port}"
        with httpx.Client(base_url=address, verify=trusted, headers=USER, timeout=10) as client:
            yield Proxied(name, server, client, log)


@contextmanager
def streaming(proxied: Proxied) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
    path, body = "/v1/chat/completions", chat_body(stream=True)
    with proxied.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        yield response, (line for line in response.iter_lines() if line)


def test_each_event_is_passed_on_as_it_comes(proxied: Proxied) -> None:
    engine = proxied.engine()
    with streaming(proxied) as (_, lines):
        for number, letter in enumerate("reply", start=1):
            next(line for line in lines if f'"content":"{letter}"' in line)
            # All else is still in the engine, which waits.
            assert engine.handed == number
            engine.allowed = number + 1
            proxied.server.call(engine.go.set)
        engine.allowed = None
        proxied.server.call(engine.go.set)
        assert list(lines)[-1] == f"data: {DONE}"


def test_a_client_that_leaves_ends_its_request(proxied: Proxied) -> None:
    with streaming(proxied) as (_, lines):
        next(lines)
        assert proxied.engine().running == 1
    proxied.server.wait(proxied.engine().idle)
    proxied.server.left()


def test_so_does_one_that_waits_for_a_whole_answer(proxied: Proxied) -> None:
    proxied.server.call(proxied.engine().go.clear)
    with pytest.raises(httpx.ReadTimeout):
        proxied.client.post("/v1/chat/completions", json=chat_body(), timeout=0.5)
    proxied.server.wait(proxied.engine().started)
    proxied.server.wait(proxied.engine().idle)
    proxied.server.left()


def test_the_request_id_passes_in_both_directions(proxied: Proxied) -> None:
    named = proxied.client.get("/v1/models", headers={"x-request-id": "mine-1"})
    unnamed = proxied.client.get("/v1/models")
    assert named.headers.get_list("x-request-id") == ["mine-1"]
    assert len(unnamed.headers["x-request-id"]) == 32


def test_the_owner_is_not_known_through_it(proxied: Proxied) -> None:
    """The proxy is on this host, its clients are not, whatever they say."""
    for claim in ({}, {"x-forwarded-for": "127.0.0.1"}, {"x-real-ip": "127.0.0.1"}):
        for key in ({"authorization": ""}, USER, ADMIN):
            assert proxied.client.get("/metrics", headers={**claim, **key}).status_code == 403
        refused = proxied.client.get("/admin/models", headers={**claim, **ADMIN})
        assert refused.status_code == 403
        assert "off for other hosts" in refused.json()["error"]["message"]
    assert proxied.client.get("/admin/models").status_code == 403
    assert proxied.client.get("/admin/models", headers={"authorization": ""}).status_code == 401
    assert proxied.server.client.get("/admin/models", headers=ADMIN).status_code == 200
    assert proxied.server.client.get("/metrics").status_code == 200


def completion_of(size: int) -> bytes:
    """A request of exactly so many bytes."""
    empty = json.dumps({"model": MODEL, "prompt": ""})
    return json.dumps({"model": MODEL, "prompt": "a" * (size - len(empty))}).encode()


def test_the_largest_request_passes_and_one_byte_more_does_not(proxied: Proxied) -> None:
    limit = Bounds().body_bytes
    whole = proxied.client.post("/v1/completions", content=completion_of(limit))
    assert whole.status_code == 400
    assert "maximum context length" in whole.json()["error"]["message"]
    larger = proxied.client.post("/v1/completions", content=completion_of(limit + 1))
    assert larger.status_code == 413
    assert larger.json()["error"]["code"] == "413"


def test_while_the_server_is_away(proxied: Proxied) -> None:
    proxied.server.process.should_exit = True
    proxied.server.wait_ended()
    response = proxied.client.get("/v1/models")
    if proxied.name == "nginx":
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert response.json()["error"]["type"] == "ServiceUnavailableError"
    else:
        assert response.status_code == 502


@pytest.mark.parametrize("proxied", ["nginx"], indirect=True)
def test_the_log_names_the_request_and_no_key(proxied: Proxied, tmp_path: Path) -> None:
    proxied.client.get("/v1/models", headers={"x-request-id": "mine-2"})
    proxied.client.close()
    lines = (tmp_path / "nginx" / "access.log").read_text()
    assert '"GET /v1/models HTTP/1.1" 200' in lines
    assert " mine-2\n" in lines
    assert "sk-user" not in lines
