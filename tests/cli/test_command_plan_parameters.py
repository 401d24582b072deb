"""`plan --parameters-only`: from a config.json alone, without data, weights or tokenizer."""

import json
import shutil

import pytest
import yaml

GPT3 = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048, "vocab_size": 50257}
OPT_175B = {
    "model_type": "opt", "hidden_size": 12288, "word_embed_proj_dim": 12288, "ffn_dim": 49152, "num_hidden_layers": 96,
    "num_attention_heads": 96, "max_position_embeddings": 2048, "vocab_size": 50272,
}  # fmt: skip
ROBERTA = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": 50265, "type_vocab_size": 1}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@pytest.fixture
def counted(ftengine, tmp_path):
    """Count for a config: returns the parsed JSON, or the text of the page."""

    def call(config, strategy, *options, task="causal-lm", text=False, code=0):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        recipe = {
            "model": {"source": str(tmp_path / "model")},
            "task": task,
            "data": {"train": str(tmp_path / "nowhere.jsonl")},
            "strategy": strategy,
            "output": str(tmp_path / "run"),
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        json_option = () if text or code else ("--json",)
        result = ftengine("plan", tmp_path / "recipe.yaml", "--parameters-only", *json_option, *options, code=code)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "recipe.yaml"]
        if code:
            return result.stderr
        return result.stdout if text else json.loads(result.stdout)

    return call


def lora(rank, targets):
    return {"name": "lora", "rank": rank, "targets": targets}


def added(content):
    """Return what a strategy adds, which is all that trains but the head, which published figures leave out."""
    without_head = content["trainable_parameters"] - sum(content["new_modules"].values())
    assert content["total_parameters"] == content["base_parameters"] + without_head
    return without_head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "strategy", "task", "millions"),
    [
        # Hu et al. 2021 (arXiv:2106.09685), tables 2 and 4. One matrix for query, key and value, as GPT-2 has it, takes
        # 4dr of an update, as do query and value apart.
        (ROBERTA | BASE, lora(8, ["query", "value"]), "text-classification", 0.3),
        (ROBERTA | LARGE, lora(8, ["query", "value"]), "text-classification", 0.8),
        (OPT_175B, lora(2, ["v_proj"]), "causal-lm", 4.7),
        (OPT_175B, lora(8, ["q_proj", "v_proj"]), "causal-lm", 37.7),
        (GPT3, lora(1, ["c_attn"]), "causal-lm", 4.7),
        (GPT3, lora(8, ["c_attn"]), "causal-lm", 37.7),
        # Row Adpt^P of 0.8M in its table 2.
        (ROBERTA | LARGE, {"name": "adapter", "placement": "pfeiffer", "bottleneck": 16}, "text-classification", 0.8),
    ],
)
def test_published_counts_come_out(counted, config, strategy, task, millions):
    content = counted(config, strategy, task=task)
    assert round(added(content) / 1e6, 1) == millions
    by_pattern = [found["trainable_parameters"] for found in content["patterns"].values()]
    assert sum(by_pattern) == added(content)


@pytest.mark.parametrize("labels", [None, 2, 7])
def test_a_classification_head_has_as_many_outputs_as_are_asked_for(counted, labels):
    options = () if labels is None else ("--labels", labels)
    content = counted(ROBERTA | BASE, "full", *options, task="text-classification")
    assert content["new_modules"] == {"classifier": 768 * 768 + 768 + (768 + 1) * (labels or 2)}
    assert len(content["model"]["labels"]) == (labels or 2)


def test_what_is_frozen_is_counted_by_pattern(counted):
    strategy = {"name": "full", "freeze": ["embeddings", "layer.0"]}
    content = counted(ROBERTA | BASE, strategy, task="text-classification")
    embeddings, layer = content["patterns"].values()
    assert (embeddings["modules"], embeddings["trainable_parameters"], layer["trainable_parameters"]) == (1, 0, 0)
    assert (
        content["trainable_parameters"] == content["total_parameters"] - embeddings["parameters"] - layer["parameters"]
    )


def test_the_page_says_what_trains_and_what_is_new(counted):
    text = counted(ROBERTA | BASE, lora(8, ["query"]), task="text-classification", text=True)
    for expected in (
        "trains", "739,586 of 124,793,090 parameters (0.59 %)", "592,130 in classifier",
        "query matches 12 modules", "147,456 train",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.parametrize(
    ("config", "strategy", "task", "message"),
    [
        (GPT3 | {"n_layer": 1, "n_embd": 96}, lora(4, ["q_proj"]), "causal-lm", "'q_proj' matches no module"),
        (GPT3 | {"n_layer": 1, "n_embd": 96}, "lorra", "causal-lm", "Did you mean 'lora'?"),
        (ROBERTA | BASE, "full", "causal-lm", "is a roberta encoder"),
        ({"model_type": "gpt-2"}, "full", "causal-lm", "model_type 'gpt-2'"),
        (ROBERTA | BASE, {"name": "full", "freeze": ["layer.12"]}, "text-classification", "'layer.12' matches no"),
    ],
)
def test_what_cannot_be_counted_is_one_error_line(counted, config, strategy, task, message):
    error = counted(config, strategy, task=task, code=2)
    assert message in error.splitlines()[-1]


def test_all_ways_to_plan_count_alike_what_the_weights_bring(ftengine, bert_folder, tmp_path):
    """The weights hold a pooler, whatever class the config names."""
    model = shutil.copytree(bert_folder, tmp_path / "bert")
    config = json.loads((model / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (model / "config.json").write_text(json.dumps(config))
    rows = [{"text": f"Sentence {i} is {label}.", "label": label} for i in range(8) for label in ("good", "bad")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"source": str(model)},
        "task": "text-classification",
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "strategy": "lora",
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    only, short, whole = (
        json.loads(ftengine("plan", tmp_path / "recipe.yaml", "--json", *options).stdout)
        for options in (["--parameters-only"], ["--no-measure"], [])
    )
    assert list(only["new_modules"]) == short["model"]["new_modules"] == whole["model"]["new_modules"] == ["classifier"]
    trained = only["trainable_parameters"]
    assert trained == short["model"]["trainable_parameters"] == whole["model"]["trainable_parameters"]


def test_a_whole_plan_takes_labels_from_the_data(ftengine, recipe):
    assert "--labels goes with --parameters-only" in ftengine("plan", recipe, "--labels", 3, code=2).stderr
