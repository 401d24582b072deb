"""Builds what is compiled of ftengine: finds the tools, says which parts they allow, and runs them.

backend.py is what pip talks to, setup.py what setuptools runs; neither compiles anything itself.
"""
