"""A real server whose registry changes under it."""

import signal
from pathlib import Path

import pytest

from tests.live.conftest import LiveServer, launched, write_registry
from tests.live.knowledge import ANSWERS, HELLO
from tests.live.test_cancellation import wait_until

pytestmark = [pytest.mark.models, pytest.mark.timeout(120)]


def ids(server: LiveServer) -> list[str]:
    return [card["id"] for card in server.client.get("/v1/models").json()["data"]]


def says(server: LiveServer, model: str) -> str:
    answer = server.chat(HELLO, model=model, temperature=0)
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def test_a_registry_that_changes_under_its_server(tmp_path: Path) -> None:
    path = write_registry(tmp_path / "registry.yaml", [{"id": "one"}])
    with launched(tmp_path, "--registry", str(path)) as server:
        (engine,) = server.engine_pids()
        write_registry(path, [{"id": "one"}, {"id": "two", "load": "on_demand"}])
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ids(server) == ["one", "two"])
        assert says(server, "two") == ANSWERS[HELLO]
        assert engine in server.engine_pids()
        path.write_text("models: [")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "was not read again: registry.yaml" in server.log.read_text())
        assert ids(server) == ["one", "two"]
        write_registry(path, [{"id": "two", "max_model_len": 4096}])
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ids(server) == ["two"])
        wait_until(lambda: engine not in server.engine_pids())
        assert says(server, "two") == ANSWERS[HELLO]
        info = server.client.get("/v1/model/info").json()["data"]
        assert [row["model_info"]["max_model_len"] for row in info] == [4096]
    assert "Traceback" not in server.log.read_text()
