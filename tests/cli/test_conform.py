"""`tenuto conform`: what it prints and writes, and its exit codes."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tenuto.cli.conform import app
from tests.conformance.red import faulty_server
from tests.conformance.variants_asked import HONEST_KEY, LIMITED_KEY

ONLY = ("--only", "*/n-choices", "--only", "models/*")
N_CHOICES = [
    f"{way}{mode}/n-choices" for way in ("chat", "completions") for mode in ("", "-stream")
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with faulty_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", HONEST_KEY)
    monkeypatch.setenv("LIMITED", LIMITED_KEY)
    # Rich would colour the words that are looked for.
    monkeypatch.setenv("NO_COLOR", "1")


def conform(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(url: str, *arguments: object) -> Result:
    return conform("run", "--base-url", url, "--api-key-env", "TOKEN", *arguments)


def test_a_server_that_conforms(url: str, tmp_path: Path) -> None:
    files = {form: tmp_path / f"report.{form}" for form in ("json", "junit", "html")}
    written = [part for form, path in files.items() for part in (f"--{form}", path)]
    ended = run(f"{url}/v1/", *ONLY, *written)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "12 cases: 18 requests, at most" in ended.stdout
    assert "conforms: 12 passed" in ended.stdout
    found = json.loads(files["json"].read_text())
    assert (found["conforms"], found["target"]) == (True, url)
    assert found["counts"]["cases"] == found["counts"]["passed"] == 12
    assert len(ElementTree.parse(files["junit"]).findall(".//testcase")) == 12
    assert files["html"].read_text().startswith("<!DOCTYPE html>")


def test_a_server_that_does_not(url: str, tmp_path: Path) -> None:
    ended = run(f"{url}/faults/ignores-n", *ONLY, "--json", tmp_path / "report.json")
    assert ended.exit_code == 1
    assert "does not conform: 8 passed, 4 failed" in ended.stdout
    for case in N_CHOICES:
        assert case in ended.stdout
    assert "n: Number of output sequences to return for the given prompt." in ended.stdout
    assert f"curl -sN -X POST {url}/faults/ignores-n/v1/chat/completions" in ended.stdout
    assert HONEST_KEY not in ended.stdout + (tmp_path / "report.json").read_text()


def baseline(directory: Path, *ids: str) -> Path:
    path = directory / "baseline.yaml"
    path.write_text("".join(f"{id}: it takes no n\n" for id in ids))
    return path


def test_what_is_expected_does_not_break_it(url: str, tmp_path: Path) -> None:
    known = baseline(tmp_path, *N_CHOICES)
    ended = run(f"{url}/faults/ignores-n", *ONLY, "--baseline", known)
    assert ended.exit_code == 0
    assert "conforms: 8 passed, 4 expected" in ended.stdout
    ended = run(url, "--only", "chat/n-choices", "--baseline", known)
    assert ended.exit_code == 1
    assert "does not conform: 1 passed, 1 stale" in ended.stdout
    assert "take these out of the baseline" in ended.stdout


def test_a_budget(url: str) -> None:
    ended = run(url, "--only", "models/*", "--only", "chat/answers", "--budget", "8:64")
    assert ended.exit_code == 0
    assert "3 cases: 8 requests, at most 64 tokens" in ended.stdout
    assert "6 not run: beyond the budget" in ended.stdout
    assert "conforms: 3 passed, 6 not run" in ended.stdout


OPEN = ("--only", "models/list", "--only", "chat/top_k-limits")


def test_what_cannot_be_judged_leaves_no_verdict(url: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    ended = run(url, *OPEN, "--prompt", "open=ha ha ha ha ", "--json", path)
    assert (ended.exit_code, ended.stderr) == (2, "")
    assert "no verdict: 1 passed, 1 not judged" in ended.stdout
    assert "1 not judged: no prompt was found that is open/chat for this model" in ended.stdout
    found = json.loads(path.read_text())
    assert (found["verdict"], found["conforms"]) == ("no verdict", False)
    known = baseline(tmp_path, "models/list")
    ended = run(url, *OPEN, "--prompt", "open=ha ha ha ha ", "--baseline", known)
    assert (ended.exit_code, ended.stderr) == (1, "")


def test_a_prompt_of_the_users_own(url: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    own = ("--prompt", "open=1 + 1 = what?", "--prompt", "short=Hello!")
    assert run(url, *OPEN, *own, "--json", path).exit_code == 0
    assert json.loads(path.read_text())["facts"]["prompts"] == {"open/chat": "1 + 1 = what?"}


@pytest.mark.parametrize(
    "arguments", [("run", "--base-url"), ("compare", "--a", "hosted-stack", "--b")], ids=str
)
def test_a_url_with_credentials_is_not_asked(url: str, arguments: tuple[str, ...]) -> None:
    ended = conform(*arguments, url.replace("http://", "http://ada:hidden@"))
    assert ended.exit_code == 2
    assert ended.stderr.startswith("tenuto conform: the base URL holds credentials")
    assert "hidden" not in ended.output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--api-key-env", "UNSET_TOKEN"), "the environment has no UNSET_TOKEN"),
        (("--limited-api-key-env", "UNSET_TOKEN"), "the environment has no UNSET_TOKEN"),
        (("--only", "nothing/*"), "no case matches nothing/*"),
        (("--budget", "cheap"), "--budget is REQUESTS or REQUESTS:TOKENS, not 'cheap'"),
        (("--budget", "1:many"), "--budget is REQUESTS or REQUESTS:TOKENS, not '1:many'"),
        (("--budget", "0"), "the budget allows no case"),
        (("--budget", "6"), "the budget allows no case"),
        (("--prompt", "open"), "--prompt is NAME=TEXT, the name one of "),
        (("--prompt", "open="), "--prompt is NAME=TEXT, the name one of "),
        (("--prompt", "any=Hi"), "--prompt is NAME=TEXT, the name one of "),
        (("--baseline", "nowhere.yaml"), "cannot read the baseline nowhere.yaml"),
        (
            ("--only", "models/list", "--json", "no/such/directory"),
            "the kit itself failed: FileNot",
        ),
    ],
)
def test_no_verdict_is_one_line(url: str, arguments: tuple[str, ...], line: str) -> None:
    ended = conform("run", "--base-url", url, *arguments)
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"tenuto conform: {line}")
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.output


def test_a_key_with_a_limit(url: str) -> None:
    only = ("--only", "limits/*", "--only", "models/list")
    ended = run(url, *only)
    assert "conforms: 1 passed, 10 not applicable" in ended.stdout
    assert "10 not applicable: no key with a limit was given" in ended.stdout
    ended = run(url, *only, "--limited-api-key-env", "LIMITED")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "conforms: 11 passed" in ended.stdout


@pytest.mark.parametrize("key", ["", "  ", "sk-a\nb", "sk-é"])
def test_a_key_that_cannot_be_sent(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", key)
    ended = run(url, "--only", "models/list")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("tenuto conform: ")
    assert key.strip() == "" or key not in ended.stderr


def test_a_line_break_after_the_key_is_none_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", f"{HONEST_KEY}\n")
    assert run(url, "--only", "models/list").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "--base-url"), ("judge",), ("run", "--timeout", "0")]
)
def test_what_cannot_be_understood(arguments: tuple[str, ...]) -> None:
    assert conform(*arguments).exit_code == 2


def test_recorded_replayed_and_compared(url: str, tmp_path: Path) -> None:
    asked = ("--base-url", url, "--api-key-env", "TOKEN", *ONLY, "--origin", "the toy")
    recording = tmp_path / "recording"
    ended = conform("record", recording, *asked)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert HONEST_KEY not in "".join(path.read_text() for path in recording.iterdir())
    ended = conform("replay", recording, *ONLY, "--json", tmp_path / "replay.json")
    assert ended.exit_code == 0
    assert json.loads((tmp_path / "replay.json").read_text())["target"] == "the toy"
    sides = ("--a", recording, *ONLY, "--b-key-env", "TOKEN", "--b")
    ended = conform("compare", *sides, url, "--json", tmp_path / "compared.json")
    assert ended.exit_code == 0, ended.stdout
    assert json.loads((tmp_path / "compared.json").read_text())
    ended = conform("compare", *sides, f"{url}/faults/ignores-n")
    assert ended.exit_code == 1
    assert "n-choices" in ended.stdout
    assert "hosted/n" in ended.stdout


def test_a_recording_is_made_whatever_is_answered(url: str, tmp_path: Path) -> None:
    bad = ("--base-url", f"{url}/faults/ignores-n", "--api-key-env", "TOKEN", *ONLY)
    ended = conform("record", tmp_path / "bad", *bad)
    assert ended.exit_code == 0
    assert "does not conform" in ended.stdout
    assert conform("replay", tmp_path / "bad", *ONLY).exit_code == 1
    assert conform("replay", tmp_path / "nowhere").exit_code == 2


def test_beside_the_hosted_stack(url: str) -> None:
    ended = conform("compare", "--a", "hosted-stack", "--b", url, "--b-key-env", "TOKEN", "--all")
    assert ended.exit_code in (0, 1), ended.stderr
    assert re.search(r"\b54 requests\b", ended.stdout)


def test_the_cases_are_listed() -> None:
    lines = conform("cases", "--only", "models/*").stdout.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("models/list\tdocumented\tThe list of models ")
    assert conform("cases", "--only", "nothing").exit_code == 2
