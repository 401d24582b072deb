"""Options of the harness."""

from __future__ import annotations

from pydantic import Field

from ftengine.api import Config


class Options(Config):
    """Options of evaluator lm-eval."""

    tasks: list[str] = Field(
        min_length=1,
        description="names of the harness's tasks, groups or tags; files and folders of YAML for tasks of one's own",
    )
    limit: int | None = Field(
        None, ge=1, description="use at most this many examples of each task, the first ones; null for all"
    )
    num_fewshot: int | None = Field(
        None,
        ge=0,
        description="number of solved examples in each prompt; null: the task's own; a task that sets 0 keeps 0",
    )
    batch_size: int = Field(8, ge=1, description="examples that the model reads together")
    apply_chat_template: bool = Field(False, description="put each prompt into the tokenizer's chat template")
    max_length: int | None = Field(None, ge=2, description="longest input in tokens; null: the model's own")
    seed: int = Field(1234, ge=0, description="random seed of the choice of solved examples and of sampled answers")
