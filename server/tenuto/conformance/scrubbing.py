"""What a recording must not hold, taken out of answers before they are written."""

import json
import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address
from typing import Any
from urllib.parse import quote

from tenuto.conformance.exchange import Exchange

# These still look like what they stand for: a check that finds a leak finds it in a recording.
KEY, SHORT_KEY, PATH = "sk-SCRUBBED", "sk-...", "/<path>"
HEADERS = frozenset(
    {
        "content-type",
        "cache-control",
        "retry-after",
        "x-should-retry",
        "allow",
        "x-accel-buffering",
        "x-litellm-version",
        "x-request-id",
    }
)
# What these say is meant for the owner.
OWNERS_PATHS = ("/model/info", "/metrics")
HEADER_PREFIXES = ("access-control-", "x-ratelimit-")
# The kit's own wrong key is no secret, and cases ask whether an error repeats it.
_KEYS = re.compile(
    r"(?<![A-Za-z0-9])sk-(?!this-key-was-never-handed-out)[\w.*\N{HORIZONTAL ELLIPSIS}-]*[\w*]"
)
# The repetition is bounded, for a long word would take quadratic time.
_EMAILS = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+")
_BEARERS = re.compile(r"\b(Bearer)\s+(?!sk-)[\w.~+/-]+=*", re.I)
_HASHES = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
# Of a URL the host says where a server is, and whose it is.
_HOSTS = re.compile(r"(?i)\b(https?://)[^\s/\"'<>\\]+")
_HOMES = re.compile(
    r"""(?<!\w)(?:/(?:home|Users)/|/root\b|[A-Za-z]:\\+Users\\+)[^\s"'<>:,;)]*""", re.I
)
Scrub = Callable[[str], str]


def kept_headers(headers: dict[str, str], key: str | None) -> dict[str, str]:
    return {
        name: scrubbed(value, key)
        for name, value in sorted(headers.items())
        if name in HEADERS or name.startswith(HEADER_PREFIXES)
    }


def scrubber(exchange: Exchange, key: str | None) -> Scrub:
    """For an answer's body. What a model wrote may look like an address or a path; nobody's is."""
    is_generated = exchange.status == 200 and exchange.request.path.endswith("completions")
    if is_generated and '"error"' not in exchange.text:
        return lambda text: without_keys(text, key)
    if exchange.request.path.endswith(OWNERS_PATHS):
        return lambda text: _HOSTS.sub(r"\1<host>", scrubbed(text, key))
    return lambda text: scrubbed(text, key)


def scrubbed(text: str, key: str | None) -> str:
    text = _BEARERS.sub(r"\1 <scrubbed>", without_keys(text, key))
    text = _HOMES.sub(_path, _HASHES.sub("<hash>", text))
    return _IPV6.sub(_address, _IPV4.sub("<address>", text))


def without_keys(text: str, key: str | None) -> str:
    return _EMAILS.sub("<e-mail>", _KEYS.sub(_key, without_key(text, key)))


def everywhere(value: Any, scrub: Scrub) -> Any:
    """Every string of a JSON value, the names of its fields included."""
    match value:
        case str():
            return scrub(value)
        case list():
            return [everywhere(item, scrub) for item in value]
        case dict():
            return {scrub(name): everywhere(inner, scrub) for name, inner in value.items()}
        case _:
            return value


def without_key(text: str, key: str | None) -> str:
    """A server that repeats the key must not put it anywhere else."""
    for form in _forms(key) if key else ():
        text = text.replace(form, KEY)
    return text


def _forms(key: str) -> set[str]:
    """As it stands, in JSON and in a URL."""
    in_json = json.dumps(key)[1:-1]
    return {key, in_json, in_json.replace("/", "\\/"), quote(key, safe="")}


def _key(found: re.Match[str]) -> str:
    """Servers show keys abbreviated; a check need not take that for a leak."""
    return KEY if re.match(r"sk-[A-Za-z0-9]{8}", found[0]) else SHORT_KEY


def _path(found: re.Match[str]) -> str:
    return f"{PATH}/site-packages" if "site-packages" in found[0] else PATH


def _address(found: re.Match[str]) -> str:
    """Times have colons, too."""
    try:
        IPv6Address(found[0])
    except AddressValueError:
        return found[0]
    return found[0] if found[0].strip(":") == "" else "<address>"
