"""A server of one machine needs nothing of the extra `cluster`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tenuto.cli.serve import _join
from tenuto.errors import ConfigError
from tests.conftest import make_registry

# All that `tenuto serve` does before it listens, where none of it is installed.
SERVE = """
import sys
EXTRA = {"ray", "redis", "psycopg"}
sys.modules.update(dict.fromkeys(EXTRA))
from pathlib import Path
from tenuto.access.keys import Keys
from tenuto.cli.serve import settings_from, with_stored
from tenuto.engine.arguments import engine_argument_names
from tenuto.engine.forkserver import EngineContext
from tenuto.models.registry import load_registry
from tenuto.wiring import server_of
settings = settings_from({"state_dir": Path(sys.argv[1])})
path = Path(sys.argv[2])
watcher = with_stored(Keys(), settings.state_dir)
context = EngineContext(print)
registry = load_registry(path, engine_argument_names())
server_of(settings, path, registry, watcher, ("demo",), context, None)
loaded = [name for name, module in sys.modules.items() if module is not None]
found = [name for name in loaded if name.split(".")[0] in EXTRA]
assert not found, found
assert "tenuto.engine.ray" not in loaded
"""

pytestmark = pytest.mark.cluster


def test_a_server_is_made_without_the_extra(tmp_path: Path) -> None:
    make_registry(tmp_path, [{"id": "demo"}])
    arguments = [str(tmp_path / "state"), str(tmp_path / "registry.yaml")]
    subprocess.run([sys.executable, "-c", SERVE, *arguments], check=True)


def test_a_cluster_without_ray_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tenuto.engine.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        _join("10.0.0.1:6379", None)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("--cluster needs Ray (")
    assert "tenuto[cluster]" in caught.value.message
