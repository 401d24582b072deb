"""Builds the compiled extension, nothing else. Metadata lives in pyproject.toml."""

from setuptools import setup

setup()
