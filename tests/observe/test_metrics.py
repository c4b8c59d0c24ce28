"""The metrics: their names and labels, and what they count."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tenuto.access.keys import Key, Keys, Limits
from tenuto.errors import RateLimited
from tenuto.models.pool import Terms
from tenuto.observe.metrics import Gaps, Metrics
from tests.conftest import MODEL, Running, Serve
from tests.models.pools import Limited, only
from tests.sse import chat_body, connected, request_bytes

ROOT = Path(__file__).parents[2]


def value(own: Running, name: str, **labels: str) -> float:
    """A sample; 0 where it was never counted."""
    text = own.services.metrics.render().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each metric of the table in docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## Metrics")[2]
    row = r"^\| `(tenuto_\w+)` \| (\w+)[^|]* \| ([^|]*) \| [^|]+ \|$"
    rows = re.findall(row, text, re.MULTILINE)
    return {
        name: (kind, set(re.findall(r"`?(\w+)`?", labels.partition(":")[0])))
        for name, kind, labels in rows
    }


def exposed(own: Running) -> dict[str, tuple[str, set[str]]]:
    found = {}
    for family in text_string_to_metric_families(own.services.metrics.render().decode()):
        if not family.name.startswith("tenuto_"):
            continue
        suffix = "_total" if family.type == "counter" else ""
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name.removesuffix(suffix) + suffix] = (family.type, labels)
    return found


def test_the_documented_metrics_are_those_that_there_are(own: Running) -> None:
    own.chat(stream=True, max_tokens=5)
    engine = own.engine()
    own.call(engine.go.clear)
    own.call(engine.started.clear)
    with connected(own.url) as client:
        client.sendall(request_bytes("/v1/chat/completions", chat_body()))
        own.wait(engine.started)
    own.left()
    assert exposed(own) == documented()


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


def test_a_stream_is_timed(own: Running) -> None:
    own.chat("Twelve tokens", max_tokens=12, stream=True)
    own.chat(max_tokens=5)
    own.left()
    assert value(own, "tenuto_time_to_first_token_seconds_count", model=MODEL) == 1
    assert value(own, "tenuto_inter_token_latency_seconds_count", model=MODEL) == 11
    assert value(own, "tenuto_inter_token_latency_seconds_sum", model=MODEL) > 0
    assert value(own, "tenuto_queue_wait_seconds_count", model=MODEL) == 2
    assert value(own, "tenuto_aborted_requests_total", model=MODEL) == 0


def test_gaps_by_their_length() -> None:
    metrics, gaps = Metrics(), Gaps()
    for seconds in (0.0005, 0.001, 0.0011, 0.3, 99):
        gaps.add(seconds)
    metrics.gaps(MODEL, gaps)
    metrics.gaps(MODEL, gaps)
    text = metrics.render().decode()
    counts = {"0.001": 4, "0.0025": 6, "0.2": 6, "0.5": 8, "5.0": 8, "+Inf": 10}
    for limit, count in counts.items():
        assert f'_seconds_bucket{{le="{limit}",model="{MODEL}"}} {count}.0' in text


def test_what_is_done_to_a_model(serve: Serve) -> None:
    own = serve(models=[{"id": MODEL}, {"id": "other"}], terms=Terms(Limited(only(1))))
    own.chat(model="other")
    own.left()
    for model, done in ((MODEL, "load"), (MODEL, "unload"), ("other", "load")):
        assert value(own, "tenuto_model_transitions_total", model=model, transition=done) == 1
    assert value(own, "tenuto_model_evictions_total", model=MODEL) == 1
    assert value(own, "tenuto_model_evictions_total", model="other") == 0
    assert value(own, "tenuto_model_state", model=MODEL, state="cold") == 1
    assert value(own, "tenuto_model_state", model="other", state="ready") == 1
    assert value(own, "tenuto_model_state", model="other", state="cold") == 0


def test_limits_that_were_hit(serve: Serve, tmp_path: Path) -> None:
    own = serve(keys=Keys(["sk-user"]))
    limiter = own.services.limiter
    key = Key("k", b"", limits=Limits(requests_per_minute=1))
    own.call(lambda: limiter.admit(key))
    with pytest.raises(RateLimited):
        own.call(lambda: limiter.admit(key))
    assert value(own, "tenuto_limits_hit_total", limit="requests_per_minute") == 1
    assert value(own, "tenuto_limits_hit_total", limit="tokens_per_month") == 0
