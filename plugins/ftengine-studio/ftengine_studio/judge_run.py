"""Asking a judge about each pair in both orders, within limits; a later call continues."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ftengine import RunRecords
from ftengine.api import Listener, Prompt
from ftengine.chat import Endpoint, NoAnswer
from ftengine.errors import InputError
from ftengine_studio.answers import Pair, pairs_of
from ftengine_studio.judge_replies import (
    ORDERS,
    JudgeReply,
    Order,
    Preferred,
    combined,
    judgement_of,
    keep_reply,
    question,
    read_replies,
    request_of,
    verdict_of,
)
from ftengine_studio.judgements import append, latest, now, read
from ftengine_studio.runs import StudioRun

CHARACTERS = 3
"""Of a token, at least, where an endpoint does not count: few languages and texts have fewer."""
IN_A_ROW = 5
"""Requests without a reply, one after the other, after which the endpoint is taken for gone."""

COMPARED, ALIKE, LONG, BEGINNING = 4, 3, 24, 60
"""Recorded answers of a model that the endpoint is asked for, those that it has to repeat to be that model, the
characters from which an answer is nobody else's, and those after which roundings of weights may tell."""
TOKENS = 48


def pairs_to_judge(run: Path) -> list[Pair]:
    """Return the answers of base and tuned model in a run's folder (InputError: there are none)."""
    if pairs := pairs_of(StudioRun(run, run.resolve().name)):
        return pairs
    raise InputError(
        f"run {str(run)!r} has no answers to judge. If its task writes text, `ftengine studio {run} --new 40` makes "
        "some, and `ftengine train` as many as evaluation.answers says."
    )


@dataclass(frozen=True)
class Bounds:
    """Limits of a call.

    Args:
        requests: maximal number of requests; None: two for each pair.
        cost: maximal cost in the currency of the prices; None: no limit.
        prices: of a million tokens read and of a million written; None if costs are not counted.
        max_tokens: of a reply.
    """

    requests: int | None
    cost: float | None
    prices: tuple[float, float] | None
    max_tokens: int


@dataclass
class Spent:
    """What a call has spent; `estimated` says that the endpoint does not count tokens, so that characters did."""

    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    estimated: bool = False

    def cost(self, prices: tuple[float, float]) -> float:
        """Return it by the prices of a million tokens read and written."""
        return (self.prompt_tokens * prices[0] + self.tokens * prices[1]) / 1e6

    def add(self, asked: Prompt, reply: JudgeReply) -> None:
        """Count a reply."""
        self.requests += 1
        if reply.failure is not None:
            return
        read = reply.prompt_tokens if reply.prompt_tokens is not None else _tokens(asked)
        written = reply.tokens if reply.tokens is not None else math.ceil(len(reply.text) / CHARACTERS)
        self.estimated |= reply.prompt_tokens is None or reply.tokens is None
        self.prompt_tokens, self.tokens = self.prompt_tokens + read, self.tokens + written


@dataclass
class Judging:
    """The result of a call.

    Args:
        identical: pairs of equal answers, which are ties without asking.
        reused: replies of earlier calls.
        replies: both orders of each pair that has them, of this call and earlier ones.
        garbage: replies of `replies` without a verdict, or with several.
        failed: requests of this call without a reply; `failure` is the last one's cause.
        left: pairs that are not judged yet.
        stopped: why the call ended before all pairs were judged; "" if it did not.
        changed: whether judgements or replies were written.
    """

    pairs: int
    spent: Spent = field(default_factory=Spent)
    reused: int = 0
    identical: int = 0
    replies: list[tuple[JudgeReply, JudgeReply]] = field(default_factory=list)
    garbage: int = 0
    failed: int = 0
    failure: str = ""
    left: int = 0
    stopped: str = ""
    changed: bool = False


class Stop(Exception):
    """Ends the requests; the message is the reason."""


class Judge:
    """A model at an endpoint that compares the answers of a run's base and tuned model.

    Args:
        run: the run's records; replies and judgements are written into its folder.
        pairs: what is to be judged.
        endpoint: the model, asked at temperature 0.
        rubric: the text of the question, see `read_rubric`.
        seed: decides the order of the pairs.
    """

    def __init__(
        self, run: RunRecords, pairs: Sequence[Pair], endpoint: Endpoint, rubric: str, bounds: Bounds, seed: int
    ) -> None:
        self.run, self.pairs, self.endpoint = run, pairs, endpoint
        self.rubric, self.bounds, self.seed = rubric, bounds, seed
        self.name = endpoint.model
        self._kept = read_replies(run.path)
        self._judged = {
            one.prompt_hash: one
            for one in latest(read(run.path))
            if one.judge == self.name and one.kind == "model" and {one.left, one.right} == {"base", "tuned"}
        }
        self.result = Judging(len(self.pairs))
        self._failures = 0

    @property
    def is_done(self) -> bool:
        """Whether the replies to all pairs are stored."""
        different = [pair for pair in self.pairs if pair.answers["base"] != pair.answers["tuned"]]
        questions = (question(self.rubric, pair, order) for pair in different for order in ORDERS)
        return all(request_of(self.name, asked, self.bounds.max_tokens) in self._kept for asked in questions)

    def judge(self, listener: Listener) -> Judging:
        """Ask for what is not judged yet, keep every reply, and write a judgement for each pair with two verdicts.

        Raises:
            InputError: nothing can be asked: the address, the key, or `IN_A_ROW` requests without a reply. What was
                replied before is kept, and the next call goes on from there.
        """
        listener.phase("judge", len(self.pairs))
        pairs = self._ordered()
        for number, pair in enumerate(pairs):
            if pair.answers["base"] == pair.answers["tuned"]:
                self.result.identical += 1
                self._write(pair, "tie", "identical answers, not asked")
                listener.advance()
                continue
            try:
                both = [self._reply(pair, order) for order in ORDERS]
            except Stop as stop:
                self.result.stopped, self.result.left = str(stop), self.result.left + len(pairs) - number
                break
            listener.advance()
            first, second = both
            if first is None or second is None:
                self.result.left += 1
                continue
            self.result.replies.append((first, second))
            self.result.garbage += sum(reply.verdict is None for reply in (first, second))
            if (preferred := combined(first, second)) is not None:
                self._write(pair, preferred)
        return self.result

    def _ordered(self) -> list[Pair]:
        """Return the pairs in the order of asking: those that people judged, then the others at random."""
        people = {one.prompt for one in read(self.run.path) if one.kind == "person" and one.verdict != "skip"}
        drawn = random.Random(self.seed).sample(self.pairs, len(self.pairs))
        return sorted(drawn, key=lambda pair: pair.row not in people)

    def _reply(self, pair: Pair, order: Order) -> JudgeReply | None:
        """Return the reply to one order, kept or new; None where there is none (Stop: a bound is reached)."""
        asked = question(self.rubric, pair, order)
        request = request_of(self.name, asked, self.bounds.max_tokens)
        if (kept := self._kept.get(request)) is not None:
            self.result.reused += 1
            return kept
        self._require_room(asked)
        text, failure, ended, read_tokens, tokens = "", None, None, None, None
        try:
            reply = self.endpoint.answer(asked, self.bounds.max_tokens, scores=False)
        except NoAnswer as error:
            failure = self.endpoint.without_key(str(error))
        else:
            text, ended = self.endpoint.without_key(reply.text), reply.ended
            read_tokens, tokens = reply.prompt_tokens, reply.tokens
        new = JudgeReply(
            request=request,
            prompt=pair.row,
            prompt_hash=pair.prompt_hash,
            order=order,
            judge=self.name,
            text=text,
            verdict=verdict_of(text, order),
            failure=failure,
            ended=ended,
            prompt_tokens=read_tokens,
            tokens=tokens,
            time=now(),
            answers_hash=pair.answers_hash,
        )
        keep_reply(self.run.path, new)
        self.result.changed = True
        self.result.spent.add(asked, new)
        return self._with_failures_counted(new)

    def _with_failures_counted(self, reply: JudgeReply) -> JudgeReply | None:
        if reply.failure is None:
            self._failures, self._kept[reply.request] = 0, reply
            return reply
        self.result.failed, self.result.failure = self.result.failed + 1, reply.failure
        self._failures += 1
        if self._failures == IN_A_ROW:
            raise InputError(
                f"{IN_A_ROW} requests one after the other had no reply, the last one: {reply.failure} Earlier replies "
                "are kept; the same command goes on from there."
            )
        return None

    def _require_room(self, asked: Prompt) -> None:
        bounds, spent = self.bounds, self.result.spent
        if bounds.requests is not None and spent.requests >= bounds.requests:
            raise Stop(f"--max-requests {bounds.requests:,} is reached")
        if bounds.cost is not None and bounds.prices is not None:
            worst = (_tokens(asked) * bounds.prices[0] + bounds.max_tokens * bounds.prices[1]) / 1e6
            if (cost := spent.cost(bounds.prices)) + worst > bounds.cost:
                raise Stop(f"--max-cost {bounds.cost:g} could be passed by the next request ({cost:.4g} are spent)")

    def _write(self, pair: Pair, preferred: Preferred, note: str | None = None) -> None:
        new = judgement_of(pair, preferred, self.name, self.seed, note)
        old = self._judged.get(new.prompt_hash)
        if old is None or any(
            getattr(old, key) != getattr(new, key) for key in ("preferred", "verdict", "answers_hash")
        ):
            append(self.run.path, new)
            self.result.changed = True
            self._judged[new.prompt_hash] = new


def _tokens(asked: Prompt) -> int:
    return sum(math.ceil(len(turn["content"]) / CHARACTERS) for turn in asked.messages or ())


def require_another_model(run: RunRecords, endpoint: Endpoint, pairs: Sequence[Pair]) -> int:
    """Refuse a judge that is the run's base or tuned model, by its name or its answers; return the requests it took.

    Names are compared in any case, answers where there are `pairs`. An endpoint that repeats the beginnings of `ALIKE`
    of `COMPARED` recorded answers is the model that wrote them.
    Answers of under `LONG` characters could be anybody's and are not compared; `ftengine verify` decides with
    log-probabilities.

    Raises:
        InputError: it is one of them.
    """
    name = endpoint.model
    own = {"base": {run.recipe.model.source}, "tuned": {str(run.path), str(run.path.resolve())}}
    for side, names in own.items():
        if {_last(known) for known in names} & {_last(name)}:
            raise InputError(
                f"judge {name!r} has the name of the {side} model of run {str(run.path)!r}, which would judge its own "
                "answers. Choose another model with --model."
            )
    differing = [pair for pair in pairs if len(set(pair.answers.values())) > 1]
    compared = {side: [pair for pair in differing if len(pair.answers[side]) >= LONG][:COMPARED] for side in own}
    compared = {side: some for side, some in compared.items() if len(some) >= ALIKE}
    texts = {pair.row: _answer(endpoint, pair.prompt) for some in compared.values() for pair in some}
    for side, some in compared.items():
        same = sum(_begins_as(texts[pair.row], pair.answers[side]) for pair in some)
        if same >= ALIKE:
            raise InputError(
                f"judge {name!r} answers as the {side} model of run {str(run.path)!r} does, to {same} of {len(some)} "
                "prompts word for word, and would judge its own answers. Choose another model with --model."
            )
    return len(texts)


def _answer(endpoint: Endpoint, prompt: str) -> str:
    """Return an endpoint's short answer to a prompt; "" for none."""
    try:
        return endpoint.answer(Prompt((), [{"role": "user", "content": prompt}]), TOKENS, scores=False).text.strip()
    except NoAnswer:
        return ""


def _begins_as(text: str, answer: str) -> bool:
    """Say whether a text begins as an answer does, as far as both go and up to `BEGINNING` characters."""
    shared = min(len(text), len(answer.strip()), BEGINNING)
    return shared >= LONG and text[:shared] == answer.strip()[:shared]


def _last(name: str) -> str:
    """Return the last part of a path or of an owner/name, without case."""
    return Path(name.rstrip("/")).name.casefold()
