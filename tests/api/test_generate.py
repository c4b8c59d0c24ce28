"""The two endpoints over the scripted engine, through a real uvicorn."""

from tests.conftest import MODEL, Running


def test_chat_answers(server: Running) -> None:
    body = server.chat(n=2, max_tokens=7).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["reply 0", "reply 1"]
    assert body["usage"]["completion_tokens"] == 14
    assert body["model"] == MODEL
