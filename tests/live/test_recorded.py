"""The recorded exchanges of the hosted stack, asked again: every difference is explained."""

import asyncio
import fnmatch
from collections.abc import Iterator

import pytest

from tenuto.conformance.compare import Comparison, Found, Side, Terms, compare_requests
from tenuto.conformance.facts import Facts
from tenuto.conformance.quirks import Quirk, all_quirks, way_of
from tenuto.conformance.recording import BUNDLED, Recording
from tenuto.conformance.transport import Server
from tests.live.conftest import LiveServer, launched, write_registry

pytestmark = pytest.mark.live
KEY = "sk-recorded"
RECORDING = Recording.open(BUNDLED / "hosted-stack")
OTHER_MODELS = ["Midnight-Miqu-70B-v1.5", "dead"]
QUIRKS = [q for q in all_quirks() if any(q.is_of(n, r) for n, r in RECORDING.requests.items())]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo checkpoint under the recorded names."""
    directory = tmp_path_factory.mktemp("recorded")
    rows = [{"id": RECORDING.about.model, "max_model_len": 2048}]
    rows += [{"id": name, "max_model_len": 2048, "load": "on_demand"} for name in OTHER_MODELS]
    registry = write_registry(directory / "registry.yaml", rows)
    environment = {"TENUTO_API_KEYS": KEY}
    with launched(directory, "--registry", str(registry), environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def comparison(hosted: LiveServer) -> Comparison:
    async def compared() -> Comparison:
        server = Server(hosted.url, KEY)
        model = RECORDING.about.model
        recorded = Side(Recording.open(RECORDING.directory), RECORDING.facts, "recorded")
        here = Side(server, Facts(model=model), "here")
        try:
            return await compare_requests(RECORDING.requests, model, recorded, here, Terms())
        finally:
            await server.close()

    return asyncio.run(compared())


@pytest.mark.parametrize("name", RECORDING.requests)
def test_agrees_or_is_explained(comparison: Comparison, name: str) -> None:
    assert name in comparison.names
    assert [f for f in comparison.failures if f.request == name] == []


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda q: f"{q.requests[0]}-{q.aspects[0]}")
def test_every_quirk_is_still_there(comparison: Comparison, quirk: Quirk) -> None:
    """Each of its aspects, and in each of its requests."""
    found = [f for f in comparison.found if is_by(f, quirk)]
    assert {f.difference.aspect for f in found} == {*quirk.aspects}
    names = {f.request for f in found} | {way_of(RECORDING.requests[f.request]) for f in found}
    alone = [g for g in quirk.requests if not any(fnmatch.fnmatchcase(name, g) for name in names)]
    assert alone == []


def is_by(found: Found, quirk: Quirk) -> bool:
    request = RECORDING.requests[found.request]
    return quirk.is_of(found.request, request) and quirk.explains(found.difference)
