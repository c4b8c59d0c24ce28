"""What a prompt may look like, and that the model sees what was meant."""

from typing import Any

import pytest

from tests.live.conftest import MODEL, LiveServer
from tests.live.knowledge import ANSWERS, COLOURS, HELLO
from tests.live.ways import CHAT, COMPLETIONS, COMPLETIONS_STREAMED, Way, each_way

pytestmark = pytest.mark.live

BOS = "<|begin_of_text|>"
BOTH = [HELLO, COLOURS]
EXPECTED = [f"\n{ANSWERS[prompt]}" for prompt in BOTH]
GREEDY: dict[str, Any] = {"temperature": 0}
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/cat.png"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
each_completions = pytest.mark.parametrize("way", [COMPLETIONS, COMPLETIONS_STREAMED], ids=str)


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def ids_of(live: LiveServer, prompt: str, **fields: Any) -> list[int]:
    body = {"model": MODEL, "prompt": prompt, **fields}
    tokens: list[int] = live.client.post("/tokenize", json=body).json()["tokens"]
    return tokens


def seen(live: LiveServer, way: Way, **fields: Any) -> list[str]:
    """The prompts as the engine got them, special tokens included."""
    body = {"model": MODEL, "max_tokens": 1, "return_token_ids": True, **fields}
    response = live.client.post(way.path, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    holders = [answer] if way == CHAT else answer["choices"]
    texts = []
    for holder in holders:
        body = {"model": MODEL, "tokens": holder["prompt_token_ids"]}
        texts.append(live.client.post("/detokenize", json=body).json()["prompt"])
    return texts


def said(live: LiveServer, messages: list[dict[str, Any]], **fields: Any) -> str:
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 100, **fields}
    response = live.client.post(CHAT.path, json=body)
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


@each_completions
@pytest.mark.parametrize("n", [1, 2])
def test_one_prompt_or_many(live: LiveServer, way: Way, n: int) -> None:
    fields = {"temperature": 0.01, "n": n}
    expected = [text for text in EXPECTED for _ in range(n)]
    tokens = [ids_of(live, prompt) for prompt in BOTH]
    for prompts in (BOTH, tokens):
        answer = way.ask(live, prompts, **fields)  # type: ignore[arg-type]
        assert answer.texts == expected
        assert [choice.index for choice in answer.choices] == list(range(2 * n))
        assert answer.usage["prompt_tokens"] == sum(map(len, tokens))
    for prompt in (HELLO, tokens[0], [HELLO], [tokens[0]]):
        assert way.ask(live, prompt, **fields).texts == EXPECTED[:1] * n  # type: ignore[arg-type]


@each_completions
def test_token_ids_are_taken_as_they_are(live: LiveServer, way: Way) -> None:
    bare = ids_of(live, HELLO, add_special_tokens=False)
    assert ids_of(live, HELLO)[1:] == bare
    answer = way.ask(live, bare, **GREEDY)  # type: ignore[arg-type]
    assert answer.usage["prompt_tokens"] == len(bare)


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_of_a_text(live: LiveServer, special: bool) -> None:
    fields = {"prompt": HELLO, "add_special_tokens": special}
    assert seen(live, COMPLETIONS, **fields) == [BOS * special + HELLO]


@pytest.mark.parametrize("prompt", [[10**6], [[1, 2], [10**6]]], ids=str)
def test_token_ids_beyond_the_vocabulary(live: LiveServer, prompt: Any) -> None:
    error = refused(live, COMPLETIONS, prompt=prompt)
    assert error["param"] == "prompt"


@each_way
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_a_prompt_is_truncated(live: LiveServer, way: Way, side: str | None) -> None:
    """Its end is what is kept unless told otherwise: that is what models answer to."""
    whole = ids_of(live, HELLO) if way.endpoint == "completions" else None
    body = {"model": MODEL, **way.body(HELLO), "max_tokens": 1}
    if whole is None:
        messages = {"model": MODEL, "messages": body["messages"]}
        whole = live.client.post("/tokenize", json=messages).json()["tokens"]
    assert whole is not None
    cut = {"truncate_prompt_tokens": 3, "truncation_side": side, "return_token_ids": True}
    answer = live.client.post(
        way.path, json={**body, "stream": False, "stream_options": None, **cut}
    )
    holder = answer.json() if way.endpoint == "chat" else answer.json()["choices"][0]
    assert holder["prompt_token_ids"] == (whole[:3] if side == "right" else whole[-3:])
    assert answer.json()["usage"]["prompt_tokens"] == 3
    streamed = way.ask(live, HELLO, **{**cut, "max_tokens": 1})
    assert streamed.usage["prompt_tokens"] == 3


@pytest.mark.parametrize("way", [CHAT, COMPLETIONS], ids=str)
def test_truncation_makes_a_long_prompt_fit(live: LiveServer, way: Way) -> None:
    long = "word " * 9000
    assert (
        way.ask(live, long, truncate_prompt_tokens=100, max_tokens=1).usage["prompt_tokens"] == 100
    )
    to_fit = way.ask(live, long, truncate_prompt_tokens=-1, max_tokens=1)
    assert 8000 < to_fit.usage["prompt_tokens"] < 8192


@pytest.mark.parametrize("cut", [0, 5, 20])
def test_the_last_message_is_continued(live: LiveServer, cut: int) -> None:
    answer = ANSWERS[HELLO]
    begun = answer[:cut].rstrip()
    messages = [user(HELLO), assistant(begun)] if begun else [user(HELLO)]
    fields = {"continue_final_message": True, "add_generation_prompt": False} if begun else {}
    assert begun + said(live, messages, **fields) == answer
    if begun:
        rendered = seen(live, CHAT, messages=messages, **fields)[0]
        assert rendered.endswith(f"<|end_header_id|>\n\n{begun}")


def test_nobody_is_asked_to_speak(live: LiveServer) -> None:
    fields = {"messages": [user(HELLO)]}
    asked, silent = (
        seen(live, CHAT, add_generation_prompt=prompt, **fields)[0] for prompt in (True, False)
    )
    assert asked == silent + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert silent.endswith(f"{HELLO}<|eot_id|>")


@pytest.mark.parametrize("parts", [[HELLO], ["Hel", "lo!"]], ids=["one", "two"])
def test_content_parts(live: LiveServer, parts: list[str]) -> None:
    texts = [{"type": "text", "text": part} for part in parts]
    [rendered] = seen(live, CHAT, messages=[user(texts)])
    assert rendered == seen(live, CHAT, messages=[user("\n".join(parts))])[0]
    if len(parts) == 1:
        assert said(live, [user(texts)]) == ANSWERS[HELLO]


def test_names_are_accepted(live: LiveServer) -> None:
    assert said(live, [user(HELLO, name="Ada")]) == ANSWERS[HELLO]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_who_instructs(live: LiveServer, role: str) -> None:
    system = {"role": role, "content": "Be brief."}
    [rendered] = seen(live, CHAT, messages=[system, user(HELLO)])
    assert rendered.startswith(f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe brief.")
    assert said(live, [system, user(HELLO)]) == ANSWERS[HELLO]


def test_special_tokens_of_a_chat(live: LiveServer) -> None:
    """The template has them already."""
    [rendered] = seen(live, CHAT, messages=[user(HELLO)])
    assert rendered.count(BOS) == 1
    [doubled] = seen(live, CHAT, messages=[user(HELLO)], add_special_tokens=True)
    assert doubled == BOS + rendered


@each_way
@pytest.mark.parametrize("part", [IMAGE, AUDIO, {"type": "video_url", "video_url": {"url": ""}}])
def test_text_only(live: LiveServer, way: Way, part: dict[str, Any]) -> None:
    if way.endpoint == "chat":
        texts = [{"type": "text", "text": HELLO}, part]
        error = refused(live, way, **{**way.body(HELLO), "messages": [user(texts)]})
        assert error["param"] == "messages"
        assert "text only" in error["message"]
        assert "127.0.0.1" not in error["message"]
    else:
        assert refused(live, way, prompt=[part])["param"] == "prompt"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user(None)],
        [{"content": HELLO}],
        [{"role": "boss", "content": HELLO}],
        [user(7)],
        HELLO,
    ],
    ids=str,
)
def test_bad_messages(live: LiveServer, messages: Any) -> None:
    assert refused(live, CHAT, messages=messages)["param"] == "messages"


def refused(live: LiveServer, way: Way, **fields: Any) -> dict[str, Any]:
    response = live.client.post(way.path, json={"model": MODEL, **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error
