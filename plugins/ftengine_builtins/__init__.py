"""What ships in the box, made of the same plugins as anybody's.

Hooks import their classes when called, so that registering costs nothing.
"""

from ftengine import hookimpl


@hookimpl
def ftengine_model_loaders():
    from ftengine_builtins.loaders.callable import CallableLoader
    from ftengine_builtins.loaders.gguf import GgufLoader
    from ftengine_builtins.loaders.package import PackageLoader
    from ftengine_builtins.loaders.timm import TimmLoader
    from ftengine_builtins.loaders.torchvision import TorchvisionLoader
    from ftengine_builtins.loaders.transformers import TransformersLoader

    return [CallableLoader, GgufLoader, PackageLoader, TimmLoader, TorchvisionLoader, TransformersLoader]


@hookimpl
def ftengine_tasks():
    from ftengine_builtins.tasks.causal_lm import CausalLM
    from ftengine_builtins.tasks.image_classification import ImageClassification
    from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM
    from ftengine_builtins.tasks.text_classification import TextClassification
    from ftengine_builtins.tasks.token_classification import TokenClassification

    return [CausalLM, ImageClassification, Seq2SeqLM, TextClassification, TokenClassification]


@hookimpl
def ftengine_strategies():
    from ftengine_builtins.strategies.adapter import Adapter
    from ftengine_builtins.strategies.full import Full
    from ftengine_builtins.strategies.lora import Lora
    from ftengine_builtins.strategies.prefix import Prefix
    from ftengine_builtins.strategies.prompt import Prompt

    return [Adapter, Full, Lora, Prefix, Prompt]


@hookimpl
def ftengine_evaluators():
    from ftengine_builtins.evaluators.classification import Classification
    from ftengine_builtins.evaluators.entities import Entities
    from ftengine_builtins.evaluators.language import Perplexity
    from ftengine_builtins.evaluators.regression import Regression

    return [Classification, Entities, Perplexity, Regression]
