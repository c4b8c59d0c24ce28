"""The page before `tenuto serve`, with the demo model on real vLLM."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.live.conftest import MODEL, LiveServer, launched
from tests.page.conftest import ADMIN, USER, Open, control, shoot
from tests.page.test_status import LOOKS

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("demo")
    secrets = {"TENUTO_API_KEYS": USER, "TENUTO_ADMIN_KEYS": ADMIN}
    with launched(directory, environment={**secrets, "TENUTO_STATE_DIR": str(directory)}) as server:
        yield server


def least_likely(page: Page) -> int:
    """Which token has the strongest colour."""
    doubts = page.locator(".token").evaluate_all(
        "tokens => tokens.map(token => Number(token.style.getPropertyValue('--doubt')))"
    )
    assert max(doubts) > min(doubts)
    return int(doubts.index(max(doubts)))


@pytest.mark.parametrize("look", LOOKS)
def test_a_chat_with_the_demo_model(demo: LiveServer, opened: Open, look: str) -> None:
    page = opened(demo.url, "playground", USER, **LOOKS[look])
    expect(page.locator("#model")).to_have_value(MODEL)
    set_: dict[str, Any] = {"n": "2", "temperature": "1.6", "seed": "7", "max_tokens": "60"}
    for name, value in {**set_, "top_logprobs": "4"}.items():
        control(page, name).fill(value)
    control(page, "logprobs").select_option("true")
    page.locator("#draft").fill("What can you tell me about this server?")
    page.locator("#draft").press("Enter")
    answer = page.locator(".turn.assistant")
    expect(answer.locator("> footer")).to_contain_text("tokens/s")
    expect(answer.locator(".choice")).to_have_count(2)
    page.locator(".parameters").evaluate("box => box.scrollTop = 0")
    page.locator("#turns").evaluate("box => box.scrollIntoView({block: 'center'})")
    page.locator(".token").nth(least_likely(page)).focus()
    expect(page.get_by_role("tooltip").locator("code")).not_to_have_count(0)
    shoot(page, f"playground-{look}")


def test_status_of_the_demo_model(demo: LiveServer, opened: Open, tmp_path: Path) -> None:
    page = opened(demo.url, "status", ADMIN)
    card = page.get_by_role("article", name=MODEL)
    expect(card.locator(".state")).to_contain_text("ready")
    expect(card.get_by_role("img", name="KV cache, last 15 minutes")).to_be_visible()
    expect(card).to_contain_text("Weights")
