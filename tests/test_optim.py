"""What the fused kernels cannot do on a device is refused, not dropped."""

import pytest
import torch

from torchrec_models.pipelines.config import SparseOptimizerConfig
from torchrec_models.pipelines.optim import fuse_sparse_optimizer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SparseOptimizerConfig(optimizer="adam"), r"train.sparse.optimizer: given 'adam'; on CPU the fused kernels have"),
        (SparseOptimizerConfig(weight_decay=0.1), r"train.sparse.weight_decay: given 0.1; FBGEMM's kernels for the CPU ignore it"),
    ],
)
def test_options_that_a_cpu_lacks_are_refused(config: SparseOptimizerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_sparse_optimizer([torch.nn.Parameter(torch.zeros(2, 2))], config, device=torch.device("cpu"))
