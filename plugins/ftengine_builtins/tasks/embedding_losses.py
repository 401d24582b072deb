"""Losses of embeddings: formulas over vectors of many examples, which are compared by their cosine.

`x` holds tensors of n examples by name: vectors (n, d) `anchor`, `positive` and `negative`; (n,) ids `anchor_id`,
`positive_id` and `negative_id` (equal for equal texts) and `label_id` (texts with equal ids are not negatives of each
other); and (n,) `score`. Each loss returns (sum, weight).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Vectors = Mapping[str, "Tensor"]
Loss = Callable[[Vectors], "tuple[Tensor, Tensor | float]"]
VECTORS = ("anchor", "positive", "negative")


def unit(x: Tensor) -> Tensor:
    """Return (n, d) rows of length 1."""
    from torch.nn.functional import normalize

    return normalize(x, dim=-1)


class InBatchNegatives:
    """In-batch negatives (InfoNCE): each anchor has to find its own positive among those of all examples.

    loss_i = -log( exp(s_ii / τ) / Σ_j exp(s_ij / τ) ),  s_ij = cos(anchor_i, candidate_j)

    (van den Oord et al. 2018, arXiv:1807.03748, eq. 4; Henderson et al. 2017, arXiv:1705.00652, §4). Candidates are
    all positives, and all negatives where examples have one. Left out of Σ, as false negatives: a candidate that is
    the same text as positive or anchor of i, the positive of an equal anchor, and one of an equal label. τ is 0.05
    (Gao et al. 2021, SimCSE, arXiv:2104.08821; sentence-transformers' scale of 20). With `symmetric` it is the mean of
    this and of finding the anchor for each positive (Radford et al. 2021, CLIP, arXiv:2103.00020).
    """

    meets = True

    def __init__(self, temperature: float = 0.05, symmetric: bool = False) -> None:
        self.temperature, self.symmetric = temperature, symmetric

    def __call__(self, x: Vectors) -> tuple[Tensor, int]:
        import torch
        from torch.nn.functional import cross_entropy

        n = len(x["anchor"])
        candidates, ids = x["positive"], x["positive_id"]
        if "negative" in x:
            candidates, ids = torch.cat([candidates, x["negative"]]), torch.cat([ids, x["negative_id"]])
        logits = unit(x["anchor"]) @ unit(candidates).T / self.temperature
        false = (ids == x["positive_id"][:, None]) | (ids == x["anchor_id"][:, None])
        false[:, :n] |= equal(x["anchor_id"])
        if "label_id" in x:
            false[:, :n] |= equal(x["label_id"])
        own = torch.arange(n, device=logits.device)
        false[own, own] = False
        logits = logits.masked_fill(false, torch.finfo(logits.dtype).min)
        loss = cross_entropy(logits, own, reduction="sum")
        if self.symmetric:
            loss = (loss + cross_entropy(logits[:, :n].T, own, reduction="sum")) / 2
        return loss, n


class SameLabel:
    """In-batch negatives of labelled texts: each text has to find those of its label among those of other labels.

    loss_i = mean over p of -log( exp(s_ip / τ) / (exp(s_ip / τ) + Σ_k exp(s_ik / τ)) )

    where p has the label of i and k another one (NT-Xent, Chen et al. 2020, arXiv:2002.05709, with every text of the
    same label as positive in turn, as Khosla et al. 2020, arXiv:2004.11362, but without other positives in the sum).
    Equal texts are neither; a text that is alone with its label counts only as one of another label.
    """

    meets = True

    def __init__(self, temperature: float = 0.05) -> None:
        self.temperature = temperature

    def __call__(self, x: Vectors) -> tuple[Tensor, Tensor]:
        import torch

        s = unit(x["anchor"]) @ unit(x["anchor"]).T / self.temperature
        same = equal(x["label_id"])
        positive = same & ~equal(x["anchor_id"])
        others = s.masked_fill(same, torch.finfo(s.dtype).min).logsumexp(dim=1, keepdim=True)
        losses = (torch.logaddexp(s, others) - s).masked_fill(~positive, 0.0).sum(dim=1)
        count = positive.sum(dim=1)
        return (losses / count.clamp(min=1)).sum(), (count > 0).sum()


class TripletMargin:
    """Triplets: the positive has to be nearer to the anchor than the negative, by a margin.

    loss_i = max(0, d(anchor_i, positive_i) - d(anchor_i, negative_i) + margin)

    d is the Euclidean distance of the vectors as they are pooled, and margin 1 (Reimers & Gurevych 2019, Sentence-BERT,
    arXiv:1908.10084, §3; sentence-transformers takes 5), or the cosine distance 1 - cos.
    """

    meets = False

    def __init__(self, margin: float = 1.0, distance: Literal["euclidean", "cosine"] = "euclidean") -> None:
        self.margin, self.distance = margin, distance

    def __call__(self, x: Vectors) -> tuple[Tensor, int]:
        near, far = (self._distance(x["anchor"], x[name]) for name in ("positive", "negative"))
        return (near - far + self.margin).relu().sum(), len(near)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        from torch.nn.functional import cosine_similarity, pairwise_distance

        return pairwise_distance(a, b) if self.distance == "euclidean" else 1 - cosine_similarity(a, b)


class CosineRegression:
    """Scored pairs: the squared distance of cosine and score, loss_i = (cos(a_i, b_i) - score_i)².

    (Reimers & Gurevych 2019, Sentence-BERT, arXiv:1908.10084, §3, regression objective.)
    """

    meets = False

    def __call__(self, x: Vectors) -> tuple[Tensor, int]:
        from torch.nn.functional import cosine_similarity

        return (cosine_similarity(x["anchor"], x["positive"]) - x["score"]).square().sum(), len(x["score"])


class CoSENT:
    """Scored pairs: pairs with a higher score have to get a higher cosine, of any size.

    loss = log( 1 + Σ exp((cos_j - cos_i) / τ) )  over all i, j with score_i > score_j

    (Huang et al. 2024, CoSENT, doi:10.1109/TASLP.2024.3402087.) τ is 0.05, as its λ of 20. It is one number for all
    examples, and so the sum is n times that and the weight n.
    """

    meets = True

    def __init__(self, temperature: float = 0.05) -> None:
        self.temperature = temperature

    def __call__(self, x: Vectors) -> tuple[Tensor, int]:
        import torch
        from torch.nn.functional import cosine_similarity

        cos = cosine_similarity(x["anchor"], x["positive"]) / self.temperature
        higher = x["score"][:, None] > x["score"]
        differences = (cos - cos[:, None]).masked_fill(~higher, torch.finfo(cos.dtype).min)
        loss = torch.cat([cos.new_zeros(1), differences.flatten()]).logsumexp(dim=0)
        return loss * len(cos), len(cos)


class Matryoshka:
    """Any loss, of the first m numbers of each vector for several m: Σ_m w_m · loss(vectors[:m]).

    Truncated vectors then stay useful (Kusupati et al. 2022, arXiv:2205.13147, eq. 1). Weights are 1.
    """

    def __init__(self, loss: Loss, dimensions: Sequence[int], weights: Sequence[float] | None = None) -> None:
        self.loss, self.dimensions = loss, dimensions
        self.weights = weights or [1.0] * len(dimensions)
        self.meets = loss.meets  # type: ignore[attr-defined]

    def __call__(self, x: Vectors) -> tuple[Tensor, Tensor | float]:
        total, weight = None, 0.0
        for m, w in zip(self.dimensions, self.weights, strict=True):
            loss, weight = self.loss({name: v[:, :m] if name in VECTORS else v for name, v in x.items()})
            total = w * loss if total is None else total + w * loss
        return total, weight  # type: ignore[return-value]


def equal(ids: Tensor) -> Tensor:
    """Return (n, n) bool: whether each two of n ids are equal."""
    return ids[:, None] == ids
