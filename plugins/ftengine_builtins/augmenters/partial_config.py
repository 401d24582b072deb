"""Options of augmenters that change a whole example."""

from pydantic import Field

from ftengine.api import AugmenterConfig


class PartialConfig(AugmenterConfig):
    """Options: change only a share of the examples, by default half."""

    probability: float = Field(0.5, ge=0, le=1, description="share of examples that are changed, drawn in every epoch")
