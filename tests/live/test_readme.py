"""The README's commands, as they stand there, against a real server."""

import json
import re
import subprocess

import pytest

from tests.live.conftest import MODEL, ROOT, LiveServer

pytestmark = pytest.mark.live
README = (ROOT / "README.md").read_text()
CURLS = re.findall(r"^curl .*?(?=^curl |^```)", README, re.M | re.S)


def test_readme_has_its_commands() -> None:
    assert len(CURLS) == 4


@pytest.mark.parametrize("command", CURLS, ids=lambda c: "".join(re.findall(r":8000(\S+)", c)))
def test_command(live: LiveServer, command: str) -> None:
    ran = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", live.url)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    answer = json.loads(ran.stdout)
    assert "error" not in answer
    if "choices" in answer:
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["model"] == MODEL
