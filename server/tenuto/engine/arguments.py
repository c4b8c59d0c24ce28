"""The names of vLLM's engine arguments, read without importing vLLM (which takes seconds)."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def engine_argument_names() -> frozenset[str] | None:
    """Fields of `AsyncEngineArgs`; None where vLLM is not installed."""
    package = find_spec("vllm")
    if package is None or package.origin is None:
        return None
    source = Path(package.origin).parent / "engine" / "arg_utils.py"
    classes = [
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
    ]
    return frozenset(
        field.target.id
        for node in classes
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
