import subprocess
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.report.curl import MAX_BODY, curl, cut, failing, legible
from tenuto.conformance.transport import Server
from tests.conformance.report.made import URL, exchange, result

KEY = "sk-a-real-key"
# NUL parts the arguments, since they may hold line breaks.
FAKE_CURL = """curl() { printf '%s\\0' "$@"; }"""


def run(line: str, key: str = KEY) -> list[str]:
    """The arguments that a shell gives to curl."""
    assert "\n" not in line
    environment = {"API_KEY": key, "BASE_URL": URL, "LC_ALL": "C.UTF-8"}
    ran = subprocess.run(
        ["bash", "-c", f"{FAKE_CURL}\n{line}"], env=environment, capture_output=True, check=True
    )
    return ran.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


def test_a_request_in_one_line() -> None:
    line = curl(Request("POST", "/v1/completions", {"prompt": "Hi"}), URL)
    assert line == (
        "curl -sN -X POST http://server.test:8000/v1/completions "
        "-H 'authorization: Bearer '\"$API_KEY\" -H 'content-type: application/json' "
        """-d '{"prompt": "Hi"}'"""
    )


NASTY = [
    'it\'s "quoted" $HOME `id` $(id) \\ !x',
    "lines\nand\r\nmore\ttabs \x1b[31m\x07",
    "naïve 色 \N{GRINNING FACE}",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_shell_gives_curl_the_bodies_as_they_are(text: str) -> None:
    body = Request("POST", "/v1/completions", {"prompt": text})
    raw = Request("POST", "/v1/completions", raw=text.encode().decode("latin-1"))
    for request in (body, raw):
        assert request.content is not None
        assert values(run(curl(request, URL)), "-d") == [request.content.decode()]


def test_a_raw_body_that_is_no_text() -> None:
    line = curl(Request("POST", "/x", raw="\xff{'\\"), URL)
    assert values(run(line), "-d") == ["\udcff{'\\"]


def test_a_body_that_curl_would_take_for_a_file() -> None:
    line = curl(Request("POST", "/x", raw="@/etc/passwd"), URL)
    assert values(run(line), "--data-raw") == ["@/etc/passwd"]


async def sent(request: Request, key: str | None) -> httpx.Request:
    seen: list[httpx.Request] = []

    def answer(got: httpx.Request) -> httpx.Response:
        seen.append(got)
        return httpx.Response(200)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    await Server(URL, key, client=client).send(request)
    return seen[0]


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("auth", ["key", "none", "wrong", "malformed"])
async def test_the_headers_are_those_that_the_kit_sends(auth: Any, key: str | None) -> None:
    request = Request("POST", "/x", {}, headers={"x-one": "1", "x-empty": ""}, auth=auth)
    line = curl(request, URL)
    theirs = (await sent(request, key)).headers
    ours = dict(value.partition(": ")[::2] for value in values(run(line, key or ""), "-H"))
    assert KEY not in line
    assert ours.pop("x-empty;") == ""
    if auth == "key" and key is None:
        # A line cannot know that there is none; a server without keys does not look.
        assert ours.pop("authorization") == "Bearer "
    assert ours == {name: theirs[name] for name in ours}
    assert ("authorization" in ours) == ("authorization" in theirs)


async def test_a_case_replaces_headers() -> None:
    headers = {"content-type": "text/plain", "authorization": "Basic x"}
    line = curl(Request("POST", "/x", raw="x", headers=headers), URL)
    assert values(run(line), "-H") == ["content-type: text/plain", "authorization: Basic x"]


def test_get_has_no_body() -> None:
    assert run(curl(Request("GET", "/v1/models", auth="none"), URL)) == [
        "-sN",
        "-X",
        "GET",
        f"{URL}/v1/models",
    ]


def test_head_does_not_wait_for_a_body() -> None:
    assert "--head" in run(curl(Request("HEAD", "/v1/models"), URL))


def test_curl_leaves_the_path_alone() -> None:
    arguments = run(curl(Request("GET", "/v1/{model}/../a b"), URL))
    assert f"{URL}/v1/{{model}}/../a b" in arguments
    assert {"--globoff", "--path-as-is"} <= set(arguments)


def test_a_recording_has_no_url() -> None:
    assert f"{URL}/v1/models" in run(curl(Request("GET", "/v1/models"), "recordings/stack"))


def test_a_long_body_is_cut_and_says_so() -> None:
    line = curl(Request("POST", "/x", {"prompt": "a" * 9_000}), URL)
    [body] = values(run(line), "-d")
    assert body.startswith('{"prompt": "aaa')
    assert body.endswith("[... cut: 7,014 more characters]")
    assert len(body) < MAX_BODY + 100


def test_cut_leaves_short_texts() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "abc [... cut: 1 more characters]"


def test_legible() -> None:
    assert legible("a\x00\x1b[0m\r\nb\ud800é\t") == "a��[0m\nb�é\t"


def exchanges() -> dict[str, Exchange]:
    return {
        "first": exchange("1"),
        "second": exchange("2", None, failure="cannot connect"),
        "third": exchange("3"),
    }


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("first: status 500 instead of 200", "first"),
        ("these differ: first and second", "third"),
        ("cannot connect", "second"),
    ],
)
def test_the_exchange_that_a_message_is_about(message: str, name: str) -> None:
    found = failing(result("chat/x", "failed", message, exchanges=exchanges()))
    assert found is not None
    assert found[0] == name


def test_no_exchange_at_all() -> None:
    assert failing(result("chat/x", "failed", "oh", exchanges={})) is None
