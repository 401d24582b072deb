"""Exporters: finished runs in the formats that other programs serve."""

from ftengine_builtins.exporters.gguf import GgufExporter
from ftengine_builtins.exporters.ollama import OllamaExporter
from ftengine_builtins.exporters.peft import PeftExporter
from ftengine_builtins.exporters.sentence_transformers import SentenceTransformersExporter
from ftengine_builtins.exporters.transformers import TransformersExporter

__all__ = ["GgufExporter", "OllamaExporter", "PeftExporter", "SentenceTransformersExporter", "TransformersExporter"]
