"""Dashboard and rules by a real Prometheus, which scrapes a scripted server under a light load."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from scripts.benchmarks.peers import free_port
from tenuto.access.keys import Keys
from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.engine.types import EngineSpec, EngineStats
from tenuto.models.pool import Terms
from tests.conftest import MODEL, Running, Setup, served
from tests.deploy.conftest import DEPLOY, Installed, child, replaced, wait_listening
from tests.deploy.dashboards import RULES, Query, named, queries, variable_queries
from tests.models.pools import Limited
from tests.sse import chat_body, connected, request_bytes

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(150)]
FILES = DEPLOY / "prometheus"
OTHER = "other"
ADMIN = {"authorization": "Bearer sk-admin"}
MINUTE_S = 60
# As often as the test's Prometheus asks.
SCRAPE_S = 1


def promtool(*arguments: str) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=FILES, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_rules_and_configuration_are_valid_and_each_alert_fires(installed: Installed) -> None:
    installed("prometheus")
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "tenuto.rules.test.yml")


@dataclass
class Load:
    """Some of everything that clients and owners do. Two models, with room for one awake."""

    server: Running
    limited: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        made = self.server.client.post(
            "/admin/keys", json={"requests_per_minute": 1}, headers=ADMIN
        )
        self.limited = {"authorization": f"Bearer {made.json()['secret']}"}

    def round(self) -> None:
        for model in (MODEL, OTHER):
            for fields in ({}, {"stream": True}, {"max_tokens": 0}):
                self.ask(chat_body(model=model, **fields))
            self.ask(chat_body(), self.limited)
        self.ask({"model": MODEL, "prompt": "Hi"}, path="/v1/completions")
        self.leave()
        self.server.client.get("/v1/models", headers=ADMIN)
        self.server.client.post(f"/admin/models/{MODEL}/unload", headers=ADMIN)

    def ask(
        self, body: dict[str, Any], key: dict[str, str] = ADMIN, path: str = "/v1/chat/completions"
    ) -> None:
        self.server.client.post(path, json=body, headers=key)

    def leave(self) -> None:
        """A client that has seen the beginning, and wants no more."""
        engine = self.server.engine()
        self.server.call(engine.started.clear)
        self.server.call(engine.go.clear)
        head = request_bytes("/v1/chat/completions", chat_body(stream=True))
        with connected(self.server.url) as client:
            client.sendall(head.replace(b"\r\n", b"\r\nauthorization: Bearer sk-admin\r\n", 1))
            self.server.wait(engine.started)
        self.server.wait(engine.idle)
        self.server.call(engine.go.set)


@dataclass
class CachingEngine(FakeEngine):
    """Finds half of what it looks up, so that there is a rate."""

    def stats(self) -> EngineStats:
        stats, tokens = super().stats(), self.num_tokens
        return replace(stats, prefix_queries_tokens=2 * tokens, prefix_hits_tokens=tokens)


@dataclass
class CachingBackend(FakeBackend):
    async def engine(self, spec: EngineSpec) -> FakeEngine:
        engine = CachingEngine(can_sleep=spec.sleep)
        self.engines[spec.model_id] = engine
        return engine


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("scraped")
    setup = Setup(
        models=[{"id": MODEL}, {"id": OTHER}],
        backend=CachingBackend(),
        keys=Keys(admin=["sk-admin"]),
        terms=Terms(room=Limited(lambda awake, asleep: len(awake) <= 1), turn_s=0),
        state_dir=folder / "state",
    )
    with served(folder, setup) as server:
        server.engine()
        yield Load(server)


@dataclass(frozen=True)
class Prometheus:
    client: httpx.Client

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def series(self, expr: str, since: float) -> list[dict[str, Any]]:
        """As a panel asks: over the time that is shown."""
        span = {"start": since, "end": time.time(), "step": SCRAPE_S}
        found: list[dict[str, Any]] = self.ask("query_range", query=expr, **span)["result"]
        return found

    def shows(self, query: Query, since: float) -> bool:
        """At least one number, in a series with the labels of its legend."""
        return any(
            query.labels <= series["metric"].keys()
            and any(value != "NaN" for _, value in series["values"])
            for series in self.series(query.expr, since)
        )


@pytest.fixture(scope="module")
def prometheus(
    load: Load, installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    installed("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = replaced(
        (FILES / "prometheus.yml").read_text(),
        {
            "_interval: 15s": f"_interval: {SCRAPE_S}s",
            "127.0.0.1:8000": urlsplit(load.server.url).netloc,
            "127.0.0.1:9093": f"127.0.0.1:{free_port()}",
            "tenuto.rules.yml": str(FILES / "tenuto.rules.yml"),
        },
    )
    (folder / "prometheus.yml").write_text(config)
    port, log = free_port(), folder / "log"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with child(command, log) as process:
        wait_listening(process, port, log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield Prometheus(client)


def sample_names(text: str) -> set[str]:
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}


def test_the_server_has_every_metric_that_is_named(load: Load) -> None:
    load.round()
    there = sample_names(load.server.client.get("/metrics").text)
    assert named() - there == set()


def test_after_a_minute_every_panel_shows_something(load: Load, prometheus: Prometheus) -> None:
    began = time.time()
    while time.time() - began < MINUTE_S:
        load.round()
        # Before the next scrape there is nothing new to see.
        time.sleep(SCRAPE_S)
    assert [query for query in queries() if not prometheus.shows(query, began)] == []
    for label, metric in variable_queries().items():
        assert prometheus.ask(f"label/{label}/values", **{"match[]": metric})


def test_every_rule_is_evaluated_and_no_alert_fires(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = prometheus.ask("rules")["groups"][0]["rules"]
        return found

    began = time.monotonic()
    while any(rule["health"] == "unknown" for rule in rules()):
        assert time.monotonic() - began < MINUTE_S
    assert {rule["name"]: rule.get("lastError", "") for rule in rules()} == {
        rule["alert"]: "" for rule in RULES
    }
    assert {rule["state"] for rule in rules()} == {"inactive"}
