"""What the registry says of a model that decides how its requests are treated."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Policy:
    system_prompt: Literal["native", "merge", "reject"] = "native"
    has_tool_parser: bool = False
    has_reasoning_parser: bool = False
