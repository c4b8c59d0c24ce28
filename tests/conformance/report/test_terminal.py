import io
import re

import pytest
from rich.console import Console

from tenuto.conformance.report.terminal import print_cost, print_report, progress
from tenuto.conformance.run import Cost
from tenuto.conformance.verdict import Report
from tests.conformance.report.made import exchange, fine, mixed, report, result, unclear


def console(width: int = 100, is_terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None, _environ={}
    )


def printed(made: Report, width: int = 100) -> str:
    return text_of(made, console(width))


def text_of(made: Report, to: Console) -> str:
    print_report(to, made)
    return output(to)


def output(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def row(text: str, name: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return line.split()


def test_the_table_counts_each_group() -> None:
    text = printed(mixed())
    assert row(text, "chat") == ["chat", "2", "1", "1", *"-----"]
    assert row(text, "models") == ["models", "6", "1", "-", *"11111"]
    assert row(text, "all") == ["all", "9", "2", "2", *"11111"]
    assert row(text, "group")[:4] == ["group", "cases", "passed", "failed"]


def test_a_failure_in_full() -> None:
    text = printed(mixed())
    story = text[text.index("chat/broken") : text.index("completions/broken")]
    assert "documented" in story
    assert "what broken requires" in story
    assert '"top_k: Number of top tokens to consider." (hosted/top_k)' in story
    assert "status 500 instead of 200: oh no" in story
    assert "curl -sN -X POST http://server.test:8000/v1/completions" in story


def test_the_order_and_the_last_line() -> None:
    text = printed(mixed())
    parts = ["models ", "chat/broken", "completions/broken", "models/seen", "models/mended"]
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions)
    assert " ".join(" ".join(text.splitlines()[-2:]).split()) == (
        "does not conform: 2 passed, 2 failed, 1 differs, 1 expected, 1 not applicable, "
        "1 not judged, 1 not run, 1 stale"
    )
    assert "once was wrong" in text
    assert "1 not applicable: the server has no rejecting model" in text
    assert "1 not judged: no prompt was found that is open" in text


def test_without_a_verdict() -> None:
    text = printed(unclear())
    assert text.splitlines()[-1] == "no verdict: 1 passed, 1 not judged"
    assert "curl" not in text


def test_without_failures() -> None:
    text = printed(fine())
    assert text.splitlines()[-1] == "conforms: 2 passed"
    assert "curl" not in text
    assert "Differs" not in text
    assert "baseline" not in text


def test_no_cases() -> None:
    assert printed(report()).splitlines()[-1] == "conforms: no cases"


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_only_the_line_to_copy_is_wider_than_the_page(width: int) -> None:
    long = result("chat/long", "failed", "word " * 60 + "x" * 300)
    seen = result("models/seen", "failed", "y" * 300, "observed")
    text = printed(
        report(long, seen, *mixed().results, expected={"models/mended": "z" * 200}), width
    )
    [copied] = {line for line in text.splitlines() if "curl " in line}
    assert len(copied) > 100
    assert max(len(line) for line in text.splitlines() if line != copied) <= min(width, 100)


def test_the_line_of_the_exchange_that_is_named() -> None:
    two = {"one": exchange(), "two": exchange()}
    object.__setattr__(two["one"].request, "path", "/v1/first")
    text = printed(report(result("chat/x", "failed", "one: oh", exchanges=two)))
    assert "/v1/first" in text


def test_a_server_does_not_command_the_terminal() -> None:
    nasty = result("chat/x", "failed", "\x1b[2J\x07 [red]markup[/red] \ud800")
    text = printed(report(nasty))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]markup[/red]" in text
    text.encode()


def test_colours_change_no_word() -> None:
    colourful = Console(file=io.StringIO(), width=100, force_terminal=True, _environ={})
    text = text_of(mixed(), colourful)
    assert "\x1b[" in text
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == printed(mixed())


def test_the_cost_in_advance() -> None:
    to = console()
    print_cost(to, Cost(540, 61_000), 212)
    print_cost(to, Cost(1, 1), 1)
    assert output(to) == (
        "212 cases: 540 requests, at most 61,000 tokens\n1 case: 1 request, at most 1 token\n"
    )


def test_progress_without_a_terminal_is_one_line_at_the_end() -> None:
    to = console()
    with progress(to, 2) as add:
        for done in mixed().results[:2]:
            add(done)
            assert output(to) == ""
    assert re.fullmatch(r"2 of 2 cases in \d+\.\d s\n", output(to))


def test_progress_in_a_terminal_counts_failures() -> None:
    to = console(is_terminal=True)
    with progress(to, 9) as add:
        for done in mixed().results:
            add(done)
    text = output(to)
    assert "9/9" in text
    # The observed one is not counted.
    assert "3 failed" in text


def test_a_run_that_never_began_prints_nothing() -> None:
    to = console()
    with pytest.raises(KeyError), progress(to, 2):
        raise KeyError
    assert output(to) == ""


def test_a_failure_without_any_request() -> None:
    text = printed(report(result("chat/x", "failed", "oh no", exchanges={})))
    assert "oh no" in text
    assert "curl" not in text
