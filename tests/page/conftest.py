"""A real Chromium before a real server. What the page writes into the browser's console, and what
its policy forbids, fails a test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tenuto.access.keys import Keys
from tests.conftest import Running

# A fixture must be a name of this module.
from tests.deploy.conftest import Installed
from tests.deploy.conftest import installed as installed

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "page"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
USER, ADMIN = "sk-user", "sk-admin"
# A refused request is written there by the browser itself.
EXPECTED = "Failed to load resource: the server responded with a status of"

TIMEOUT_MS = 10_000

expect.set_options(timeout=TIMEOUT_MS)


def keys() -> Keys:
    return Keys(user=[USER], admin=[ADMIN])


@pytest.fixture(scope="package")
def browser(installed: Installed) -> Iterator[Browser]:
    installed("chromium")
    with sync_playwright() as playwright:
        arguments = ARGUMENTS.split()
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a view in a browser that knows nothing: `opened(server, "usage", key=ADMIN)`."""
    contexts, said = [], []

    def start(server: Running | str, view: str = "status", key: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        url = server if isinstance(server, str) else server.url
        page.goto(f"{url}/#{view}")
        if key:
            enter(page, key)
        return page

    yield start
    for context in contexts:
        context.close()
    assert [line for line in said if EXPECTED not in line] == []


def enter(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use").click()


def control(page: Page, name: str) -> Locator:
    found = page.locator(f"#parameter-{name}")
    found.evaluate("control => control.closest('details').open = true")
    return found


def shoot(page: Page, name: str) -> None:
    assert not is_wide(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def is_wide(page: Page) -> bool:
    """Whether it would have to be scrolled sideways."""
    found: bool = page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    return found
