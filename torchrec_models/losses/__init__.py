"""Losses: logits and a batch in, one number to minimise and what the metrics need out.

Rows and labels are weighted; a weight of 0 takes the row out. The mean is over the weights of *all* processes, so that a run
does not depend on how its rows are spread.
"""

from .auxiliary import AuxiliaryLoss, BranchLoss, Criterion, SelfEnsemble, TriBCE
from .mean import LossOutput, num_processes, weighted_mean
from .ranking import RankingLoss
from .retrieval import InBatchSoftmax
from .weighting import FixedWeights, ScheduledWeights, TaskWeighting, UncertaintyWeights, WeightSchedule

__all__ = [
    "AuxiliaryLoss",
    "BranchLoss",
    "Criterion",
    "FixedWeights",
    "InBatchSoftmax",
    "LossOutput",
    "RankingLoss",
    "ScheduledWeights",
    "SelfEnsemble",
    "TaskWeighting",
    "TriBCE",
    "UncertaintyWeights",
    "WeightSchedule",
    "num_processes",
    "weighted_mean",
]
