"""Asking a model: what is sent, how the answer is shown, how it is stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tenuto.engine.fake import FakeBackend
from tenuto.wire.bounds import Bounds
from tests.conftest import MODEL, Running, Serve, unfinished
from tests.engines import FaultyBackend, StepwiseBackend
from tests.page.conftest import USER, Open, control, enter, keys
from tests.test_docs import DOCUMENTED_BY_THE_HOSTED_API

pytestmark = pytest.mark.page
MARKUP = "<img src=x onerror='window.harmed = true'><script>window.harmed = true</script>"


def says(text: str) -> FakeBackend:
    return FakeBackend(reply=lambda prompt, sampling, index: text)


def send(page: Page, text: str) -> None:
    page.locator("#draft").fill(text)
    page.get_by_role("button", name="Send").click()


def sent(page: Page, act: Callable[[], Any]) -> dict[str, Any]:
    """The body of the request that `act` makes the page send to the model."""
    with page.expect_request("**/completions") as request:
        act()
    body: dict[str, Any] = json.loads(request.value.post_data or "")
    return body


def ended(page: Page) -> Locator:
    """The newest answer, once it is whole."""
    answer = page.locator(".turn.assistant").last
    expect(answer.locator("> footer")).to_contain_text("in all")
    return answer


def test_a_chat_of_several_turns(serve: Serve, opened: Open) -> None:
    page = opened(serve(), "playground")
    page.get_by_text("System prompt").click()
    page.locator("#system").fill("Be brief.")
    body = sent(page, lambda: send(page, "Hello"))
    assert body == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = ended(page)
    expect(text_of(answer)).to_contain_text("reply 0 to")
    expect(answer.locator("> footer")).to_contain_text("stop")
    expect(answer.locator("> footer")).to_contain_text("prompt tokens")
    said = text_of(answer).inner_text()
    body = sent(page, lambda: send(page, "And then?"))
    assert body["messages"][2:] == [
        {"role": "assistant", "content": said},
        {"role": "user", "content": "And then?"},
    ]
    ended(page)
    page.get_by_role("button", name="Edit").last.click()
    expect(page.locator("#draft")).to_have_value("And then?")
    expect(page.locator(".turn")).to_have_count(2)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#turns")).to_contain_text("Nothing said yet")


def test_a_completion(serve: Serve, opened: Open) -> None:
    page = opened(serve(backend=says(" and on")), "playground")
    page.get_by_label("Completion", exact=True).check()
    page.get_by_label("Stream", exact=True).uncheck()
    assert sent(page, lambda: send(page, "On")) == {"model": MODEL, "prompt": "On"}
    expect(text_of(ended(page))).to_have_text(" and on")
    page.get_by_role("button", name="Add to the prompt").click()
    expect(page.locator("#draft")).to_have_value("On and on")


def test_an_answer_is_shown_while_it_comes_and_stop_aborts_it(serve: Serve, opened: Open) -> None:
    server = serve(backend=StepwiseBackend(allowed=3))
    page = opened(server, "playground")
    send(page, "Hello")
    expect(text_of(page)).to_have_text("rep")
    engine = server.engine()
    assert engine.running == 1
    page.get_by_role("button", name="Stop").click()
    server.wait(engine.idle)
    assert engine.running == 0
    assert list(server.call(lambda: unfinished(server.services.pool)).values()) == [0]
    expect(ended(page)).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_stopped_before_the_first_token_the_question_comes_back(serve: Serve, opened: Open) -> None:
    server = serve()
    engine = server.engine()
    server.call(engine.go.clear)
    page = opened(server, "playground")
    send(page, "Hello")
    server.wait(engine.started)
    page.get_by_role("button", name="Stop").click()
    server.wait(engine.idle)
    expect(page.locator("#draft")).to_have_value("Hello")
    expect(page.locator(".turn")).to_have_count(0)


def text_of(part: Locator | Page) -> Locator:
    """Of the newest answer, or of a part of one."""
    return part.locator(".text:not(.mono)").last


def schema_of(server: Running, kind: str) -> dict[str, Any]:
    document = server.client.get("/openapi.json").json()
    found: dict[str, Any] = document["components"]["schemas"][kind]["properties"]
    return found


@pytest.mark.parametrize("kind", ["ChatRequest", "CompletionRequest"])
def test_every_field_is_a_control_with_the_bounds_of_the_server(
    serve: Serve, opened: Open, kind: str
) -> None:
    server = serve(bounds=Bounds(n=3, logprobs=7))
    page = opened(server, "playground")
    if kind == "CompletionRequest":
        page.get_by_label("Completion", exact=True).check()
    schema = schema_of(server, kind)
    for name in schema.keys() - {"model", "messages", "prompt", "stream"}:
        expect(page.locator(f"#parameter-{name}")).to_have_count(1)
        option = schema[name].get("anyOf", [{}])[0]
        low = option.get("exclusiveMinimum", option.get("minimum"))
        for attribute, bound in (("min", low), ("max", option.get("maximum"))):
            value = page.locator(f"#parameter-{name}").get_attribute(attribute)
            assert (value and float(value)) == (bound and float(bound)), name
    assert control(page, "n").get_attribute("max") == "3"
    assert control(page, "temperature").get_attribute("placeholder") == "1"
    first = page.locator(".parameters details").first.locator("label")
    assert sorted(first.all_inner_texts()) == sorted(DOCUMENTED_BY_THE_HOSTED_API)


def test_what_the_model_has_of_its_own_is_its_default(serve: Serve, opened: Open) -> None:
    models = [{"id": MODEL, "sampling_defaults": {"temperature": 0.25}}]
    page = opened(serve(models=models), "playground")
    expect(control(page, "temperature")).to_have_attribute("placeholder", "0.25")


def test_what_is_set_is_sent_and_nothing_else(serve: Serve, opened: Open) -> None:
    page = opened(serve(), "playground")
    control(page, "temperature").fill("0.5")
    control(page, "top_k").fill("40")
    control(page, "detokenize").select_option("true")
    control(page, "stop").fill("END")
    control(page, "seed").fill("9007199254740993")
    control(page, "logit_bias").fill('{"5": -1}')
    control(page, "bad_words").fill('["no"]')
    body = sent(page, lambda: send(page, "Hello"))
    own = {"model", "messages", "stream", "stream_options"}
    assert {name: value for name, value in body.items() if name not in own} == {
        "temperature": 0.5,
        "top_k": 40,
        "detokenize": True,
        "stop": "END",
        "seed": 9007199254740993,
        "logit_bias": {"5": -1},
        "bad_words": ["no"],
    }
    ended(page)
    control(page, "stop").fill('["a", "b"]')
    page.get_by_label("Completion", exact=True).check()
    body = sent(page, lambda: send(page, "Hello"))
    assert (body["stop"], body["temperature"]) == (["a", "b"], 0.5)
    ended(page)
    page.get_by_role("button", name="Reset").click()
    assert "stop" not in sent(page, lambda: send(page, "Hello"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("temperature", "3", "2"),
        ("top_p", "0", "More than 0"),
        ("n", "1.5", "valid value"),
        ("logit_bias", "{", "not JSON"),
    ],
)
def test_a_value_out_of_bounds_is_not_sent(
    serve: Serve, opened: Open, name: str, text: str, said: str
) -> None:
    page = opened(serve(), "playground")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    control(page, name).fill(text)
    send(page, "Hello")
    expect(page.locator(f"#parameter-{name}-wrong")).to_contain_text(said)
    expect(page.locator(f"#parameter-{name}")).to_be_focused()
    assert not [url for url in asked if url.endswith("completions")]


def test_an_error_is_shown_with_all_that_it_says(serve: Serve, opened: Open) -> None:
    page = opened(serve(), "playground")
    control(page, "n").fill("2")
    control(page, "best_of").fill("1")
    with page.expect_response("**/completions") as response:
        send(page, "Hello")
    alert = page.get_by_role("alert")
    error = response.value.json()["error"]
    for part in (error["message"], "best_of", "BadRequestError", "400"):
        expect(alert).to_contain_text(part)
    expect(alert).to_contain_text(response.value.headers["x-request-id"])
    expect(page.locator("#parameter-best_of-wrong")).to_contain_text("best_of")
    expect(page.locator("#draft")).to_have_value("Hello")


def test_without_a_key_one_is_asked_for(serve: Serve, opened: Open) -> None:
    page = opened(serve(keys=keys()), "playground")
    expect(page.get_by_role("alert")).to_contain_text("No api key passed in")
    page.get_by_label("Completion", exact=True).check()
    send(page, "Hello")
    enter(page, USER)
    expect(page.locator("#model")).to_have_value(MODEL)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Send").click()
    expect(text_of(ended(page))).to_contain_text("reply 0")


def test_an_error_within_a_stream(serve: Serve, opened: Open) -> None:
    page = opened(serve(backend=FaultyBackend()), "playground")
    send(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("internal_server_error")
    expect(ended(page)).to_contain_text("failed")


def test_choices_side_by_side(serve: Serve, opened: Open) -> None:
    page = opened(serve(), "playground")
    control(page, "n").fill("3")
    send(page, "Hello")
    choices = ended(page).locator(".choice")
    expect(choices).to_have_count(3)
    boxes = [choices.nth(index).bounding_box() for index in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    page.get_by_role("radio", name="Choice 2").check()
    said = text_of(page.get_by_role("region", name="Choice 2")).inner_text()
    assert said.startswith("reply 1")
    body = sent(page, lambda: send(page, "Go on"))
    assert body["messages"][1]["content"] == said


@pytest.mark.parametrize("endpoint", ["Chat", "Completion"])
def test_log_probabilities(serve: Serve, opened: Open, endpoint: str) -> None:
    page = opened(serve(backend=says("two words")), "playground")
    page.get_by_label(endpoint, exact=True).check()
    if endpoint == "Chat":
        control(page, "logprobs").select_option("true")
        control(page, "top_logprobs").fill("2")
    else:
        control(page, "logprobs").fill("2")
    send(page, "Hello")
    tokens = ended(page).locator(".token")
    expect(tokens).to_have_count(len("two words"))
    colour = tokens.first.evaluate("token => getComputedStyle(token).backgroundColor")
    assert colour != page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    tokens.nth(4).hover()
    alternatives = page.get_by_role("tooltip")
    expect(alternatives.locator("code")).to_have_text(['"w"', '"\\u0000"', '"\\u0001"'])
    expect(alternatives).to_contain_text("60.7 %")
    page.locator("h1").hover()
    expect(alternatives).to_be_hidden()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(alternatives.locator("code").first).to_have_text('"w"')
    expect(tokens.nth(1)).to_have_attribute("aria-describedby", "alternatives")
    page.keyboard.press("Escape")
    expect(alternatives).to_be_hidden()


def test_tokens_are_counted_while_one_types(serve: Serve, opened: Open) -> None:
    server = serve()
    page = opened(server, "playground")
    page.locator("#draft").press_sequentially("Hello there")
    message = {"role": "user", "content": "Hello there"}
    asked = {"model": MODEL, "messages": [message]}
    total = server.client.post("/utils/token_counter", json=asked).json()["total_tokens"]
    expect(page.locator("#count")).to_have_text(f"Prompt: {total} of 2,048 tokens")
    page.get_by_label("Completion", exact=True).check()
    expect(page.locator("#count")).to_have_text("Prompt: 11 of 2,048 tokens")


@pytest.mark.parametrize("logprobs", [False, True])
def test_what_a_model_says_is_text(serve: Serve, opened: Open, logprobs: bool) -> None:
    page = opened(serve(backend=says(MARKUP)), "playground")
    if logprobs:
        control(page, "logprobs").select_option("true")
    page.locator("#system").evaluate("(box, text) => box.value = text", MARKUP)
    send(page, MARKUP)
    answer = ended(page)
    expect(text_of(answer)).to_have_text(MARKUP)
    expect(page.locator(".turn.user .text")).to_have_text(MARKUP)
    answer.get_by_text("Raw").click()
    assert page.locator("#turns :is(img, script)").count() == 0
    assert page.evaluate("window.harmed") is None


def copied(page: Page, name: str) -> str:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name=name).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


@pytest.mark.parametrize("endpoint", ["Chat", "Completion"])
@pytest.mark.parametrize("how", ["curl", "Python"])
def test_copied_requests_give_the_same_answer(
    serve: Serve, opened: Open, endpoint: str, how: str
) -> None:
    page = opened(serve(keys=keys()), "playground", key=USER)
    expect(page.locator("#model")).to_have_value(MODEL)
    page.get_by_label(endpoint, exact=True).check()
    control(page, "seed").fill("7")
    control(page, "top_k").fill("40")
    control(page, "max_tokens").fill("200")
    page.locator("#draft").fill('It\'s "so" \\ $HOME\nand so')
    text = copied(page, f"Copy as {how}")
    assert USER not in text
    command = ["bash", "-c", text] if how == "curl" else [sys.executable, "-c", text]
    environment = {**os.environ, "TENUTO_API_KEY": USER}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    page.get_by_role("button", name="Send").click()
    answer = text_of(ended(page)).inner_text()
    assert "seed 7" in answer
    if how == "Python":
        assert ran.stdout == answer
    else:
        chunks = [json.loads(line[6:]) for line in ran.stdout.splitlines() if "{" in line]
        pieces = [choice for chunk in chunks for choice in chunk["choices"]]
        texts = [piece.get("text") or piece.get("delta", {}).get("content") for piece in pieces]
        assert "".join(filter(None, texts)) == answer


def tab_to(page: Page, name: str) -> None:
    for _ in range(60):
        if page.evaluate("document.activeElement.id || document.activeElement.textContent") == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the tab key does not reach {name}")


def test_a_chat_by_keyboard_alone(serve: Serve, opened: Open) -> None:
    page = opened(serve(keys=keys()))
    tab_to(page, "key")
    page.keyboard.type(USER)
    page.keyboard.press("Enter")
    expect(page.locator("#key-state")).to_have_text("key accepted")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    tab_to(page, "Playground")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_value(MODEL)
    tab_to(page, "draft")
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    body = sent(page, lambda: page.keyboard.press("Enter"))
    assert body["messages"][0]["content"] == "Hello\nthere"
    ended(page)
    expect(page.locator("#said")).to_contain_text("completion tokens")
    expect(page.locator("#draft")).to_be_focused()
