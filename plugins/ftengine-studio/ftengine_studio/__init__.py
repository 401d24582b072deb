"""People judge answers, look at data and follow runs: command `ftengine studio`, and `read` and `append` of judgements.

>>> from ftengine_studio import read
"""

from ftengine_studio.judgements import Judgement, append, latest, read

__all__ = ["Judgement", "append", "latest", "read"]
