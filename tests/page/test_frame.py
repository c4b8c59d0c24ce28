"""What all views share: the key, the tabs, both themes, narrow screens, accessibility."""

import time
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tenuto.conformance.report.json_report import to_json
from tests.conformance.report.made import mixed
from tests.conftest import Running, Serve
from tests.page import made
from tests.page.conftest import ADMIN, PHONE, USER, Open, control, enter, is_wide, keys

pytestmark = pytest.mark.page
VIEWS = ("status", "playground", "usage", "conformance")


@pytest.fixture
def locked(serve: Serve) -> Running:
    return serve(keys=keys())


def view(page: Page, name: str) -> None:
    page.get_by_role("link", name=name.title()).click()
    expect(page.locator(f"#view-{name}")).to_be_visible()


def furnished(page: Page) -> None:
    """With something to see in every view."""
    page.route("**/status*", lambda route: route.fulfill(json=made.status(time.time())))
    page.route("**/admin/conformance", lambda route: route.fulfill(body=to_json(mixed())))


def test_every_view_opens(serve: Serve, opened: Open) -> None:
    page = opened(serve())
    for name in VIEWS:
        view(page, name)
        assert page.title() == f"{name.title()} · Tenuto"
        current = page.locator("nav [aria-current=page]")
        expect(current).to_have_text(name.title())


def test_the_key_stays_in_its_tab(locked: Running, opened: Open) -> None:
    page = opened(locked)
    expect(page.locator("#key-state")).to_have_text("key needed")
    enter(page, USER)
    expect(page.locator("#key-state")).to_have_text("key accepted")
    page.reload()
    expect(page.locator("#key-state")).to_have_text("key accepted")
    kept = page.evaluate("[localStorage.length, document.cookie, location.href]")
    assert kept[:2] == [0, ""]
    assert USER not in kept[2]
    assert USER not in page.content()
    other = page.context.new_page()
    other.goto(locked.url)
    expect(other.locator("#key-state")).to_have_text("key needed")
    page.get_by_role("button", name="Forget").click()
    expect(page.locator("#key-state")).to_have_text("key needed")
    assert page.evaluate("sessionStorage.length") == 0


def test_a_wrong_key_is_said_to_be_one(locked: Running, opened: Open) -> None:
    page = opened(locked, key="sk-wrong")
    expect(page.locator("#key-state")).to_have_text("key refused")
    expect(page.get_by_role("alert")).to_contain_text("Invalid API key")


def test_an_admin_key_is_known_as_one(locked: Running, opened: Open) -> None:
    page = opened(locked, key=ADMIN)
    expect(page.locator("#key-state")).to_have_text("admin key")


def brightness(page: Page, what: str) -> float:
    colour: str = page.evaluate(f"getComputedStyle(document.body).{what}")
    red, green, blue = (int(part) for part in colour[4:-1].split(", ")[:3])
    return (red + green + blue) / 3


def test_light_and_dark(serve: Serve, opened: Open) -> None:
    page = opened(serve())
    assert brightness(page, "backgroundColor") > 200 > 100 > brightness(page, "color")
    page.emulate_media(color_scheme="dark")
    assert brightness(page, "backgroundColor") < 50 < 200 < brightness(page, "color")


@pytest.mark.parametrize("name", VIEWS)
def test_a_phone_need_not_scroll_sideways(locked: Running, opened: Open, name: str) -> None:
    page = opened(locked, viewport=PHONE)
    furnished(page)
    view(page, name)
    assert not is_wide(page)
    enter(page, ADMIN)
    expect(page.locator("#key-state")).to_have_text("admin key")
    page.wait_for_load_state("networkidle")
    assert not is_wide(page)


def violations(page: Page) -> list[tuple[str, Any]]:
    found = Axe().run(page).response["violations"]
    return [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(locked: Running, opened: Open, theme: str) -> None:
    page = opened(locked, color_scheme=theme)
    furnished(page)
    for name in VIEWS:
        view(page, name)
        page.wait_for_load_state("networkidle")
        assert violations(page) == []
    enter(page, ADMIN)
    for name in VIEWS:
        view(page, name)
        page.wait_for_load_state("networkidle")
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
        assert violations(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility_of_answers(serve: Serve, opened: Open, theme: str) -> None:
    page = opened(serve(), "playground", color_scheme=theme)
    control(page, "n").fill("2")
    control(page, "logprobs").select_option("true")
    page.locator("#draft").fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".token")).not_to_have_count(0)
    page.locator(".token").first.focus()
    control(page, "best_of").fill("1")
    page.locator("#draft").fill("Again")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []
