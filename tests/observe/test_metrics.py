"""The metrics: their names and labels, and what they count."""

import re

from prometheus_client.parser import text_string_to_metric_families

from tenuto.observe.metrics import Metrics
from tests.conftest import MODEL, Running
from tests.sse import chat_body, connected, request_bytes


def value(own: Running, name: str, **labels: str) -> float:
    """A sample; 0 where it was never counted."""
    text = own.services.metrics.render().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0


def test_every_metric_is_documented_in_its_help() -> None:
    text = Metrics(lambda: {"demo": 3}, lambda: {"demo": 1}).render().decode()
    names = re.findall(r"^# HELP (tenuto_\S+) \S+", text, re.MULTILINE)
    assert names == [
        "tenuto_engine_unfinished_requests",
        "tenuto_model_failed_wakes_total",
        "tenuto_requests_total",
        "tenuto_request_duration_seconds",
        "tenuto_prompt_tokens_total",
        "tenuto_completion_tokens_total",
    ]
    assert 'tenuto_engine_unfinished_requests{model="demo"} 3.0' in text


def test_requests_are_counted_by_route_and_status(own: Running) -> None:
    own.chat(max_tokens=3)
    own.chat(max_tokens=0)
    own.client.get("/v1/nowhere")
    own.left()
    route = "/v1/chat/completions"
    for status in ("200", "400"):
        assert value(own, "tenuto_requests_total", route=route, status=status) == 1
    assert value(own, "tenuto_requests_total", route="unmatched", status="404") == 1
    assert value(own, "tenuto_request_duration_seconds_count", route=route) == 2


def test_an_unknown_model_makes_no_label(own: Running) -> None:
    own.chat(model="my-secret-project")
    own.left()
    assert "my-secret-project" not in own.services.metrics.render().decode()


def test_tokens_are_counted_streamed_or_not(own: Running) -> None:
    usage = own.chat(max_tokens=3, n=2).json()["usage"]
    own.chat(max_tokens=3, n=2, stream=True)
    own.complete("abc", max_tokens=3)
    own.left()
    completion = value(own, "tenuto_completion_tokens_total", model=MODEL)
    prompt = value(own, "tenuto_prompt_tokens_total", model=MODEL)
    assert (completion, prompt) == (6 + 6 + 3, 2 * usage["prompt_tokens"] + 3)


def test_unfinished_requests_are_read_from_the_engine(own: Running) -> None:
    engine = own.engine()
    own.call(engine.go.clear)
    with connected(own.url) as client:
        client.sendall(request_bytes("/v1/chat/completions", chat_body(n=3)))
        own.wait(engine.started)
        assert value(own, "tenuto_engine_unfinished_requests", model=MODEL) == 3
    own.wait(engine.idle)
    assert value(own, "tenuto_engine_unfinished_requests", model=MODEL) == 0


def test_a_client_that_left_is_a_499(own: Running) -> None:
    engine = own.engine()
    own.call(engine.go.clear)
    with connected(own.url) as client:
        client.sendall(request_bytes("/v1/chat/completions", chat_body()))
        own.wait(engine.started)
    own.left()
    assert value(own, "tenuto_requests_total", model=MODEL, status="499") == 1
