"""Identity: hashes and fingerprints of files, weights, code and configurations.

Names are imported when first used: hashing files does not import torch.
"""

from typing import TYPE_CHECKING

from ftengine import lazy_attributes

if TYPE_CHECKING:
    from ftengine.identity.base import (
        fingerprint_base,
        fingerprint_processor,
        fingerprint_weights,
        require_same_base,
    )
    from ftengine.identity.code import fingerprint_code
    from ftengine.identity.files import file_hash, file_hashes
    from ftengine.identity.values import folder_hash, json_hash

_HOMES = {
    "ftengine.identity.base": "fingerprint_base fingerprint_processor fingerprint_weights require_same_base",
    "ftengine.identity.code": "fingerprint_code",
    "ftengine.identity.files": "file_hash file_hashes",
    "ftengine.identity.values": "folder_hash json_hash",
}

__all__, __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
