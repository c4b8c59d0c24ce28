"""What all reports say of a request: which one a failure is about, and the line to repeat it."""

import re
import shlex

from tenuto.conformance.exchange import Exchange, Request
from tenuto.conformance.run import Result
from tenuto.conformance.transport import WRONG_KEY

MAX_BODY = 2_000
# As the transport sends it, so that the line gets the same answer.
# What XML forbids and what a terminal would obey: both come from servers that are being tested.
_ILLEGIBLE = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_ASCII = re.compile(r"[^\x20-\x7e]")


def curl(request: Request, base_url: str) -> str:
    """One line for a shell. In it `$API_KEY` and `$LIMITED_API_KEY` are the keys, and `$BASE_URL`
    is the URL of a recording."""
    headers = [f"-H {word}" for word in _headers(request)]
    method = "--head" if request.method == "HEAD" else f"-X {shlex.quote(request.method)}"
    return " ".join(["curl -sN", method, *_url(base_url, request.path), *headers, *_body(request)])


def body_of(request: Request) -> str | None:
    """The body as text; of a raw one each character is a byte."""
    if request.raw is not None:
        return request.raw
    return None if request.content is None else request.content.decode()


def failing(result: Result) -> tuple[str, Exchange] | None:
    """The exchange that the message is about, by its name; the last one when it does not say."""
    exchanges = result.exchanges
    named = result.message.partition(":")[0]
    if named in exchanges:
        return named, exchanges[named]
    unanswered = [name for name, e in exchanges.items() if e.failure == result.message]
    name = next(iter([*unanswered, *reversed(exchanges)]), None)
    return None if name is None else (name, exchanges[name])


def cut(text: str, limit: int) -> str:
    """Says where it was cut, and how much is missing."""
    missing = len(text) - limit
    return text if missing <= 0 else f"{text[:limit]} [... cut: {missing:,} more characters]"


def legible(text: str, instead: str = "\N{REPLACEMENT CHARACTER}") -> str:
    """Without the characters that not every report can hold."""
    return _ILLEGIBLE.sub(instead, text.replace("\r\n", "\n"))


def _url(base_url: str, path: str) -> list[str]:
    is_url = base_url.startswith(("http://", "https://"))
    url = shlex.quote(base_url + path) if is_url else f'"$BASE_URL"{shlex.quote(path)}'
    # curl would expand the one and resolve the other before it sends anything.
    globs = ["--globoff"] if set("[]{}") & set(url) else []
    dots = ["--path-as-is"] if "/." in path else []
    return [*globs, *dots, url]


def _headers(request: Request) -> list[str]:
    """The transport's headers, as words of a shell."""
    said = dict(request.headers)
    words = {}
    if (key := _authorization(request)) and "authorization" not in said:
        words["authorization"] = key
    if request.content is not None:
        words["content-type"] = _header("content-type", "application/json")
    return list((words | {name: _header(name, value) for name, value in said.items()}).values())


def _header(name: str, value: str) -> str:
    # Without a value curl would take the header away instead of sending it empty.
    return _quoted(f"{name}: {value}" if value else f"{name};")


def _authorization(request: Request) -> str | None:
    match request.auth:
        case "key":
            return """'authorization: Bearer '"$API_KEY\""""
        case "limited":
            return """'authorization: Bearer '"$LIMITED_API_KEY\""""
        case "wrong":
            return shlex.quote(f"authorization: Bearer {WRONG_KEY}")
        case "malformed":
            return f"""'authorization: '"${{API_KEY:-{WRONG_KEY}}}\""""
        case "none":
            return None


def _body(request: Request) -> list[str]:
    if (whole := body_of(request)) is None:
        return []
    body = cut(whole, MAX_BODY)
    # An @ would name a file.
    return ["--data-raw" if body.startswith("@") else "-d", _quoted(body, request.raw is not None)]


def _quoted(text: str, is_bytes: bool = False) -> str:
    """For a shell, and always in one line."""
    special = _NOT_ASCII if is_bytes else _CONTROL
    if not special.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    visible = special.sub(lambda found: f"\\x{ord(found[0]):02x}", escaped)
    return f"$'{visible}'"
