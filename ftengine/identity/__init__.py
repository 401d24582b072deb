"""Identity: what says that a file, weights, code or a configuration is what it was.

Names are imported when first used: what hashes files needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftengine.identity.base import (
        fingerprint_base,
        fingerprint_processor,
        fingerprint_weights,
        require_same_base,
    )
    from ftengine.identity.code import fingerprint_code
    from ftengine.identity.files import file_hash, file_hashes
    from ftengine.identity.values import folder_hash, json_hash, key_of

_NAMES = {
    "ftengine.identity.base": "fingerprint_base fingerprint_processor fingerprint_weights require_same_base",
    "ftengine.identity.code": "fingerprint_code",
    "ftengine.identity.files": "file_hash file_hashes",
    "ftengine.identity.values": "folder_hash json_hash key_of",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "file_hash",
    "file_hashes",
    "fingerprint_base",
    "fingerprint_code",
    "fingerprint_processor",
    "fingerprint_weights",
    "folder_hash",
    "json_hash",
    "key_of",
    "require_same_base",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ftengine.identity' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
