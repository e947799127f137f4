"""Why a loss is not finite: the rows, their features, the parameters."""

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from torchrec_models.batch import Batch

from .data.loader import Loader
from .distributed import Built
from .monitor import NonFiniteLoss

SHOWN = 5


def explain_non_finite(built: Built, loader: Loader, *, step: int, losses_BT: Tensor) -> NonFiniteLoss:
    """The error to raise: step, epoch, batch, row ids (positions in the training split), suspect features and parameters."""
    epoch, index = divmod(step - 1, loader.num_batches)
    lines = [f"the loss is not finite at step {step} (epoch {epoch}, batch {index})"]
    with torch.no_grad():
        batch = next(iter(loader.epoch(epoch, start_batch=index)))
        if losses_BT.shape[0] == batch.num_rows:
            lines += _rows(batch, ~torch.isfinite(losses_BT).all(dim=1).cpu(), loader)
        lines += _parameters(built)
    lines.append("what helps: a clip or log1p step on that feature, a lower train.dense.lr or train.sparse.lr, train.clip_norm")
    return NonFiniteLoss("\n  ".join(lines))


def _rows(batch: Batch, bad_B: Tensor, loader: Loader) -> list[str]:
    count = int(bad_B.sum())
    if count == 0:
        return []
    share = "all rows of the batch" if count == len(bad_B) else f"{count} of {len(bad_B)} rows"
    ids = batch.row_id[bad_B][:SHOWN].tolist()
    lines = [f"{share}; row ids in the training split: {', '.join(map(str, ids))}{' ...' if count > SHOWN else ''}"]
    dense = batch.dense[bad_B]
    if dense.numel():
        extreme = torch.where(dense.isfinite(), dense.abs(), torch.inf).amax(dim=0)
        names = [f.name for f in loader.schema.dense]
        worst = extreme.argsort(descending=True)[:SHOWN].tolist()
        lines.append("largest absolute values in those rows: " + ", ".join(f"{names[i]} {extreme[i]:.3g}" for i in worst))
    return lines


def _parameters(built: Built) -> list[str]:
    broken = []
    for name, value in built.state_dict().items():
        parts = [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
        if any(p.is_floating_point() and not bool(torch.isfinite(p).all()) for p in parts):
            broken.append(name)
    if not broken:
        return ["all parameters are still finite"]
    more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return [f"parameters that are not finite any more: {', '.join(broken[:SHOWN])}{more}"]
