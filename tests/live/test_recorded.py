"""The recorded exchanges of the hosted stack, replayed: every difference is explained."""

import fnmatch
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.conftest import ROOT, launched, write_registry

pytestmark = pytest.mark.live
KEY = "sk-recorded"
RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "recorded/exchanges.json").read_text()
)
MODELS = ["L3.1-70B-Euryale-v2.2-FP8-Dynamic", "Midnight-Miqu-70B-v1.5", "dead"]
LONG_PROMPT = '"hello world " repeated 3,000 times'


@dataclass(frozen=True)
class Difference:
    aspect: str
    recorded: str
    here: str


@dataclass(frozen=True)
class Row:
    """A row of docs/api.md's table: exchanges and aspects as glob patterns."""

    exchanges: str
    aspect: str
    recorded: str
    here: str

    def explains(self, name: str, difference: Difference) -> bool:
        return (
            any(fnmatch.fnmatchcase(name, glob) for glob in self.exchanges.split(", "))
            and difference.aspect in self.aspect.split(", ")
            and (difference.recorded, difference.here) == (self.recorded, self.here)
        )


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The demo checkpoint under the recorded names."""
    directory = tmp_path_factory.mktemp("recorded")
    rows = [{"id": MODELS[0], "max_model_len": 2048}]
    rows += [{"id": name, "max_model_len": 2048, "load": "on_demand"} for name in MODELS[1:]]
    registry = write_registry(directory / "registry.yaml", rows)
    environment = {"TENUTO_API_KEYS": KEY}
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server.client


@pytest.fixture(scope="module")
def differences(hosted: httpx.Client) -> dict[str, list[Difference]]:
    return {name: differ(recorded, replay(hosted, recorded)) for name, recorded in RECORDED.items()}


@pytest.mark.parametrize("name", RECORDED)
def test_agrees_or_is_explained(differences: dict[str, list[Difference]], name: str) -> None:
    rows = documented()
    unexplained = [d for d in differences[name] if not any(r.explains(name, d) for r in rows)]
    assert unexplained == []


def test_every_documented_difference_exists(differences: dict[str, list[Difference]]) -> None:
    stale = [
        row
        for row in documented()
        if not any(row.explains(name, d) for name, found in differences.items() for d in found)
    ]
    assert stale == []


def documented() -> list[Row]:
    text = (ROOT / "docs/api.md").read_text().split("## Differences from the recorded stack")[1]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \| .+ \|$", text, re.M)
    return [Row(*(cell.replace("`", "") for cell in row)) for row in rows[1:]]


def replay(client: httpx.Client, recorded: dict[str, Any]) -> httpx.Response:
    request = recorded["request"]
    body = request.get("body")
    content = request.get("raw") or (json.dumps(expanded(body)) if body is not None else None)
    headers = {} if "auth" in request else {"authorization": f"Bearer {KEY}"}
    return client.request(request["method"], request["path"], content=content, headers=headers)


def expanded(body: dict[str, Any]) -> dict[str, Any]:
    return body | {"prompt": "hello world " * 3000} if body.get("prompt") == LONG_PROMPT else body


def differ(recorded: dict[str, Any], answer: httpx.Response) -> list[Difference]:
    found = compared("status", recorded["status"], answer.status_code)
    if found:
        return found
    theirs = recorded["body"]
    if isinstance(theirs, str) and theirs.startswith("data: "):
        return differ_streams(theirs, answer.text)
    ours = answer.json()
    if isinstance(ours, dict) and "error" in ours and "error" in theirs:
        for field in ("type", "param", "code"):
            found += compared(f"error.{field}", theirs["error"][field], ours["error"][field])
    return [*found, *differ_keys(theirs, ours)]


def differ_streams(theirs: str, ours: str) -> list[Difference]:
    """The order of the events, and the keys of each kind of event."""
    their_events, our_events = events(theirs), events(ours)
    found = compared("events", order(their_events), order(our_events))
    for kind in dict(their_events).keys() & dict(our_events).keys() - {"done"}:
        keys = differ_keys(dict(their_events)[kind], dict(our_events)[kind])
        found += [Difference(f"{kind}: {d.aspect}", d.recorded, d.here) for d in keys]
    return found


def events(text: str) -> list[tuple[str, Any]]:
    frames = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    return [("done", None) if frame == "[DONE]" else kind_of(json.loads(frame)) for frame in frames]


def kind_of(chunk: dict[str, Any]) -> tuple[str, Any]:
    choice = chunk["choices"][0] if chunk["choices"] else {}
    if choice.get("finish_reason"):
        return "finish", chunk
    if "role" in choice.get("delta", {}):
        return "role", chunk
    if choice.get("text") or choice.get("delta"):
        return "content", chunk
    return "usage", chunk


def order(found: list[tuple[str, Any]]) -> str:
    kinds = [kind for kind, _ in found]
    return " ".join(k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k)


def differ_keys(theirs: Any, ours: Any) -> list[Difference]:
    their_keys, our_keys = set(key_paths(theirs)), set(key_paths(ours))
    found = [Difference(key, "present", "absent") for key in topmost(their_keys - our_keys)]
    return found + [Difference(key, "absent", "present") for key in topmost(our_keys - their_keys)]


def key_paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from key_paths(item, f"{path}[]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            # The keys of this map are tokens, not names.
            if path.endswith("logprobs.top_logprobs[]"):
                continue
            yield f"{path}.{key}".lstrip(".")
            yield from key_paths(inner, f"{path}.{key}".lstrip("."))


def topmost(keys: set[str]) -> list[str]:
    return sorted(
        key for key in keys if not any(key.startswith((f"{o}.", f"{o}[]")) for o in keys - {key})
    )


def compared(aspect: str, recorded: Any, here: Any) -> list[Difference]:
    return [] if recorded == here else [Difference(aspect, str(recorded), str(here))]
