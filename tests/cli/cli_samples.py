"""Text and plugins that several tests of the command line use."""

HOSTILE = "\x1b[31m[bold]red[/bold]\x07 \u202e ⟦"
"""What would colour, ring, or turn the direction of writing, if it reached a terminal."""

STRATEGY = '''
from typing import Literal
from pydantic import Field
from ftengine import hookimpl
from ftengine.api import (Config, Strategy, StrategyTraits)

class Thing(Strategy):
    """Do a thing.

    In a certain way.
    """

    name = "{name}"
    paper = "Somebody 2020"

    class Config(Config):
        depth: int = Field(3, ge=1, le=9, description="how deep")
        mode: Literal["fast", "slow"] = Field("fast", description="how it goes")
        source: str = Field(description="what it starts from")

    def prepare(self, loaded):
        loaded.module.requires_grad_(True)

@hookimpl
def ftengine_strategies():
    {body}
'''


def strategy(name="thing", body="return [Thing]"):
    return STRATEGY.format(name=name, body=body)


ENTRY = "[ftengine]\nthing = ftengine_thing\n"
