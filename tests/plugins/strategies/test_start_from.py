"""A folder to start from that cannot be read is an error that names the recipe's key."""

import pytest
from expected import raises

from ftengine.errors import RunError
from ftengine_builtins.strategies.adapter import AdapterConfig
from ftengine_builtins.strategies.lora import LoRAConfig
from ftengine_builtins.strategies.prefix import Prefix
from ftengine_builtins.strategies.prompt import Prompt


@pytest.mark.parametrize("config", [AdapterConfig, LoRAConfig, Prefix.Config, Prompt.Config])
def test_a_missing_folder_is_reported_with_its_key(config, tmp_path) -> None:
    with raises(RunError, "strategy.start_from", "adapter_config.json"):
        config(start_from=str(tmp_path / "nowhere"))
