"""What the registry says of a model, as its requests feel it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MODEL, Running, Serve, make_checkpoint

TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "f"}}
DEFAULTS = {"temperature": 0, "top_k": 7, "max_tokens": 5}


def serve_with(serve: Serve, **keys: Any) -> Running:
    return serve(models=[{"id": MODEL, **keys}])


def info(server: Running) -> Any:
    return server.client.get("/v1/model/info").json()["data"][0]["model_info"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, 7, 5)),
        ({"temperature": 1.5}, (1.5, 7, 5)),
        ({"top_k": -1, "max_tokens": 9}, (0, 0, 9)),
        ({"temperature": None}, (0, 7, 5)),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_sampling_defaults(
    serve: Serve, kind: str, fields: dict[str, Any], expected: tuple[float, int, int]
) -> None:
    server = serve_with(serve, sampling_defaults=DEFAULTS)
    assert getattr(server, kind)(**fields).status_code == 200
    asked = server.engine().generated[-1]
    assert (asked.temperature, asked.top_k, asked.max_tokens) == expected
    assert info(server)["sampling_defaults"] == DEFAULTS


def test_a_synonym_wins_over_the_default(serve: Serve) -> None:
    server = serve_with(serve, sampling_defaults=DEFAULTS)
    server.chat(max_completion_tokens=9)
    assert server.engine().generated[-1].max_tokens == 9


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": 2}, "n"), ({"min_tokens": 6}, "min_tokens"), ({"top_p": 0}, "top_p")],
)
def test_defaults_are_judged_as_a_requests_own(
    serve: Serve, fields: dict[str, Any], param: str
) -> None:
    server = serve_with(serve, sampling_defaults=DEFAULTS)
    assert server.chat(**fields).json()["error"]["param"] == param
    assert (
        server.chat(**fields, temperature=1, max_tokens=9).status_code
        == (400, 200)[param != "top_p"]
    )


def test_defaults_of_the_checkpoint(serve: Serve, tmp_path: Path) -> None:
    found = {
        "temperature": 0.25,
        "top_p": 0.5,
        "do_sample": True,
        "eos_token_id": [1],
        "top_k": None,
    }
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").write_text(json.dumps(found))
    server = serve_with(serve, sampling_defaults="checkpoint")
    server.chat()
    asked = server.engine().generated[-1]
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.25, 0.5, 0)
    assert info(server)["sampling_defaults"] == {"temperature": 0.25, "top_p": 0.5}


def test_a_checkpoints_values_wait_to_be_asked_for(serve: Serve, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.25}')
    server = serve_with(serve)
    server.chat()
    assert server.engine().generated[-1].temperature == 1
    assert info(server)["sampling_defaults"] == {}


def test_stop_token_ids(serve: Serve) -> None:
    server = serve_with(serve, stop_token_ids=[3, 4])
    server.chat(stop_token_ids=[1])
    assert server.engine().generated[-1].stop_token_ids == (1, 3, 4)


@pytest.mark.parametrize("parser", [None, "hermes"])
@pytest.mark.parametrize("choice", [None, "auto"])
def test_calls_by_the_models_own_choice_need_a_parser(
    serve: Serve, parser: str | None, choice: str | None
) -> None:
    response = serve_with(serve, tool_parser=parser).chat(tools=[TOOL], tool_choice=choice)
    if parser:
        assert response.status_code == 200
        return
    error = response.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("400", "BadRequestError", "tools")
    assert "tool_parser" in error["message"]


@pytest.mark.parametrize(("choice", "forced"), [("required", True), (NAMED, True), ("none", False)])
def test_other_choices_do_not(own: Running, choice: Any, forced: bool) -> None:
    assert own.chat(tools=[TOOL], tool_choice=choice).status_code == 200
    constraint = own.engine().generated[-1].constraint
    assert (constraint is not None) is forced


@pytest.mark.parametrize("path", ["/utils/token_counter", "/tokenize"])
def test_tools_are_counted_without_a_parser(own: Running, path: str) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    response = own.client.post(path, json={**body, "tools": [TOOL]})
    assert response.status_code == 200
    assert "x-tenuto-ignored-params" not in response.headers
    twice = own.client.post(path, json={**body, "tools": [TOOL, TOOL]})
    assert twice.json()["error"]["param"] == "tools"


@pytest.mark.parametrize("detokenize", [False, True, None])
def test_a_reasoning_parser_reads_text(serve: Serve, detokenize: bool | None) -> None:
    server = serve_with(serve, reasoning_parser="deepseek_r1")
    response = server.chat(detokenize=detokenize)
    if detokenize is False:
        assert response.json()["error"]["param"] == "detokenize"
    else:
        assert response.status_code == 200
    assert server.complete(detokenize=detokenize).status_code == 200
