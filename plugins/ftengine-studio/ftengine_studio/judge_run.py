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
    ALONE,
    ORDERS,
    Alone,
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
SIDES = ("base", "tuned")


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

    def require_another_model(self) -> int:
        """Refuse a judge that is the run's base or tuned model, by its name or answers; return what it was asked.

        Names are compared in any case, answers where anything is left to be judged. An endpoint that repeats the
        beginnings of `ALIKE` of `COMPARED` recorded answers is the model that wrote them. Answers of under `LONG`
        characters could be anybody's and are not compared; `ftengine verify` decides with log-probabilities. These
        requests count as others do, and their replies are kept, unless the judge is refused: the address may serve
        another model of that name next.

        Returns:
            The number of replies; 0 if too few answers are long and differ, fewer than `ALIKE` replies come, or a
            bound is reached before. The result is `stopped` at a bound, and nothing is judged.

        Raises:
            InputError: it is one of them, or nothing can be asked, as of `judge`.
        """
        require_another_name(self.run, self.name)
        differing = [pair for pair in self.pairs if len(set(pair.answers.values())) > 1]
        compared = {side: [p for p in differing if len(p.answers[side]) >= LONG][:COMPARED] for side in SIDES}
        compared = {side: some for side, some in compared.items() if len(some) >= ALIKE}
        chosen = {} if self.is_done else {pair.row: pair for some in compared.values() for pair in some}
        texts, new, gone = dict[int, str](), list[JudgeReply](), None
        try:
            for row, pair in chosen.items():
                asked = Prompt((), [{"role": "user", "content": pair.prompt}])
                reply = self._kept.get(request_of(self.name, asked, TOKENS))
                if reply is None:
                    new.append(self._ask(pair, ALONE, asked, TOKENS, keep=False))
                    reply = self._with_failures_counted(new[-1])
                if reply is not None:
                    texts[row] = reply.text.strip()
        except Stop as stop:
            self.result.stopped = str(stop)
        except InputError as error:
            gone = error
        for side, some in compared.items():
            same = sum(_begins_as(texts.get(pair.row, ""), pair.answers[side]) for pair in some)
            if same >= ALIKE:
                raise InputError(
                    f"judge {self.name!r} answers as the {side} model of run {str(self.run.path)!r} does, to {same} of "
                    f"{len(some)} prompts word for word, and would judge its own answers. Choose another model with "
                    "--model."
                )
        for reply in new:
            self._keep(reply)
        if gone is not None:
            raise gone
        return 0 if self.result.stopped or len(texts) < ALIKE else len(texts)

    def judge(self, listener: Listener) -> Judging:
        """Ask for what is not judged yet, keep every reply, and write a judgement for each pair with two verdicts.

        Raises:
            InputError: nothing can be asked: the address, the key, or `IN_A_ROW` requests without a reply. What was
                replied before is kept, and the next call goes on from there.
        """
        listener.phase("judge", len(self.pairs))
        pairs = self._ordered()
        if self.result.stopped:
            self.result.left = len(pairs)
            return self.result
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
        if (kept := self._kept.get(request_of(self.name, asked, self.bounds.max_tokens))) is not None:
            self.result.reused += 1
            return kept
        return self._with_failures_counted(self._ask(pair, order, asked, self.bounds.max_tokens))

    def _ask(self, pair: Pair, order: Order | Alone, asked: Prompt, max_tokens: int, keep: bool = True) -> JudgeReply:
        """Send a request within the bounds, and count and keep its reply (Stop: a bound is reached)."""
        self._require_room(asked, max_tokens)
        text, failure, ended, read_tokens, tokens = "", None, None, None, None
        try:
            reply = self.endpoint.answer(asked, max_tokens, scores=False)
        except NoAnswer as error:
            failure = self.endpoint.without_key(str(error))
        else:
            text, ended = self.endpoint.without_key(reply.text), reply.ended
            read_tokens, tokens = reply.prompt_tokens, reply.tokens
        new = JudgeReply(
            request=request_of(self.name, asked, max_tokens),
            prompt=pair.row,
            prompt_hash=pair.prompt_hash,
            order=order,
            judge=self.name,
            text=text,
            verdict=None if order == ALONE else verdict_of(text, order),
            failure=failure,
            ended=ended,
            prompt_tokens=read_tokens,
            tokens=tokens,
            time=now(),
            answers_hash=pair.answers_hash,
        )
        self.result.spent.add(asked, new)
        if keep:
            self._keep(new)
        return new

    def _keep(self, reply: JudgeReply) -> None:
        keep_reply(self.run.path, reply)
        self.result.changed = True

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

    def _require_room(self, asked: Prompt, max_tokens: int) -> None:
        bounds, spent = self.bounds, self.result.spent
        if bounds.requests is not None and spent.requests >= bounds.requests:
            raise Stop(f"--max-requests {bounds.requests:,} is reached")
        if bounds.cost is not None and bounds.prices is not None:
            worst = (_tokens(asked) * bounds.prices[0] + max_tokens * bounds.prices[1]) / 1e6
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


def require_another_name(run: RunRecords, name: str) -> None:
    """Refuse a judge with the name of the run's base or tuned model, in any case (InputError)."""
    own = {"base": {run.recipe.model.source}, "tuned": {str(run.path), str(run.path.resolve())}}
    for side, names in own.items():
        if {_last(known) for known in names} & {_last(name)}:
            raise InputError(
                f"judge {name!r} has the name of the {side} model of run {str(run.path)!r}, which would judge its own "
                "answers. Choose another model with --model."
            )


def _begins_as(text: str, answer: str) -> bool:
    """Say whether a text begins as an answer does, as far as both go and up to `BEGINNING` characters."""
    shared = min(len(text), len(answer.strip()), BEGINNING)
    return shared >= LONG and text[:shared] == answer.strip()[:shared]


def _last(name: str) -> str:
    """Return the last part of a path or of an owner/name, without case."""
    return Path(name.rstrip("/")).name.casefold()
