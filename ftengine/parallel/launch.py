"""Settings of launchers: those that a recipe can express are used, others are refused by name."""

from __future__ import annotations

import os

from accelerate.utils import parse_flag_from_env

from ftengine.errors import RecipeError
from ftengine.run.recipe import Recipe

FSDP = "ACCELERATE_USE_FSDP"

NOT_OFFERED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Variables of launchers for methods that ftengine does not support."""

OF_FSDP = {
    "VERSION": ("2", "1", "version 1 of FSDP: set fsdp_version to 2"),
    "RESHARD_AFTER_FORWARD": (
        "true",
        "true",
        "blocks left unsharded after the forward pass: set fsdp_reshard_after_forward to true",
    ),
    "OFFLOAD_PARAMS": ("false", "false", "CPU offload of parameters: set fsdp_offload_params to false"),
    "AUTO_WRAP_POLICY": (
        "transformer_based_wrap",
        "transformer_based_wrap",
        "another wrap policy: set fsdp_auto_wrap_policy to TRANSFORMER_BASED_WRAP",
    ),
    "STATE_DICT_TYPE": (
        "sharded_state_dict",
        "sharded_state_dict",
        "unsharded checkpoints: set fsdp_state_dict_type to SHARDED_STATE_DICT",
    ),
    "ACTIVATION_CHECKPOINTING": (
        "false",
        "false",
        "fsdp_activation_checkpointing: set the recipe's train.gradient_checkpointing to true instead",
    ),
    "ACTIVATION_CHECKPOINTING_OFFLOAD": (
        "false",
        "false",
        "CPU offload of activations: set fsdp_activation_checkpointing_offload to false",
    ),
    "IGNORED_MODULES": ("", "", "modules left unsharded: remove fsdp_ignored_modules"),
}
"""Settings of FSDP, after FSDP_: the supported value, the default, and what another value asks for with its remedy."""


def resolve_launch(recipe: Recipe) -> Recipe:
    """Return the recipe with the launcher's settings (RecipeError: recipe and launcher contradict each other)."""
    check_launch(recipe)
    if not parse_flag_from_env(FSDP):
        return recipe
    if recipe.train.parallel == "ddp" and "parallel" in recipe.train.model_fields_set:
        raise RecipeError(
            "the launcher asks for sharded parameters (FSDP), but train.parallel is ddp. Set that to fsdp, or remove "
            "FSDP from `accelerate config`."
        )
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"parallel": "fsdp"})})


def check_launch(recipe: Recipe) -> None:
    """Refuse settings of `accelerate launch` or the environment that ftengine would ignore (RecipeError)."""
    unsupported = [what for variable, what in NOT_OFFERED.items() if parse_flag_from_env(variable)]
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        unsupported.append(f"torch.compile (dynamo_backend {backend.lower()})")
    if unsupported:
        raise RecipeError(
            f"the launcher asks for {' and '.join(unsupported)}, which ftengine does not support. Remove it from "
            "`accelerate config`, or launch with torchrun; train.parallel: fsdp shards the model over processes."
        )
    if parse_flag_from_env(FSDP):
        for name, (honoured, usual, what) in OF_FSDP.items():
            if os.environ.get(f"FSDP_{name}", usual).lower() != honoured:
                raise RecipeError(f"the launcher asks for {what}, or launch with torchrun and train.parallel: fsdp.")
    accumulate = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulate not in ("1", str(recipe.train.accumulate)):
        raise RecipeError(
            f"the launcher asks for gradient_accumulation_steps {accumulate}, and train.accumulate is "
            f"{recipe.train.accumulate}. The recipe decides: set train.accumulate={accumulate}, or remove the other."
        )


def block_classes() -> tuple[str, ...]:
    """Return the names of block classes that the launcher sets."""
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "") if parse_flag_from_env(FSDP) else ""
    return tuple(name.strip() for name in named.split(",") if name.strip())
