"""The page and its files as they are served: policy, caching, size, nothing from other hosts."""

import re
from pathlib import Path

import pytest

from tenuto.access.keys import Keys
from tenuto.api.page import FOLDER, PREFIX
from tests.conftest import Running, Serve

MAX_BYTES = 150_000
MAX_SCRIPT_LINES = 300
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
OWN = [path for path in FILES if path.parent == FOLDER]
PATHS = ["/", *(f"{PREFIX}/{path.relative_to(FOLDER).as_posix()}" for path in FILES)]


@pytest.mark.parametrize("path", PATHS)
def test_open_to_all_under_its_policy(server: Running, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'self'"
    assert "frame-ancestors 'none'" in policy
    assert not [part for part in policy if "unsafe" in part or "*" in part or ":" in part]
    assert response.headers["cache-control"] == "no-cache"


def test_no_key_is_needed_where_others_need_one(serve: Serve) -> None:
    server = serve(keys=Keys(user=["sk-user"]))
    assert server.client.get("/v1/models").status_code == 401
    assert [path for path in PATHS if server.client.get(path).status_code != 200] == []


@pytest.mark.parametrize("path", ["/", f"{PREFIX}/app.js"])
def test_what_the_browser_has_is_not_sent_again(server: Running, path: str) -> None:
    etag = server.client.get(path).headers["etag"]
    again = server.client.get(path, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


def test_types(server: Running) -> None:
    types = {path: server.client.get(path).headers["content-type"] for path in PATHS}
    assert types["/"] == "text/html; charset=utf-8"
    assert types[f"{PREFIX}/app.js"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["no.js", "../api/page.py", "%2e%2e/api/page.py", "vendor"])
def test_nothing_else_is_there(server: Running, path: str) -> None:
    response = server.client.get(f"{PREFIX}/{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "404"


def test_the_policy_is_for_the_page_alone(server: Running) -> None:
    assert "content-security-policy" not in server.client.get("/v1/models").headers
    assert "content-security-policy" not in server.client.get("/docs").headers


def test_size() -> None:
    assert sum(path.stat().st_size for path in FILES) < MAX_BYTES


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_comes_from_another_host(path: Path) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text()))
    # The name of a format, which no browser asks for.
    assert addresses <= {"http://www.w3.org"}


@pytest.mark.parametrize("path", [p for p in OWN if p.suffix == ".js"], ids=lambda p: p.name)
def test_no_text_becomes_markup(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert "localStorage" not in text
    assert "document.cookie" not in text
    assert len(text.splitlines()) <= MAX_SCRIPT_LINES


def test_every_file_is_used() -> None:
    texts = "".join(path.read_text() for path in OWN)
    unused = [path.name for path in FILES if path.name not in texts]
    assert unused == ["index.html", "uPlot.LICENSE"]


def test_the_schema_says_what_a_request_gets_that_leaves_a_field_out(server: Running) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    chat, completion = (
        {name: field.get("default") for name, field in schemas[kind]["properties"].items()}
        for kind in ("ChatRequest", "CompletionRequest")
    )
    assert (chat["temperature"], chat["n"], chat["top_k"], chat["detokenize"]) == (1, 1, 0, True)
    assert (chat["max_tokens"], completion["max_tokens"]) == (None, 16)
    assert chat["best_of"] is chat["stop"] is None
    logprobs = schemas["CompletionRequest"]["properties"]["logprobs"]["anyOf"][0]
    assert logprobs == {"type": "integer", "minimum": 0, "maximum": 20}
