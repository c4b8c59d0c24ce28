import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tenuto.conformance.report.html import LEGEND, MARKS, to_html
from tenuto.conformance.verdict import Report
from tests.conformance.report.made import exchange, fine, mixed, report, result, unclear

VOID = {"meta", "br"}
SCRIPT = "<script>alert('1')</script><img src=http://evil.test/x>"


class Page(HTMLParser):
    """Fails for tags that do not pair; collects those, their attributes and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


@pytest.mark.parametrize("made", [mixed(), fine(), report()], ids=["mixed", "fine", "empty"])
def test_the_page_needs_nothing_else(made: Report) -> None:
    text = to_html(made)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "src=" not in text
    assert "href=http" not in text.replace('"', "")
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")
    assert not [name for name, _ in page.attributes if name.startswith("on")]


@pytest.mark.parametrize("made", [mixed(), fine(), report()], ids=["mixed", "fine", "empty"])
def test_headings_are_in_order(made: Report) -> None:
    levels = [int(tag[1]) for tag in Page(to_html(made)).tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_links_lead_somewhere_and_ids_are_unique() -> None:
    page = Page(to_html(mixed()))
    ids = page.values("id")
    assert len(ids) == len(set(ids)) == 4
    assert {link.removeprefix("#") for link in page.values("href")} == set(ids)


def test_a_server_writes_no_html() -> None:
    broken = result("chat/x", "failed", SCRIPT, exchanges={"answer": exchange(SCRIPT)})
    made = report(broken, target=f"http://a/{SCRIPT}", expected={"models/gone": SCRIPT})
    page = Page(to_html(made))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("<script>alert('1')</script>") >= 3


def test_nothing_private() -> None:
    assert "private" not in to_html(mixed())
    assert "$API_KEY" in to_html(mixed())


def test_the_summary() -> None:
    page = Page(to_html(mixed()))
    assert "Does not conform" in page.text
    assert (
        "2 passed, 2 failed, 1 differs, 1 known, 1 n/a, 1 not judged, 1 not run, 1 stale"
        in page.text
    )
    for said in ("http://server.test:8000", "demo", "2026-11-22 13:05 UTC", "tenuto 0.1.0"):
        assert said in page.text
    assert "flex-grow: 1" in page.values("style")


def test_without_a_verdict_the_page_says_so() -> None:
    page = Page(to_html(unclear()))
    assert "<title>No verdict: " in to_html(unclear())
    assert "1 passed, 1 not judged" in page.text
    assert "not judged: no prompt was found that is open" in page.text
    for absent in ("Conforms", "Does not conform"):
        assert absent not in page.text


def test_a_failure_is_told_in_full() -> None:
    text = to_html(mixed())
    [story] = re.findall(r'<details id="case-chat/broken">.*?</details>', text, re.S)
    told = Page(story).text
    for said in (
        "what broken requires",
        "documented",
        "top_k: Number of top tokens to consider.",
        "status 500 instead of 200: oh no",
        "curl -sN -X POST",
        "status 200, 0.25 s",
        "content-type: application/json",
    ):
        assert said in told


def test_other_requests_of_a_failure_are_there_too() -> None:
    two = {"one": exchange("first"), "two": exchange("x" * 9_000)}
    text = Page(to_html(report(result("chat/x", "failed", "one: oh", exchanges=two)))).text
    assert text.index("first") < text.index("1 more request of this case") < text.index("xxxx")
    assert "cut: 5,000 more characters" in text


def test_no_answer_at_all() -> None:
    unanswered = exchange("", None, failure="cannot connect")
    unanswered.headers = {}
    text = Page(
        to_html(report(result("chat/x", "failed", "cannot connect", exchanges={"a": unanswered})))
    ).text
    assert "no answer, cannot connect" in text


def test_stale_and_known_failures_are_apart() -> None:
    text = Page(to_html(mixed())).text
    assert "once was wrong" in text
    assert "vLLM cannot" in text
    assert text.index("Failures") < text.index("Baseline") < text.index("Stale (1)")


def test_without_failures_there_are_no_such_sections() -> None:
    text = Page(to_html(fine())).text
    for absent in ("Does not conform", "Failures", "Differences", "Baseline", "Not tried"):
        assert absent not in text


def test_a_case_is_one_row_with_a_mark_for_each_way() -> None:
    made = report(result("chat/same"), result("completions/same", "failed", "oh"))
    text = to_html(made)
    assert text.count('scope="row" role="rowheader">') == 1
    rows = re.findall(r"<tr role=\"row\">(?:(?!</tr>).)*scope=\"row\".*?</tr>", text, re.S)
    words = Page(rows[0]).text.split("what same requires")[1].split()
    assert words == ["passed", "-", "not", "asked", "failed", "-", "not", "asked"]


def test_every_level_and_mark_is_explained() -> None:
    text = Page(to_html(fine())).text
    for meaning in (*LEGEND.values(), *(meaning for _, meaning in MARKS.values())):
        assert meaning in text


def test_control_characters_do_not_reach_the_page() -> None:
    text = to_html(
        report(result("chat/x", "failed", "\x00\x1b\ud800", exchanges={"answer": exchange("\x08")}))
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", text)
    text.encode()
