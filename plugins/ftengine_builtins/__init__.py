"""What ships in the box, made of the same plugins as anybody's.

Hooks import their classes when called, so that registering costs nothing.
"""

from ftengine import hookimpl


@hookimpl
def ftengine_model_loaders():
    from ftengine_builtins.loaders.callable import CallableLoader
    from ftengine_builtins.loaders.gguf import GgufLoader
    from ftengine_builtins.loaders.package import PackageLoader
    from ftengine_builtins.loaders.transformers import TransformersLoader

    return [CallableLoader, GgufLoader, PackageLoader, TransformersLoader]


@hookimpl
def ftengine_tasks():
    from ftengine_builtins.tasks.causal_lm import CausalLM
    from ftengine_builtins.tasks.text_classification import TextClassification

    return [CausalLM, TextClassification]


@hookimpl
def ftengine_strategies():
    from ftengine_builtins.strategies.full import Full
    from ftengine_builtins.strategies.lora import Lora

    return [Full, Lora]


@hookimpl
def ftengine_evaluators():
    from ftengine_builtins.evaluators.classification import Classification
    from ftengine_builtins.evaluators.language import Perplexity
    from ftengine_builtins.evaluators.regression import Regression

    return [Classification, Perplexity, Regression]
