"""Tenuto: the hosted TotalGPT/Infermatic API on one's own NVIDIA GPUs."""

__version__ = "0.1.0"
