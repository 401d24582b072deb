"""Losses of rerankers: formulas over the scores of each query's documents, of which some are relevant.

`s` are scores (n, k) of n queries and up to k documents, `relevant` and `irrelevant` are (n, k) masks; what is in
neither is padding. Each loss returns (sum, weight), and says how much a query adds to the weight. Logarithms are
natural.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Contrastive:
    """Localized contrastive estimation: each relevant document has to be found among the query's irrelevant ones.

    loss_p = -log( exp(s_p) / (exp(s_p) + Σ_n exp(s_n)) )

    for each relevant p, over the irrelevant n of its query (Gao et al. 2021, arXiv:2101.08751).
    sentence-transformers' MultipleNegativesRankingLoss has it without in-batch negatives, scale 1, no activation.
    """

    def weight(self, relevant: int, irrelevant: int) -> int:
        return relevant

    def __call__(self, s: Tensor, relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        others = s.masked_fill(~irrelevant, torch.finfo(s.dtype).min).logsumexp(dim=1, keepdim=True)
        return (torch.logaddexp(s, others) - s)[relevant].sum(), relevant.sum()


class RankNet:
    """RankNet: in each pair of documents the relevant one has to get the higher score.

    loss_pn = log( 1 + exp(s_n - s_p) )

    for each relevant p and irrelevant n of a query (Burges et al. 2005, doi:10.1145/1102351.1102363, with a target
    probability of 1); the mean is over pairs.
    """

    def weight(self, relevant: int, irrelevant: int) -> int:
        return relevant * irrelevant

    def __call__(self, s: Tensor, relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import softplus

        pairs = relevant[:, :, None] & irrelevant[:, None, :]
        return softplus(s[:, None, :] - s[:, :, None])[pairs].sum(), pairs.sum()


class ListNet:
    """ListNet: the scores' top-one probabilities have to match those of the relevance, y = 1 or 0.

    loss = -Σ_d exp(y_d) / Σ_e exp(y_e) · log( exp(s_d) / Σ_e exp(s_e) )

    over all documents d, e of a query (Cao et al. 2007, doi:10.1145/1273496.1273513). It is least where relevant
    documents are ahead by 1, and so does not drive scores apart as the others do.
    """

    def weight(self, relevant: int, irrelevant: int) -> int:
        return 1

    def __call__(self, s: Tensor, relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, int]:
        import torch

        lowest, present = torch.finfo(s.dtype).min, relevant | irrelevant
        targets = relevant.to(s.dtype).masked_fill(~present, lowest).softmax(dim=1)
        log_probabilities = s.masked_fill(~present, lowest).log_softmax(dim=1)
        return -(targets * log_probabilities)[present].sum(), len(s)


class Pointwise:
    """Binary cross entropy of each document by itself: loss_d = log(1 + exp(s_d)) - y_d s_d, with y = 1 or 0.

    (Nogueira & Cho 2019, arXiv:1901.04085.)
    """

    def weight(self, relevant: int, irrelevant: int) -> int:
        return relevant + irrelevant

    def __call__(self, s: Tensor, relevant: Tensor, irrelevant: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import softplus

        return softplus(-s)[relevant].sum() + softplus(s)[irrelevant].sum(), (relevant | irrelevant).sum()


LOSSES = {"contrastive": Contrastive, "ranknet": RankNet, "listnet": ListNet, "pointwise": Pointwise}
