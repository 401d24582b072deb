"""A folder that sentence-transformers opens: an encoder of texts, or a reranker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftengine.api import Example, Exported, ExportSource, Runtime, Task
from ftengine.errors import NoRuntime, NotExportable
from ftengine_builtins.exporters.settings import require_settings
from ftengine_builtins.exporters.transformers import TransformersExporter, read, rewrite
from ftengine_builtins.tasks import Embedding, Reranking, TextClassification
from ftengine_builtins.tasks.embedding import PAIRED
from ftengine_builtins.tasks.embedding_rows import PARTS
from ftengine_builtins.tasks.labelled import RELEVANCE, RELEVANT
from ftengine_builtins.tasks.reranking import answers, pairs_of
from ftengine_builtins.tasks.reranking_rows import asked_of
from ftengine_builtins.tasks.sentence_transformers import drop_chat_template

NOISE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
"""Relative difference of vectors or scores that rounding of the weights may explain, by dtype."""

SETTINGS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""Files of an encoder's settings."""
LONGEST = "model_max_length"
"""Key of a reranker's maximum length in tokenizer_config.json."""

ENCODER = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
queries, documents = model.encode_query(["…"]), model.encode_document(["…"])"""

RERANKER = """from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER")
scores = model.predict([("query", "document")])"""


class SentenceTransformersExporter(TransformersExporter):
    """The merged model as sentence-transformers opens it: an encoder with its prompts, or a reranker."""

    name = "sentence-transformers"

    def check(self, source: ExportSource) -> None:
        """Refuse tasks other than embedding, and classifiers that are not rerankers."""
        if not isinstance(source.task, Embedding) and not is_reranker(source.task):
            raise NotExportable(
                f"a model of task {source.task.name!r} is neither an encoder (task embedding) nor a reranker (task "
                "reranking, or text-classification of pairs, kind: relevance), which sentence-transformers opens. "
                "Export to transformers."
            )
        super().check(source)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        made = super().export(source, folder)
        task: Any = source.task
        if isinstance(task, Embedding):
            longest = read(folder / "sentence_bert_config.json")["max_seq_length"]
        else:
            longest = _longest(source)
            drop_chat_template(folder)
            rewrite(folder / "tokenizer_config.json", {LONGEST: longest})
        dtype = made.facts["dtype"]
        usage = ENCODER if isinstance(task, Embedding) else RERANKER
        return Exported(NOISE[dtype], {"dtype": dtype, "max_seq_length": longest}, usage, self.name)

    def asks(self, source: ExportSource) -> Sequence[Mapping[str, Any]]:
        """Return the proof's options: each text of a row with both prompts and with none; a reranker has no prompts."""
        task: Any = source.task
        if not isinstance(task, Embedding):
            return [{}]
        plain = {"prompt": "none"} if task.config.rows in PAIRED else {}
        prompts = {"prompt": "query"}, {"prompt": "document"}, plain
        return [{"column": column, **prompt} for column in PARTS[task.config.rows] for prompt in prompts]

    def check_artifact(self, folder: Path, source: ExportSource) -> None:
        """Also refuse other modules, pooling, prompts or another maximum length."""
        super().check_artifact(folder, source)
        if not isinstance(source.task, Embedding):
            written, longest = read(folder / "tokenizer_config.json").get(LONGEST), _longest(source)
            require_settings("tokenizer_config.json", {LONGEST: written}, {LONGEST: longest})
            return
        for name in SETTINGS:
            both = (_by_key(read(place / name)) for place in (folder, source.merged(self.config.dtype)))
            require_settings(name, *both)

    @contextmanager
    def open(self, folder: Path, source: ExportSource) -> Iterator[Runtime]:
        """Open the folder with sentence-transformers, in float32."""
        try:
            import sentence_transformers
        except ImportError:
            raise NoRuntime("sentence-transformers is not installed: pip install sentence-transformers.") from None
        yield (_Encoder if isinstance(source.task, Embedding) else _Reranker)(
            folder, source.task, sentence_transformers
        )


def _longest(source: ExportSource) -> int:
    """Return the maximum length of a reranker's pair in tokens."""
    task: Any = source.task
    return task.limit(source.max_length)


def _by_key(settings: Any) -> dict[str, Any]:
    """Return a JSON file's content as a mapping; a list's items by their index."""
    return settings if isinstance(settings, dict) else {str(i): item for i, item in enumerate(settings)}


class _Encoder(Runtime):
    """Encodes texts without blanks at their ends, as in training."""

    def __init__(self, folder: Path, task: Any, library: Any) -> None:
        self._task, self.name = task, f"sentence-transformers {library.__version__}"
        self._opened = library.SentenceTransformer(str(folder), **_exactly())

    def infer(self, rows: Sequence[Example], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        texts = [self._task.side_and_text(row, options)[1].strip() for row in rows]
        encoders = {"query": self._opened.encode_query, "document": self._opened.encode_document}
        encode = encoders.get(options.get("prompt", ""), self._opened.encode)
        return [{"vector": vector} for vector in encode(texts, show_progress_bar=False)]


class _Reranker(Runtime):
    """Scores pairs of query and document."""

    def __init__(self, folder: Path, task: Any, library: Any) -> None:
        self._task, self.name = task, f"sentence-transformers {library.__version__}"
        self._opened = library.CrossEncoder(str(folder), **_exactly())

    def infer(self, rows: Sequence[Example], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        if isinstance(self._task, Reranking):
            queries = [asked_of(row) for row in rows]
            return answers(queries, self._scores(pairs_of(queries)))
        columns = self._task.columns()
        scores = self._scores([(row[columns["text"]], row[columns["pair"]]) for row in rows])
        return [{"scores": {RELEVANT: score}} for score in scores]

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        return [float(score) for score in self._opened.predict(pairs, show_progress_bar=False)]


def is_reranker(task: Task) -> bool:
    """Return whether a task scores the relevance of a document to a query."""
    return isinstance(task, Reranking) or (
        isinstance(task, TextClassification) and task.config.kind == RELEVANCE and task.config.pair is not None
    )


def _exactly() -> dict[str, Any]:
    import torch

    return {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
