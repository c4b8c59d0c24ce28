"""The models' cards: against the real route, and with 15 made-up minutes behind them."""

import re
import time
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page, expect

from tenuto.api.readings import readings
from tenuto.engine.fake import FakeBackend
from tenuto.wire.responses import Status
from tests.conftest import MODEL, Running, Serve
from tests.models.pools import HeldBackend
from tests.page import made
from tests.page.conftest import ADMIN, PHONE, USER, Open, keys, shoot

pytestmark = pytest.mark.page
PLOTS = ("Tokens", "Requests", "First token", "KV cache")


def polled(page: Page, after_s: int) -> str:
    """The address of the request that time makes the page send."""
    with page.expect_request("**/status*") as request:
        page.clock.fast_forward(after_s * 1000)
    return request.value.url


def ticking(server: Running, opened: Open) -> Page:
    """The view, its time in the test's hand."""
    page = opened(server, "playground")
    page.clock.install()
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("article")).to_be_visible()
    return page


def sample(server: Running) -> None:
    history, pool = server.services.history, server.services.pool
    server.call(lambda: history.sample(readings(pool)))


def test_a_model_and_its_last_minutes(serve: Serve, opened: Open) -> None:
    server = serve()
    server.engine()
    sample(server)
    page = opened(server)
    card = page.get_by_role("article", name=MODEL)
    expect(card.locator(".state")).to_have_text("ready")
    for name in PLOTS:
        expect(card.get_by_role("img", name=f"{name}, last 15 minutes")).to_be_visible()
    said = re.compile(r"running now 0, at most \d; waiting now 0, at most \d$")
    expect(card.get_by_role("img", name="Requests")).to_have_attribute("aria-label", said)
    expect(page.locator("#summary")).to_contain_text("1 ready")


def test_it_asks_for_what_is_new_and_draws_it(serve: Serve, opened: Open) -> None:
    server = serve()
    server.engine()
    sample(server)
    page = ticking(server, opened)
    card = page.get_by_role("article", name=MODEL)
    expect(card.get_by_role("img", name="Tokens")).to_be_visible()
    assert server.chat("Hello", stream=True).status_code == 200
    sample(server)
    last = server.client.get("/status").json()["models"][0]["history"]["at"][-2:]
    since = float(polled(page, 6).partition("since=")[2])
    assert since in last
    tokens = card.locator("figure", has_text="per second").locator("b")
    expect(tokens).not_to_have_text("0")
    first = card.locator("figure", has_text="First token")
    expect(first).to_contain_text("ms p50")


def test_a_hidden_tab_asks_for_nothing(serve: Serve, opened: Open) -> None:
    page = ticking(serve(), opened)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    turn = (
        "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.evaluate(turn % "true")
    page.clock.fast_forward(60_000)
    assert asked == []
    with page.expect_request("**/status*"):
        page.evaluate(turn % "false")


def test_another_view_does_not_poll(serve: Serve, opened: Open) -> None:
    page = ticking(serve(), opened)
    page.get_by_role("link", name="Playground").click()
    expect(page.locator("#view-playground")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.fast_forward(60_000)
    assert [url for url in asked if "/status" in url] == []


def test_an_owner_loads_and_unloads(serve: Serve, opened: Open) -> None:
    backend = HeldBackend(can_sleep=True)
    server = serve(keys=keys(), backend=backend, eager=())
    page = opened(server, key=ADMIN)
    card = page.get_by_role("article", name=MODEL)
    state = card.locator(".state")
    expect(state).to_have_text("cold")
    expect(page.get_by_role("button", name=f"Sleep {MODEL}")).to_have_attribute(
        "aria-disabled", "true"
    )
    for action, becomes in (("Load", "ready"), ("Sleep", "asleep"), ("Unload", "cold")):
        press = page.get_by_role("button", name=f"{action} {MODEL}", exact=True)
        press.click()
        expect(state).to_have_text(becomes)
        expect(press).to_be_focused()


def test_others_have_no_buttons(serve: Serve, opened: Open) -> None:
    page = opened(serve(keys=keys()), key=USER)
    expect(page.get_by_role("article", name=MODEL)).to_be_visible()
    expect(page.locator(".actions")).to_be_hidden()


def test_why_a_model_failed(serve: Serve, opened: Open, no_restarts: None) -> None:
    server = serve(backend=FakeBackend(fails=frozenset({MODEL})))
    slot = server.services.pool.slots[MODEL]
    server.until(lambda: slot.state == "failed")
    page = opened(server)
    expect(page.locator(".state")).to_have_text("failed")
    assert slot.reason
    expect(page.locator(".reason")).to_have_text(slot.reason)


def test_a_server_that_is_gone_and_comes_back(serve: Serve, opened: Open) -> None:
    page = ticking(serve(), opened)
    # Chromium writes a failed connection into the console, which fails a test: so it is refused.
    gone: Any = {"status": 503, "json": {"error": {"message": "shutting down", "code": "503"}}}
    page.route("**/status*", lambda route: route.fulfill(**gone))
    polled(page, 6)
    expect(page.get_by_role("alert")).to_contain_text("shutting down")
    page.unroute("**/status*")
    polled(page, 6)
    expect(page.get_by_role("article")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_what_is_made_up_has_the_shape_of_the_route() -> None:
    found = msgspec.convert(made.status(0), Status)
    assert msgspec.to_builtins(found) == made.status(0)


LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE},
}


@pytest.mark.parametrize("look", LOOKS)
def test_many_models(serve: Serve, opened: Open, look: str) -> None:
    status = made.status(time.time())
    page = opened(serve(keys=keys()), "playground", ADMIN, **LOOKS[look])
    page.route("**/status*", lambda route: route.fulfill(json=status))
    page.get_by_role("link", name="Status").click()
    cards = page.get_by_role("article")
    expect(cards).to_have_count(len(status["models"]))
    expect(cards.locator(".state")).to_have_text(
        ["ready, pinned", "ready", "asleep", "failed", "cold"]
    )
    expect(page.locator(".reason:visible")).to_have_text(made.FAILED)
    expect(page.locator("figure:visible")).to_have_count(2 * len(PLOTS))
    shoot(page, f"status-{look}")
