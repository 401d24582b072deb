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
def ftengine_readers():
    from ftengine_builtins.readers.arrow import ArrowReader, ParquetReader
    from ftengine_builtins.readers.image_folder import ImageFolderReader
    from ftengine_builtins.readers.json_text import JsonLinesReader, JsonReader
    from ftengine_builtins.readers.tables import TableReader
    from ftengine_builtins.readers.text import TextReader

    return [ArrowReader, ImageFolderReader, JsonLinesReader, JsonReader, ParquetReader, TableReader, TextReader]


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
    from ftengine_builtins.strategies.lora import LoRA
    from ftengine_builtins.strategies.prefix import Prefix
    from ftengine_builtins.strategies.prompt import Prompt

    return [Adapter, Full, LoRA, Prefix, Prompt]


@hookimpl
def ftengine_augmenters():
    from ftengine_builtins.augmenters.back_translation import BackTranslation
    from ftengine_builtins.augmenters.characters import Keyboard, Ocr
    from ftengine_builtins.augmenters.images import Color, Crop, Flip, RandAugment, TrivialAugment
    from ftengine_builtins.augmenters.mask_spans import MaskSpans
    from ftengine_builtins.augmenters.mixing import CutMix, Mixup
    from ftengine_builtins.augmenters.synonyms import Synonyms
    from ftengine_builtins.augmenters.words import Case, DeleteWords, Punctuation, SwapWords

    texts = [BackTranslation, Case, DeleteWords, Keyboard, MaskSpans, Ocr, Punctuation, SwapWords, Synonyms]
    return [*texts, Color, Crop, CutMix, Flip, Mixup, RandAugment, TrivialAugment]


@hookimpl
def ftengine_regularizers():
    from ftengine_builtins.regularizers.criteria import LabelSmoothing, RDrop
    from ftengine_builtins.regularizers.dropout import Dropout
    from ftengine_builtins.regularizers.ema import Ema
    from ftengine_builtins.regularizers.l2_sp import L2SP
    from ftengine_builtins.regularizers.mixout import Mixout
    from ftengine_builtins.regularizers.neftune import Neftune
    from ftengine_builtins.regularizers.wise_ft import WiseFT

    return [Dropout, Ema, L2SP, LabelSmoothing, Mixout, Neftune, RDrop, WiseFT]


@hookimpl
def ftengine_optimizers():
    from ftengine_builtins.optimizers.muon import Muon
    from ftengine_builtins.optimizers.torch import SGD, Adafactor, AdamW

    return [Adafactor, AdamW, Muon, SGD]


@hookimpl
def ftengine_schedules():
    from ftengine_builtins.schedules import Constant, Cosine, Linear, WarmupStableDecay

    return [Constant, Cosine, Linear, WarmupStableDecay]


@hookimpl
def ftengine_evaluators():
    from ftengine_builtins.evaluators.calibration import Calibration
    from ftengine_builtins.evaluators.classification import Classification
    from ftengine_builtins.evaluators.entities import Entities
    from ftengine_builtins.evaluators.generation import Generation
    from ftengine_builtins.evaluators.language import Perplexity
    from ftengine_builtins.evaluators.memorisation import Memorisation
    from ftengine_builtins.evaluators.refusal import Refusal
    from ftengine_builtins.evaluators.regression import Regression

    return [Calibration, Classification, Entities, Generation, Memorisation, Perplexity, Refusal, Regression]


@hookimpl
def ftengine_callbacks():
    from ftengine_builtins.callbacks.trackers import TRACKERS

    return TRACKERS


@hookimpl
def ftengine_audits():
    from ftengine_builtins.audits.balance import Balance
    from ftengine_builtins.audits.contradictions import Contradictions
    from ftengine_builtins.audits.encoded import Lengths, UnknownTokens, UnreadKeys
    from ftengine_builtins.audits.languages import Languages
    from ftengine_builtins.audits.sources import Duplicates, Leaks, Reading
    from ftengine_builtins.audits.texts import Mojibake, Oddities, PersonalData

    texts = [Languages, Mojibake, Oddities, PersonalData]
    return [Balance, Contradictions, Duplicates, Leaks, Lengths, Reading, UnknownTokens, UnreadKeys, *texts]


@hookimpl
def ftengine_rules():
    from ftengine_builtins.rules.baseline import ConstantAnswer, UnansweredClasses, UntestedClasses
    from ftengine_builtins.rules.calibration import CalibratedConfidence
    from ftengine_builtins.rules.data import AuditFindings, CutExamples, LeakedRows, RepeatedRows
    from ftengine_builtins.rules.fitting import GeneralisationGap, OverFitting
    from ftengine_builtins.rules.labels import FlippedLabels
    from ftengine_builtins.rules.learning import LearningCurve
    from ftengine_builtins.rules.probes import Forgetting, Memorisation, Refusal, Robustness
    from ftengine_builtins.rules.quality import BetterThanBase, HeldOutSplit, WorseMetrics
    from ftengine_builtins.rules.slices import SliceGaps

    data = [AuditFindings, CutExamples, FlippedLabels, HeldOutSplit, LeakedRows, RepeatedRows]
    training = [GeneralisationGap, LearningCurve, OverFitting]
    probes = [Forgetting, Memorisation, Refusal, Robustness]
    classes = [UnansweredClasses, UntestedClasses]
    quality = [BetterThanBase, CalibratedConfidence, ConstantAnswer, SliceGaps, WorseMetrics]
    return [*quality, *classes, *training, *data, *probes]
