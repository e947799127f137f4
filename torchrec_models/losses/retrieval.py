"""The loss of retrieval: sampled softmax over the batch."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .mean import LossOutput, at_least_float32, num_processes, weighted_mean


class InBatchSoftmax(nn.Module):
    """Sampled softmax over the candidates of the batch (of all processes): the row's own is the positive, the others negatives.

    `loss_i = -log softmax_j(s_ij / temperature - log Q_j)[i]`, Yi et al., RecSys 2019, eq. 4-6. The correction log Q is
    estimated from the stream of batches by the mean gap between two sights of a candidate (their Algorithm 2, one array
    indexed by the candidate's table row, so without collisions), subtracted *after* the temperature, and used in training only.
    The step size of a candidate's n-th sight is max(step_size, 1 / n): a plain mean until there is enough to forget. With
    the fixed step of the paper, log Q of a catalogue of 3400 was still off by 1.35 (root mean square) after 900 batches
    of 1024, with this one by 0.09.

    A row of weight 0 is no negative to the others, nor a sight.

    Args:
        num_candidates: rows of the candidate id's table.
        temperature: initial value, > 0.
        learn_temperature: learn its logarithm, kept within `TEMPERATURES`.
        log_q: subtract log Q.
        mask_hits: give another row's identical candidate no part in the softmax (accidental hits).
        step_size: of the moving mean, in (0, 1].

    Shapes:
        query [B, K], candidate [B, K], candidate ids [B] (table rows), weights [B, >= 1] -> loss [], (losses [B, 1], the
        positive's corrected score [B, 1], ones [B, 1], weights [B, 1]).

    Attributes:
        shown: what a log should show of the last training step beside its losses: `temperature` [], where it is learnt.

    Raises:
        ValueError: a temperature to learn that lies outside its bounds.
    """

    TEMPERATURES = (0.01, 1.0)

    def __init__(
        self,
        num_candidates: int,
        *,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        log_q: bool = True,
        mask_hits: bool = True,
        step_size: float = 0.01,
    ) -> None:
        super().__init__()
        low, high = self.TEMPERATURES
        if learn_temperature and not low <= temperature <= high:
            raise ValueError(f"a learned temperature stays within [{low}, {high}]; it cannot start at {temperature}")
        self.temperature = temperature
        self.shown: dict[str, Tensor] = {}
        self.log_q = log_q
        self.mask_hits = mask_hits
        self.step_size = step_size
        self.log_temperature = nn.Parameter(torch.empty(()), requires_grad=learn_temperature)
        if log_q:
            self.step: Tensor
            self.num_sights: Tensor
            self.last_seen: Tensor
            self.gap_steps: Tensor
            self.register_buffer("step", torch.empty((), dtype=torch.int64))
            self.register_buffer("num_sights", torch.empty(num_candidates, dtype=torch.int64))
            self.register_buffer("last_seen", torch.empty(num_candidates, dtype=torch.int64))
            self.register_buffer("gap_steps", torch.empty(num_candidates))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_temperature, math.log(self.temperature))
        if self.log_q:
            self.step.zero_()
            self.num_sights.zero_()
            self.last_seen.zero_()
            self.gap_steps.fill_(1.0)  # never used: a candidate is seen before it is corrected

    def forward(self, query_BK: Tensor, candidate_BK: Tensor, candidate_id_B: Tensor, weights_BT: Tensor) -> LossOutput:
        batch_rows = query_BK.shape[0]
        weights_B1 = weights_BT[:, :1]
        query_BK, candidate_BK = at_least_float32(query_BK), at_least_float32(candidate_BK)
        ids_B = candidate_id_B.masked_fill(weights_B1[:, 0] == 0, -1)
        candidates_NK, ids_N, offset = _gather(candidate_BK, ids_B)
        own_B = torch.arange(offset, offset + batch_rows, device=ids_B.device)
        if self.training and self.log_temperature.requires_grad:
            # not a clamp in the graph: its gradient outside the bounds is zero and would hold the temperature there
            with torch.no_grad():
                self.log_temperature.clamp_(*map(math.log, self.TEMPERATURES))
                self.shown = {"temperature": self.log_temperature.exp()}
        # [B, N] is large: scale and correct the vectors, so that one product makes the scores, and mask them in place
        query_BK = query_BK / self.log_temperature.exp()
        if self.log_q and self.training:
            self._see(ids_N)
            correction_N1 = self.gap_steps[ids_N.clamp(min=0)].log()[:, None]  # -log Q, Q = 1 / gap
            query_BK = torch.cat([query_BK, torch.ones_like(query_BK[:, :1])], dim=1)
            candidates_NK = torch.cat([candidates_NK, correction_N1.to(candidates_NK.dtype)], dim=1)
        with torch.autocast(query_BK.device.type, enabled=False):  # bfloat16 is too coarse for scores divided by 0.05
            scores_BN = query_BK @ candidates_NK.T
        out_BN = ids_B[:, None] == ids_N[None, :] if self.mask_hits else torch.zeros_like(scores_BN, dtype=torch.bool)
        out_BN |= ids_N < 0
        out_BN[torch.arange(batch_rows, device=own_B.device), own_B] = False
        scores_BN.masked_fill_(out_BN, float("-inf"))
        losses_B1 = F.cross_entropy(scores_BN, own_B, reduction="none")[:, None]
        loss = weighted_mean(losses_B1, weights_B1).sum()
        own_score_B1 = scores_BN.detach().gather(1, own_B[:, None])
        return loss, (losses_B1.detach(), own_score_B1, torch.ones_like(losses_B1), weights_B1)

    @torch.no_grad()
    def _see(self, ids_N: Tensor) -> None:
        """One step of the estimator; ids below 0 are not there."""
        self.step += 1
        seen = ids_N.unique()
        seen = seen[seen >= 0]
        self.num_sights[seen] += 1
        rate = (1 / self.num_sights[seen]).clamp(min=self.step_size)
        gap = self.step - self.last_seen[seen]
        self.gap_steps[seen] += rate * (gap - self.gap_steps[seen])
        self.last_seen[seen] = self.step


def _gather(candidate_BK: Tensor, candidate_id_B: Tensor) -> tuple[Tensor, Tensor, int]:
    """Candidates and ids of all processes, and where this process's rows begin. Gradients flow back to their owners."""
    if num_processes() == 1:
        return candidate_BK, candidate_id_B, 0
    from torch.distributed.nn.functional import all_gather  # registers autograd functions: only where needed

    ids = [torch.empty_like(candidate_id_B) for _ in range(num_processes())]
    dist.all_gather(ids, candidate_id_B)
    return torch.cat(all_gather(candidate_BK)), torch.cat(ids), dist.get_rank() * candidate_BK.shape[0]
