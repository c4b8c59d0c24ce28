"""Imported before torch and vLLM, for its effect: no word that the owner cannot act upon."""

import logging
import warnings

# "Triton not available", on every machine without a GPU.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"(torch|transformers|vllm)\b")
