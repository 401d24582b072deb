"""A task that generates text: the completion of a prompt, between two marks instead of a chat template."""

from ftengine.api import Features, GenerativeTask, View
from ftengine.chat import stop_tokens
from ftengine.errors import DataError
from ftengine.generation import GenerationOptions, complete
from ftengine.model import TokenLoss, encode_spans, stack_tokens


class Headlines(GenerativeTask):
    """Write the headline (column `completion`) of an article (column `prompt`)."""

    name = "headlines"
    head = "causal-lm"
    modality = "text"
    evaluators = ("perplexity", "generation")
    predicts = frozenset({"loss", "tokens"})
    generates = frozenset({"prompt", "completion", "reference"})
    predicts_probabilities = True

    def view(self, row):
        article = row.get("prompt")
        return View([article] if isinstance(article, str) else [], row.get("completion"))

    def with_inputs(self, row, inputs):
        return {**row, "prompt": inputs[0]}

    def encode(self, example, processor, *, max_length=None):
        prompt, headline = self._prompt(example), self._text(example, "completion")
        text = f"{prompt}{headline}{processor.eos_token or ''}"
        ids, labels = encode_spans(processor, text, [(len(prompt), len(text))])
        cut = max(len(ids) - max_length, 0) if max_length else 0  # tokens at the beginning of the article
        inputs = {"input_ids": ids[cut:], "labels": labels[cut:]}
        trained = sum(label >= 0 for label in labels[cut:][1:])  # the first token has no prediction
        return Features(inputs, length=len(ids) - cut, weight=trained, truncated=cut > 0)

    def collate(self, features, processor):
        return stack_tokens([example.inputs for example in features], processor)

    def loss(self, model, batch, criterion):
        return TokenLoss().sum(model, batch, batch["labels"], criterion)

    def predict(self, model, batch):
        losses, tokens = TokenLoss().by_example(model, batch, batch["labels"])
        return [{"loss": a, "tokens": b} for a, b in zip(losses.tolist(), tokens.tolist(), strict=True)]

    def generate(self, loaded, rows, options=None):
        prompts = [self._prompt(row) for row in rows]
        ids = [loaded.processor(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        settings = GenerationOptions.read(options)
        answers = complete(loaded, ids, settings, stop_tokens(loaded), settings.numbers(len(rows)))
        return [
            {"prompt": prompt, "completion": answer.strip(), "reference": row.get("completion")}
            for prompt, answer, row in zip(prompts, answers, rows, strict=True)
        ]

    def check_input(self, row):
        self._prompt(row)

    def infer(self, loaded, rows, options=None):
        return [{"completion": answer["completion"]} for answer in self.generate(loaded, rows, options)]

    def _prompt(self, row):
        return f"Article: {self._text(row, 'prompt')}\nHeadline:"

    def _text(self, row, column):
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise DataError(f"column {column!r} must hold text. Rename a column to it by data.columns.")
        return f" {row[column].strip()}" if column == "completion" else row[column]
