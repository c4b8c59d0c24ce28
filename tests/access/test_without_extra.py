"""A server alone does without Redis and Postgres, and without what speaks to them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tenuto.access.database import open_database
from tenuto.access.shared_limits import SharedLimiter
from tenuto.errors import ConfigError

pytestmark = pytest.mark.databases


def test_nothing_of_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, tenuto.app, tenuto.access.shared_limits; from pathlib import Path; "
        "from tenuto.access.database import open_database; "
        "open_database(Path(sys.argv[1])).dispose(); "
        "assert not {'redis', 'psycopg', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_what_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("redis", "redis.asyncio", "psycopg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match="database_url: needs psycopg, of the extra `cluster`"):
        open_database(tmp_path, "postgresql://ada@127.0.0.1/state")
    with pytest.raises(ConfigError, match="redis_url: needs redis, of the extra `cluster`"):
        SharedLimiter("redis://127.0.0.1", dict)
