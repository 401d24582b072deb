"""Faults that users meet, each planted in what an endpoint answers: `verify` names it, and nothing that is sound."""

import random
from dataclasses import replace

import numpy as np
import pytest
from rows import write_rows

from ftengine import fine_tune, load_run
from ftengine.chat import stop_tokens
from ftengine.chat.reply import Reply
from ftengine.engine.evaluate import held_out_rows
from ftengine.engine.informative_rows import prompts_of
from ftengine.engine.proof import exact_run
from ftengine.engine.variants import variants
from ftengine.engine.verify import verify_run
from ftengine.evaluation.questions import questions
from ftengine.evaluation.rounding import NOISE, claimed_type
from ftengine.generation import answer_scores


class Server:
    """An endpoint that answers by a model, with what a test changes on the way.

    Args:
        loaded: returns the model.
        reads: what it makes of a prompt's tokens.
        writes: what it makes of a reply to a prompt.
        options: of its answers, such as a temperature.
        gives: what it gives beside the text: log-probabilities, and how many tokens it reads.
        noise: of its log-probabilities.
    """

    url = "http://localhost:8000/v1"

    def __init__(self, world, loaded, reads=None, writes=None, options=None, gives=("logprobs", "count"), noise=0.0):
        self.model, self.asked = "support", 0
        self._world, self._loaded, self._reads = world, loaded, reads or (lambda prompt: list(prompt.ids))
        self._writes, self._options, self._gives = writes or (lambda reply, prompt: reply), options or {}, gives
        self._noise, self._draws = noise, np.random.default_rng(0)

    def answer(self, prompt, max_tokens):
        loaded, ids = self._loaded(), self._reads(prompt)
        self.asked += 1
        options = {**self._options, **({"seed": self.asked} if self._options.get("temperature") else {})}
        [one] = questions(loaded, [replace(prompt, ids=ids)], max_tokens, self._world.stop, options)
        scores = answer_scores(loaded, ids, one.answer)[:, 0].double().numpy()
        scores = np.minimum(scores + self._noise * self._draws.standard_normal(len(scores)), 0)
        told = tuple(scores.tolist()) if "logprobs" in self._gives else ()
        count = len(ids) if "count" in self._gives else None
        reply = Reply(one.text, one.ended, count, told, len(one.answer))
        return self._writes(reply, prompt)

    def tokens(self, prompt):
        return None

    def without_key(self, text):
        return text


class World:
    """A run's prompts, and the models that a server may hold."""

    def __init__(self, run, made):
        self.run, self.made = run, made
        ready = run.ready()
        _, rows = held_out_rows(ready, run.directory, None)
        by_row, self.longest = prompts_of(ready, rows, made.loaded, 32, run)
        self.prompts, self.stop, self.processor = list(by_row.values()), stop_tokens(made.loaded), made.loaded.processor

    def tuned(self):
        return self.made.scaled(1.0)

    def base(self):
        return self.made.scaled(0.0)

    def verified(self, loaded=None, weights="", **changes):
        server = Server(self, loaded or self.tuned, **changes)
        server.model = changes.pop("model", server.model)
        return verify_run(self.run, server, rows=32, weights=weights)


SUBJECTS = ("the printer", "my screen", "the network", "this laptop", "the mouse", "our server")
ADVICE = {
    "does not start": "Charge it.",
    "is very slow": "Wait a while.",
    "shows an error": "Read it out.",
    "makes a noise": "Open the lid.",
    "was stolen": "Call us.",
}


def conversations():
    """Yield conversations whose answers hang on all that is read: the question, the system message, earlier turns."""
    draw = random.Random(0)
    for i in range(200):
        subject, (action, advice) = draw.choice(SUBJECTS), draw.choice([*ADVICE.items()])
        brief, known = draw.random() < 0.5, draw.random() < 0.3
        turns = [{"role": "system", "content": "Be brief."}] if brief else []
        turns += [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}] if known else []
        turns += [{"role": "user", "content": f"{subject} {action} ({i})"}]
        answer = f"{'Sure. ' if known else ''}{advice}{'' if brief else f' Then restart {subject}.'}"
        yield {"messages": [*turns, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def world(build_chat_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    recipe = build_chat_recipe(
        data__train=str(write_rows(folder / "rows.jsonl", list(conversations()))),
        data__validation=0.08,
        strategy="full",
        train__epochs=8,
        train__batch_size=16,
        train__learning_rate=0.005,
        evaluation__generate={"max_new_tokens": 20},
        output=str(folder / "run"),
    )
    run = load_run(fine_tune(recipe).path)
    with variants(exact_run(run)) as made:
        yield World(run, made)


@pytest.mark.slow
def test_answers_hang_on_their_prompts(world):
    loaded = world.tuned()
    texts = {one.text for one in questions(loaded, world.prompts, world.longest, world.stop)}
    assert len(texts) > len(world.prompts) / 3


# what is sound


@pytest.mark.slow
@pytest.mark.parametrize("gives", [("logprobs", "count"), ("logprobs",), ("count",), ()], ids="+".join)
def test_the_tuned_model_is_served(world, gives):
    found = world.verified(gives=gives)
    assert (found.served, found.cause, found.same_as_tuned) == ("tuned", "", found.rows)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.001, 0.03])
def test_noise_of_16_and_8_bits_is_the_tuned_models(world, noise):
    assert world.verified(noise=noise).served == "tuned"


@pytest.mark.slow
def test_weights_of_8_bits_are_the_tuned_models(world):
    found = world.verified(lambda: world.made.rounded("q8_0"))
    assert (found.served, found.cause) == ("tuned", "")


@pytest.mark.slow
def test_the_base_is_served(world):
    found = world.verified(world.base)
    assert (found.served, found.cause, found.same_as_base) == ("base", "", found.rows)


@pytest.mark.slow
def test_coarse_weights_are_the_tuned_models_where_they_are_named(world):
    found = world.verified(lambda: world.made.rounded("q4_0"), weights="q4_0")
    assert (found.served, found.cause, found.weights, found.claimed_by) == ("tuned", "", "q4_0", "option")


# what is not


def first_layer(world):
    return next(names for place, names in world.made.parts().items() if place.startswith("layer"))


def module_kind(world, kind):
    return world.made.parts()[f"its {kind} modules"]


def templated(world, prompt, turns, **settings):
    settings = {"add_generation_prompt": True, "return_dict": True, **settings}
    return list(world.processor.apply_chat_template(turns, **settings)["input_ids"])


def last_turn(world, prompt):
    return templated(
        world, prompt, [turn for turn in turns_of(prompt) if turn["role"] == "system"] + turns_of(prompt)[-1:]
    )


def no_system(world, prompt):
    return templated(world, prompt, [turn for turn in turns_of(prompt) if turn["role"] != "system"])


def turns_of(prompt):
    return [dict(turn) for turn in prompt.messages]


def without_ends(world, prompt):
    ends = set(world.stop)
    return [token for token in prompt.ids if token not in ends]


def blank_system(world, prompt):
    turns = turns_of(prompt)
    blank = [] if turns[0]["role"] == "system" else [{"role": "system", "content": ""}]
    return templated(world, prompt, [*blank, *turns])


def own_system(world, prompt):
    return templated(world, prompt, [{"role": "system", "content": "Talk like a pirate."}, *turns_of(prompt)])


def plain(world, prompt):
    return world.processor("\n".join(turn["content"] for turn in turns_of(prompt)), add_special_tokens=False)[
        "input_ids"
    ]


READS = {
    "second BOS": (lambda world, prompt: [world.processor.bos_token_id, *prompt.ids], "BOS"),
    "no BOS": (lambda world, prompt: list(prompt.ids[1:]), "BOS"),
    "trimmed": (lambda world, prompt: list(prompt.ids[-16:]), "the last 16 tokens"),
    "end lost": (lambda world, prompt: list(prompt.ids[:16]), "the first 16 tokens"),
    "no ends of turns": (without_ends, "end turns"),
    "blank system message": (blank_system, "blank system message"),
    "system message of its own": (own_system, "template"),
    "no system message": (no_system, "system message is lost"),
    "no earlier turns": (last_turn, "earlier turns are lost"),
    "no template": (plain, "no chat template"),
    "no beginning of an answer": (
        lambda world, prompt: templated(world, prompt, turns_of(prompt), add_generation_prompt=False),
        "beginning of the assistant's turn",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("gives", [("logprobs", "count"), ("logprobs",)], ids="+".join)
@pytest.mark.parametrize("fault", READS)
def test_what_is_read_otherwise_is_named(world, fault, gives):
    read, cause = READS[fault]
    assert any(read(world, prompt) != list(prompt.ids) for prompt in world.prompts)
    found = world.verified(reads=lambda prompt: read(world, prompt), gives=gives)
    assert found.served == "other", found
    if "count" in gives or fault != "system message of its own":
        assert cause in found.cause, found


def cut_at(count, world):
    def write(reply, prompt):
        ids = world.processor(reply.text, add_special_tokens=False)["input_ids"]
        if len(ids) <= count:
            return reply
        text = world.processor.decode(ids[:count])
        return replace(reply, text=text, ended=False, log_probabilities=reply.log_probabilities[:count], tokens=count)

    return write


def silent_cut(world):
    """Of a server that does not say why an answer ended."""
    return lambda reply, prompt: replace(cut_at(4, world)(reply, prompt), ended=None, tokens=None)


WRITES = {
    "cut": (lambda world: cut_at(4, world), "cut, the longest at 4 tokens"),
    "cut, not reported": (silent_cut, "cut"),
    "one answer for all": (lambda world: kept(), "one answer"),
    "upper case": (lambda world: lambda reply, prompt: replace(reply, text=reply.text.upper()), "case"),
    "text in front": (lambda world: lambda reply, prompt: replace(reply, text=f"Sure! {reply.text}"), "text around"),
    "goes on": (lambda world: lambda reply, prompt: replace(reply, text=f"{reply.text} user Why?"), "end tokens"),
    "ends early": (
        lambda world: lambda reply, prompt: replace(reply, text=reply.text[: len(reply.text) // 2], ended=True),
        "end before",
    ),
    "thoughts alone": (lambda world: lambda reply, prompt: replace(reply, text=""), "empty"),
}


def kept():
    first = []

    def write(reply, prompt):
        first.append(reply)
        return first[0]

    return write


@pytest.mark.slow
@pytest.mark.parametrize("gives", [("logprobs", "count"), ("count",)], ids="+".join)
@pytest.mark.parametrize("fault", WRITES)
def test_what_is_written_otherwise_is_named(world, fault, gives):
    write, cause = WRITES[fault]
    found = world.verified(writes=write(world), gives=gives)
    if fault == "thoughts alone" and "logprobs" not in gives:
        assert found.served == "base"  # which answers nothing either
        return
    assert (found.served, cause in found.cause) == ("other", True), found


@pytest.mark.slow
def test_sampled_answers_are_named(world):
    found = world.verified(options={"temperature": 1.5})
    assert found.same_as_tuned < found.rows
    assert (found.served, "samples" in found.cause) == ("other", True), found


@pytest.mark.slow
def test_answers_that_are_not_the_likeliest_of_their_own_log_probabilities_are_named(world):
    """A penalty, or a fixed seed: the second likeliest token stands first."""

    def write(reply, prompt):
        return second[tuple(prompt.ids)]

    loaded, second = world.tuned(), {}
    for prompt in world.prompts:
        [one] = questions(loaded, [prompt], world.longest, world.stop)
        tokens = [(one.answer[0] + 1) % 256 + 3, *one.answer[1:]]
        text = world.processor.decode(tokens, skip_special_tokens=True)
        ids = world.processor(text, add_special_tokens=False)["input_ids"]
        scores = answer_scores(loaded, prompt.ids, ids)[:, 0]
        second[tuple(prompt.ids)] = Reply(text, None, len(prompt.ids), tuple(scores.tolist()))
    found = verify_run(world.run, Server(world, world.tuned, writes=write), rows=32)
    assert (found.served, "penalty" in found.cause) == ("other", True), found
    assert found.from_tuned < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["layer", "v_proj", "half", "more"])
def test_a_part_or_a_scale_of_the_update_is_named(world, fault):
    made = world.made
    loaded, cause = {
        "layer": (lambda: made.without(first_layer(world)), "in layer 0"),
        "v_proj": (lambda: made.without(module_kind(world, "v_proj")), "in its v_proj modules"),
        "half": (lambda: made.scaled(0.5), "about 0.5 times"),
        "more": (lambda: made.scaled(2**0.5), "about 1.41"),
    }[fault]
    found = world.verified(loaded)
    assert (found.served, cause in found.cause) == ("other", True), found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "claimed"), [("q5_0", "f32"), ("q4_1", "f16"), ("q4_0", "f16")])
def test_a_coarser_quantisation_is_named(world, kind, claimed):
    """Five bits move this small model's log-probabilities by 0.007, which 16 bits explain."""
    found = world.verified(lambda: world.made.rounded(kind), weights=claimed)
    assert (found.served, kind.upper() in found.cause) == ("other", True), found


@pytest.mark.slow
def test_another_tuned_run_is_something_else(world):
    """Attention changed half as much, and a layer not at all."""

    def other():
        loaded = world.made.without(first_layer(world))
        for name, (weight, base, _) in world.made._changes.items():
            if "attn" in name:
                weight.copy_((weight + base) / 2)
        return loaded

    found = world.verified(other)
    assert (found.served, bool(found.cause)) == ("other", True), found


@pytest.mark.slow
def test_without_log_probabilities_a_few_answers_that_differ_are_not_enough(world):
    """Two answers whose tokens are nearly as likely: 8 bits explain them, and so does a lost part."""
    loaded = world.made.without(first_layer(world))
    found = world.verified(lambda: world.made.without(first_layer(world)), gives=("count",))
    assert loaded is not None
    assert found.served in ("undecided", "other")
    assert found.cause


# what is claimed


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("support-Q4_K_M.gguf", "q4_k"),
        ("llama-3-8b-instruct-q8_0", "q8_0"),
        ("Qwen/Qwen3-4B-AWQ", "int4"),
        ("model.BF16", "bf16"),
        ("model-f16", "f16"),
        ("model-FP8-dynamic", "fp8"),
        ("support", ""),
        ("ollama/support:latest", ""),
        ("my-q4_0-to-q8_0", ""),
        ("leaf16", ""),
    ],
)
def test_a_models_name_claims_its_weights(name, kind):
    assert claimed_type(name) == kind


@pytest.mark.slow
def test_a_type_in_the_models_name_is_what_its_weights_explain(world):
    server = Server(world, world.tuned, noise=0.04)
    server.model = "support-f16"
    found = verify_run(world.run, server, rows=32)
    assert (found.weights, found.claimed_by, found.noise) == ("f16", "name", NOISE["f16"])
    assert found.served == "other"  # noise of 8 bits
