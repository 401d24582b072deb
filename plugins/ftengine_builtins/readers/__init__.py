"""Readers of data."""

from ftengine_builtins.readers.arrow import ArrowReader, ParquetReader
from ftengine_builtins.readers.data_folder import DataFolderReader
from ftengine_builtins.readers.image_folder import ImageFolderReader
from ftengine_builtins.readers.json_text import JsonLinesReader, JsonReader
from ftengine_builtins.readers.layouts import AlpacaReader, AxolotlReader, MsSwiftReader, ShareGPTReader
from ftengine_builtins.readers.llamafactory import LlamaFactoryReader
from ftengine_builtins.readers.tables import TableReader
from ftengine_builtins.readers.text import TextReader

__all__ = [
    "AlpacaReader",
    "ArrowReader",
    "AxolotlReader",
    "DataFolderReader",
    "ImageFolderReader",
    "JsonLinesReader",
    "JsonReader",
    "LlamaFactoryReader",
    "MsSwiftReader",
    "ParquetReader",
    "ShareGPTReader",
    "TableReader",
    "TextReader",
]
