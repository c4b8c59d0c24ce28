"""How the models are, for those who look; and the kit's last report."""

from pathlib import Path

import httpx
import pytest

from tenuto.access.keys import Key, Keys, digest_of
from tenuto.api.readings import readings
from tests.conftest import MODEL, Running, Serve

FIELDS = {"at", "running_requests", "waiting_requests", "tokens_per_s", "kv_cache_usage"}


def test_a_model_and_its_last_minutes(own: Running) -> None:
    history = own.services.history
    own.chat(stream=True, max_tokens=5)
    own.until(lambda: bool(history._models[MODEL].first_tokens_s))
    own.call(lambda: history.sample(readings(own.services.pool)))
    answer = own.client.get("/status").json()
    [model] = answer["models"]
    assert (model["id"], model["task"], model["state"]) == (MODEL, "generate", "ready")
    columns = model["history"]
    assert columns.keys() > FIELDS
    assert {len(column) for column in columns.values()} == {2}
    assert columns["tokens_per_s"][-1] > 0
    assert columns["ttft_p50_s"][-1] > 0
    later = own.client.get("/status", params={"since": columns["at"][0]}).json()
    assert later["models"][0]["history"]["at"] == columns["at"][1:]
    none = own.client.get("/status", params={"since": answer["now"] + 60}).json()
    assert none["models"][0]["history"]["at"] == []


def test_only_what_a_key_may_use(serve: Serve) -> None:
    keys = Keys(["sk-all"])
    keys.adopt([Key("k", digest_of("sk-one"), models=("other",))], has_stored=True)
    server = serve(models=[{"id": MODEL}, {"id": "other"}], keys=keys)

    def seen(secret: str) -> list[str]:
        headers = {"authorization": f"Bearer {secret}"}
        found = httpx.get(f"{server.url}/status", headers=headers).json()["models"]
        return [model["id"] for model in found]

    assert seen("sk-all") == [MODEL, "other"]
    assert seen("sk-one") == ["other"]
    assert httpx.get(f"{server.url}/status").status_code == 401


@pytest.mark.parametrize("since", ["yesterday", "1,5"])
def test_since_is_a_number(server: Running, since: str) -> None:
    response = server.client.get("/status", params={"since": since})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "since"
    assert since in response.json()["error"]["message"]


def test_the_last_report(serve: Serve, tmp_path: Path) -> None:
    server = serve(services={"state_dir": tmp_path}, keys=Keys([], ["sk-admin"]))
    url, headers = f"{server.url}/admin/conformance", {"authorization": "Bearer sk-admin"}
    missing = httpx.get(url, headers=headers)
    assert missing.status_code == 404
    assert "tenuto conform run" in missing.json()["error"]["message"]
    (tmp_path / "conformance.json").write_text('{"verdict": "conforms"}')
    assert httpx.get(url, headers=headers).json() == {"verdict": "conforms"}
    assert httpx.get(url).status_code == 401
