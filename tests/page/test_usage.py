"""What owners alone see: usage, and the last conformance report."""

import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tenuto.conformance.report.json_report import to_json
from tenuto.engine.fake import FakeBackend
from tests.conformance.report.made import fine, mixed
from tests.conftest import Running, Serve
from tests.page import made
from tests.page.conftest import ADMIN, USER, Open, keys, shoot
from tests.page.test_status import LOOKS

pytestmark = pytest.mark.page


@pytest.fixture
def used(serve: Serve, tmp_path: Path) -> Running:
    server = serve(keys=keys(), state_dir=tmp_path / "state", backend=FakeBackend())
    recorder = server.services.recorder
    assert recorder is not None
    for row in made.usage(time.time()):
        recorder.add(row)
    recorder.flush()
    return server


def rows(server: Running, **question: Any) -> list[dict[str, Any]]:
    asked = {"by": ["day", "key", "model"], **question}
    headers = {"authorization": f"Bearer {ADMIN}"}
    answer = server.client.get("/admin/usage", params=asked, headers=headers)
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


@pytest.mark.parametrize("look", LOOKS)
def test_by_day_key_and_model(used: Running, opened: Open, look: str) -> None:
    page = opened(used, "usage", ADMIN, **LOOKS[look])
    known = rows(used)
    expect(page.locator("#usage-body tbody tr")).to_have_count(len(known))
    newest = page.locator("#usage-body tbody tr").first
    for part in (known[-1]["day"], known[-1]["key"], f"{known[-1]['prompt_tokens']:,}"):
        expect(newest).to_contain_text(part)
    total = sum(row["prompt_tokens"] + row["completion_tokens"] for row in known)
    plot = page.get_by_role("img", name=f"{total:,} tokens in 30 days, by model and day")
    expect(plot.locator("canvas")).to_be_visible()
    expect(page.locator("figcaption")).to_contain_text("Qwen3-32B-FP8")
    shoot(page, f"usage-{look}")


def test_by_key_and_by_requests(used: Running, opened: Open) -> None:
    page = opened(used, "usage", ADMIN)
    expect(page.locator("figcaption")).to_be_visible()
    page.locator("#stack").select_option("key")
    expect(page.locator("figcaption")).to_contain_text("research")
    page.locator("#measure").select_option("requests")
    total = sum(row["requests"] for row in rows(used))
    expect(page.locator("figcaption .title")).to_have_text(f"{total} requests in 30 days")


def test_other_days(used: Running, opened: Open) -> None:
    page = opened(used, "usage", ADMIN)
    expect(page.locator("figcaption")).to_be_visible()
    day = rows(used)[0]["day"]
    page.get_by_label("to", exact=True).fill(day)
    expect(page.locator("figcaption .title")).to_contain_text(f"on {day}")
    expect(page.locator("tbody tr")).to_have_count(len(rows(used, until=day)))
    page.get_by_label("From").fill("2020-01-01")
    page.get_by_label("to", exact=True).fill("2020-01-31")
    expect(page.locator("#usage-body")).to_contain_text("Nothing was asked")


def test_csv(used: Running, opened: Open) -> None:
    page = opened(used, "usage", ADMIN)
    expect(page.locator("figcaption")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("day,key,note,model,requests")
    assert len(lines) == 1 + len(rows(used))


@pytest.mark.parametrize("view", ["usage", "conformance"])
def test_for_owners_alone(serve: Serve, tmp_path: Path, opened: Open, view: str) -> None:
    page = opened(serve(keys=keys(), state_dir=tmp_path / "state"), view, USER)
    body = page.locator(f"#{view}-body")
    expect(body).to_contain_text("For owners")
    expect(body.get_by_role("alert")).to_contain_text("needs an admin key")


def report(serve: Serve, opened: Open, folder: Path, text: str | None) -> Page:
    if text is not None:
        (folder / "conformance.json").write_text(text)
    server = serve(keys=keys(), services={"state_dir": folder})
    return opened(server, "conformance", ADMIN)


def test_no_report_yet(serve: Serve, opened: Open, tmp_path: Path) -> None:
    page = report(serve, opened, tmp_path, None)
    expect(page.locator("#conformance-body")).to_contain_text("No report yet")


def test_a_report(serve: Serve, opened: Open, tmp_path: Path) -> None:
    page = report(serve, opened, tmp_path, to_json(mixed()))
    expect(page.locator(".verdict")).to_have_text("does not conform")
    expect(page.locator("tbody tr").last.locator("td")).to_have_text(
        ["all", "2", "2", "1", "1", "1", "1", "1"]
    )
    cases = page.locator(".case")
    expect(cases.locator("summary code")).to_have_text(
        ["chat/broken", "completions/broken", "models/seen", "models/known"]
    )
    expect(cases.locator(".state")).to_have_text(["failed", "failed", "differs", "expected"])
    cases.first.locator("summary").click()
    expect(cases.first.locator("pre").first).to_contain_text("curl")
    page.get_by_text("Cases that were not tried").click()
    expect(page.locator("#conformance-body li")).to_have_count(3)


def test_a_report_without_a_fault(serve: Serve, opened: Open, tmp_path: Path) -> None:
    page = report(serve, opened, tmp_path, to_json(fine()))
    expect(page.locator(".verdict")).to_have_text("conforms")
    expect(page.locator("#conformance-body")).to_contain_text("Every case that was tried passed")
