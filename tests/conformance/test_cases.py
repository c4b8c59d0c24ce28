"""The cases themselves: well formed, each resting on a sentence, and enough of them."""

import fnmatch
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tenuto.conformance import cases
from tenuto.conformance.building import RUNNERS, requests_of
from tenuto.conformance.cases import LEVELS, Case, CaseError, Way, all_cases, selected, sources
from tenuto.conformance.checks.registry import ACROSS, EACH
from tenuto.conformance.facts import SUITS, Facts, candidates

ALL = all_cases()
WAYS = set(get_args(Way))
PARAMETERS = [
    *("n", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("stop", "max_tokens", "min_tokens", "detokenize", "skip_special_tokens"),
]
PACKAGE = Path(cases.__file__).parent
FILES = sorted((PACKAGE / "cases").glob("*.yaml"))


def ids(wrong: Iterator[Case]) -> list[str]:
    return [case.id for case in wrong]


def named_in(check: str, wanted: Any) -> set[str]:
    """The exchanges that a check's argument names."""
    if check in ("equal", "differ", "rising"):
        return {path.partition(":")[0] for path in wanted}
    if isinstance(wanted, list):
        return {*wanted}
    names: set[str] = set()
    for key in ("probe", "samples", "singles", "best", "full", "cut", "plain", "shown", "hidden"):
        value = wanted.get(key, [])
        names |= {value} if isinstance(value, str) else {*value}
    return names


def test_there_are_enough() -> None:
    assert len(ALL) >= 150
    assert {case.level for case in ALL} == {*LEVELS}
    assert {case.way for case in ALL} == {*WAYS, None}


def test_ids_are_names_for_good() -> None:
    assert len({case.id for case in ALL}) == len(ALL)
    assert (
        ids(c for c in ALL if not re.fullmatch(r"[a-z-]+(_[a-z]+)?/[A-Za-z0-9_./-]+", c.id)) == []
    )
    assert ids(c for c in ALL if c.way and c.group != c.way) == []
    assert ids(c for c in ALL if not c.way and c.group in WAYS) == []


def test_texts_are_sentences() -> None:
    assert ids(c for c in ALL if not re.fullmatch(r"[^\n]+[^\s.]\.", c.requires)) == []
    assert [name for name, sentence in sources().items() if not sentence.strip()] == []


def test_checks_are_there() -> None:
    for case in ALL:
        for check in case.check:
            [name] = check.keys() - {"of"}
            assert name in EACH.keys() | ACROSS.keys(), case.id
            assert not ("of" in check and name in ACROSS), case.id


def test_no_check_is_without_a_case() -> None:
    used = {name for case in ALL for check in case.check for name in check}
    assert (EACH.keys() | ACROSS.keys()) - used == set()
    assert EACH.keys() & ACROSS.keys() == set()


def test_checks_name_what_is_sent() -> None:
    for case in ALL:
        for check in case.check:
            of = check.get("of", [])
            names = {of} if isinstance(of, str) else {*of}
            for name in check.keys() & ACROSS.keys():
                names |= named_in(name, check[name])
                assert names, case.id
            assert [name for name in names if not fnmatch.filter(case.send, name)] == [], case.id


def test_whoever_is_left_is_left_for_another() -> None:
    for case in ALL:
        order = list(case.send)
        for name, spec in case.send.items():
            if other := spec.get("http", {}).get("leave_after"):
                assert order.index(other) > order.index(name), case.id


def test_every_case_can_be_built() -> None:
    facts = Facts("a-model", "a-rejecting-model", True)
    for case in ALL:
        built = requests_of(case, facts)
        assert built.keys() == case.send.keys()
        for request in built.values():
            assert request.path.startswith("/"), case.id
            assert not {"{", "}"} & {*request.path}, case.id
            assert request.content is None or b"{model}" not in request.content, case.id


def test_nothing_of_a_request_is_misspelt() -> None:
    http = {"get", "post", "put", "delete", "options", "head"}
    http |= {*RUNNERS, "raw", "auth", "headers", "until", "within_s", "patient", "omit"}
    for case in ALL:
        for spec in case.send.values():
            assert spec.get("http", {}).keys() <= http, case.id
            assert candidates(spec.get("ask", "any")), case.id


def test_needs_are_facts() -> None:
    assert all(hasattr(Facts(), need) for case in ALL for need in case.needs)
    asks = ids(c for c in ALL if "{rejecting_model}" in str(c.send))
    assert ids(c for c in ALL if "rejecting_model" in c.needs) == asks


def test_a_case_asks_for_what_has_to_be_found() -> None:
    """Else it would be tried with a prompt that says nothing."""
    for case in ALL:
        endpoint = (case.way or "").removesuffix("-stream")
        named = {s["ask"] for s in case.send.values() if "ask" in s}
        assert named <= SUITS.keys(), case.id
        assert case.asks == {f"{name}/{endpoint}" for name in named}
        if "{stop}" in str(case.send):
            assert f"short/{endpoint}" in case.asks, case.id
        if "'context'" in str(case.send):
            assert "context" in case.needs, case.id


def test_every_documented_sentence_has_its_case() -> None:
    used = {case.source for case in ALL}
    assert used <= sources().keys()
    documented = {name for name in sources() if name.startswith("hosted/")}
    assert documented - used == set()
    assert ids(c for c in ALL if c.level == "documented" and c.source not in documented) == []
    assert ids(c for c in ALL if c.quote != sources()[c.source]) == []


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_each_parameter_is_seen_to_work_on_every_way(parameter: str) -> None:
    """By what it does to an answer, not by what is refused."""
    effects = [
        case
        for case in ALL
        if case.source == f"hosted/{parameter}"
        and case.level == "documented"
        and any(parameter in spec for spec in case.send.values())
        and not any("error" in check for check in case.check)
    ]
    assert {case.way for case in effects} == WAYS


def test_the_parameters_are_the_documented_ones() -> None:
    described = {
        n.partition("/")[2]
        for n, text in sources().items()
        if text.startswith(f"{n.partition('/')[2]}: ")
    }
    assert {name for name in described if f"hosted/{name}" in sources()} == {*PARAMETERS}


@pytest.mark.parametrize(
    ("globs", "number"),
    [
        ([], len(ALL)),
        (["*"], len(ALL)),
        (["models/list"], 1),
        (["models/list", "models/*"], 8),
        (["models"], 8),
        (["MODELS"], 0),
        (["hosted/models-request"], 1),
        (["*/n-choices"], 4),
        (["chat/n-choice"], 0),
        (["*/n-choice[s]", "nothing"], 4),
    ],
)
def test_globs(globs: list[str], number: int) -> None:
    found = selected(ALL, globs)
    assert len(found) == number
    assert found == [case for case in ALL if case in found]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_a_glob(level: str) -> None:
    assert selected(ALL, [level]) == [case for case in ALL if case.level == level]
    assert all(case.is_must == (level != "observed") for case in selected(ALL, [level]))


ROW: dict[str, Any] = {
    "id": "one",
    "level": "contract",
    "source": "openai/usage",
    "requires": "Nothing.",
    "send": {"answer": {}},
    "check": [{"status": 200}],
}
ReadKit = Callable[[str], tuple[Case, ...]]


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadKit]:
    """Reads a kit whose only file of cases, own.yaml, is the text that is given."""
    (tmp_path / "cases").mkdir()
    shutil.copy(PACKAGE / "sources.yaml", tmp_path)
    monkeypatch.setattr(cases, "files", lambda package: tmp_path)

    def read(text: str) -> tuple[Case, ...]:
        (tmp_path / "cases" / "own.yaml").write_text(text)
        (tmp_path / "cases" / "notes.txt").write_text("not: [cases")
        return all_cases()

    all_cases.cache_clear()
    yield read
    all_cases.cache_clear()


def test_on_is_a_key_and_off_a_word(kit: ReadKit) -> None:
    rows = "{on: [chat, chat-stream], id: a, level: observed, source: openai/usage, requires: x,"
    read = kit(f"- {rows} send: {{answer: {{a: off, b: yes, c: true, d: false}}}}, check: [{{}}]}}")
    assert [(case.id, case.way) for case in read] == [
        ("chat/a", "chat"),
        ("chat-stream/a", "chat-stream"),
    ]
    assert read[0].send == {"answer": {"a": "off", "b": "yes", "c": True, "d": False}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": "wished"}, "level"),
        ({"levle": "observed"}, "levle"),
        ({"id": "One"}, "id"),
        ({"send": {}}, "send"),
        ({"check": []}, "check"),
        ({"on": ["carrier-pigeon"]}, "on"),
        ({"needs": ["luck"]}, "needs"),
        ({"requires": None}, "requires"),
        ({"source": "openai/nothing"}, "sources.yaml has no 'openai/nothing'"),
    ],
)
def test_a_broken_row_is_named(kit: ReadKit, change: dict[str, Any], words: str) -> None:
    row = ROW | change
    with pytest.raises(CaseError, match=re.escape(words)) as caught:
        kit(yaml.safe_dump([ROW | {"id": "other"}, row]))
    assert str(caught.value).startswith(f"own.yaml: {row['id']}: ")


@pytest.mark.parametrize("text", ["- just words", "- [a, b]", "a: b", "- null", "words"])
def test_a_row_that_is_none_is_named(kit: ReadKit, text: str) -> None:
    with pytest.raises(CaseError, match=r"^own\.yaml: "):
        kit(text)


def test_an_id_stands_once(kit: ReadKit) -> None:
    with pytest.raises(CaseError, match="two cases have one id: chat/one, one"):
        kit(yaml.safe_dump([ROW, ROW, *[ROW | {"on": ["chat"]}] * 2, ROW | {"id": "two"}]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_says_what_is_in_it(file: Path) -> None:
    assert re.match(r"\d\d-[a-z-]+\.yaml$", file.name)
