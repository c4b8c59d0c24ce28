"""The names of vLLM's engine arguments, read from its source."""

import subprocess
import sys

from tenuto.engine.arguments import engine_argument_names


def test_names_of_both_classes() -> None:
    names = engine_argument_names()
    assert names is not None
    assert {"model", "max_num_seqs", "enable_log_requests"} <= names
    assert "self" not in names


def test_vllm_is_read_and_not_imported() -> None:
    code = (
        "import sys; from tenuto.engine.arguments import engine_argument_names as names; "
        "assert names(); assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
