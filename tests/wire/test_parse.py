"""Bodies to typed requests: what is missing, mistyped or unknown, and what is never repeated."""

import json
from typing import Any

import pytest

from tenuto.errors import ApiError, BadRequest, InvalidRequest, UnknownModel
from tenuto.wire.parse import NEVER_QUOTED, decode, ignored_fields, parse
from tenuto.wire.requests import ChatRequest, CompletionRequest, Request
from tests.building import body, chat, completion, refused

SECRET = "my-own-secret"
KINDS: dict[str, type[Request]] = {"chat": ChatRequest, "completion": CompletionRequest}


def test_decode_leaves_out_null_fields() -> None:
    assert decode(b'{"n": null, "stop": [null], "seed": 0}') == {"stop": [None], "seed": 0}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"model": ', id="cut"),
        pytest.param(b"{]", id="malformed"),
        pytest.param(b'{"a": NaN}', id="nan"),
        pytest.param(b'{"a": "\xff"}', id="not-utf8"),
        pytest.param(b'{"a": "\\ud800"}', id="surrogate"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"x"', id="string"),
        pytest.param(b"[" * 100_000, id="endless"),
        pytest.param(b'{"a":' * 5000 + b"1" + b"}" * 5000, id="deep"),
    ],
)
def test_decode_blames_the_body(content: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(content)
    assert caught.value.message.startswith("Invalid JSON payload: ")
    assert caught.value.param == "request_body"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(("kind", "field"), [("chat", "messages"), ("completion", "prompt")])
def test_missing_prompt_is_worded_as_recorded(kind: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(KINDS[kind], {"model": "demo"}, "/route")
    assert caught.value.message == f"/route: Missing required parameter: '{field}'."
    assert (caught.value.param, caught.value.type) == (field, "invalid_request_error")


@pytest.mark.parametrize(("model", "shown"), [(None, "None"), (5, "5"), (["a"], "['a']")])
def test_model_must_be_a_string(model: object, shown: str) -> None:
    fields = {} if model is None else {"model": model}
    with pytest.raises(UnknownModel, match="Invalid model name passed in model=") as caught:
        parse(ChatRequest, {"messages": [], **fields}, "/chat/completions")
    assert f"model={shown}. " in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "hot", "temperature should be a valid number"),
        ("temperature", [1], "temperature should be a valid number"),
        ("n", 1.5, "n should be a valid integer"),
        ("n", "many", "n should be a valid integer"),
        ("seed", {}, "seed should be a valid integer"),
        ("stream", "maybe", "stream should be a valid boolean"),
        ("detokenize", 7, "detokenize should be a valid boolean"),
        ("stop_token_ids", 5, "stop_token_ids should be a valid list"),
        ("stop_token_ids", [-1], "stop_token_ids[0] should be greater than or equal to 0"),
        ("logit_bias", {"7": "x"}, "logit_bias.7 should be a valid number"),
        ("truncation_side", "middle", "truncation_side should be 'left' or 'right'"),
        ("stream_options", "yes", "stream_options should be a valid dictionary"),
    ],
)
def test_wrong_type_says_what_is_allowed_and_what_came(
    kind: str, name: str, value: object, message: str
) -> None:
    error = refused(kind, **{name: value})
    assert (error.status, error.type, error.param) == (400, "BadRequestError", name)
    assert error.message.startswith(message)
    inner = value["7"] if isinstance(value, dict) and value else value
    inner = inner[0] if name == "stop_token_ids" and isinstance(inner, list) else inner
    assert f"got {inner}." in error.message


WRONG: list[tuple[str, str, Any, str]] = [
    ("completion", "prompt", {SECRET: 1}, "prompt must be a string, a list of strings"),
    ("completion", "prompt", [[SECRET]], "prompt must be a string, a list of strings"),
    ("completion", "prompt", [1, SECRET], "prompt must be a string, a list of strings"),
    ("completion", "suffix", [SECRET], "suffix should be a valid string"),
    ("chat", "messages", SECRET, "messages should be a valid list"),
    ("chat", "messages", [SECRET], "messages[0] "),
    ("chat", "messages", [{"role": SECRET, "content": ""}], "messages[0].role "),
    ("chat", "messages", [{"role": "user", "content": {"a": SECRET}}], "messages[0].content must"),
    ("chat", "tools", [SECRET], "tools[0] should be a valid dictionary"),
    ("chat", "tool_choice", [SECRET], "tool_choice must be 'none', 'auto', 'required'"),
    ("chat", "stop", {"a": SECRET}, "stop must be a string or a list of strings"),
    ("chat", "stop", [[SECRET]], "stop must be a string or a list of strings"),
    ("chat", "bad_words", SECRET, "bad_words should be a valid list"),
    ("chat", "response_format", SECRET, "response_format "),
    ("chat", "response_format", {"type": SECRET}, "response_format.type should be 'text'"),
    ("chat", "structured_outputs", {"choice": SECRET}, "structured_outputs.choice should be"),
    ("chat", "guided_json", [SECRET], "guided_json must be a JSON schema"),
    ("chat", "guided_regex", [SECRET], "guided_regex should be a valid string"),
    ("chat", "guided_choice", SECRET, "guided_choice should be a valid list"),
    ("chat", "guided_grammar", [SECRET], "guided_grammar should be a valid string"),
    ("chat", "chat_template_kwargs", {"a": [SECRET]}, "chat_template_kwargs must be an object"),
]


@pytest.mark.parametrize(("kind", "name", "value", "message"), WRONG)
def test_content_is_never_repeated(kind: str, name: str, value: Any, message: str) -> None:
    error = refused(kind, **{name: value})
    assert (error.status, error.type, error.param) == (400, "BadRequestError", name)
    assert error.message.startswith(message)
    assert SECRET not in error.message


def test_every_unquoted_parameter_is_tried() -> None:
    tried = {name for _, name, _, _ in WRONG}
    # `chat_template` takes anything, and is refused later; `tokens` belongs to /detokenize, `input`
    # to /embeddings.
    assert tried - {"tool_choice"} == NEVER_QUOTED - {"chat_template", "tokens", "input"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://example.invalid/x.png"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA"}},
        {"type": "text"},
        7,
    ],
)
def test_only_text_parts_are_taken(part: object) -> None:
    error = refused("chat", messages=[{"role": "user", "content": [part]}])
    assert (error.type, error.param) == ("BadRequestError", "messages")
    assert "takes text only" in error.message


def test_long_values_are_cut() -> None:
    error = refused("chat", temperature="x" * 1000)
    assert error.message.endswith(f"got {'x' * 64}….")


def test_number_that_python_refuses_to_print() -> None:
    content = json.dumps(body("chat", seed="@")).replace('"@"', "9" * 5000).encode()
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, decode(content), "/chat/completions")
    assert caught.value.status == 400


def test_client_named_keys_are_cut() -> None:
    error = refused("chat", structured_outputs={"k" * 500: 1})
    assert isinstance(error, BadRequest)
    assert len(error.message) < 200


def test_unknown_fields_are_named_in_order() -> None:
    request = parse(
        ChatRequest,
        decode(b'{"model": "m", "messages": [], "top_a": 1, "mirostat": 0, "dry_base": null}'),
        "/chat/completions",
    )
    assert ignored_fields(request) == ["mirostat", "top_a"]


@pytest.mark.parametrize("name", ["user", "metadata", "store", "service_tier"])
def test_fields_without_effect_are_accepted_in_silence(name: str) -> None:
    assert ignored_fields(chat(**{name: {"any": ["thing"]}})) == []
    assert ignored_fields(completion(**{name: "x"})) == []
