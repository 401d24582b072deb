"""Options of changes that leave nothing of an example as it was."""

from pydantic import Field

from ftengine.api import AugmenterConfig


class SeldomConfig(AugmenterConfig):
    """Half of the examples stay as they are."""

    probability: float = Field(0.5, ge=0, le=1, description="share of examples that are changed, drawn in every epoch")
