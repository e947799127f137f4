"""What people write first: a Dataset that returns one row, a collate function, and a DataLoader with workers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from .ctr import CATEGORICAL, LABEL, NUMERIC, SEQUENCE

NUM_WORKERS = 2


class RowDataset(Dataset):
    """Rows of a Parquet file held in memory: numbers as arrays, the sequence as text that is cut when its row is asked for."""

    def __init__(self, raw: Path) -> None:
        table = pq.read_table(raw, columns=[*CATEGORICAL, *NUMERIC, SEQUENCE, LABEL])
        self.dense = np.stack([np.nan_to_num(table[name].to_numpy()).astype(np.float32) for name in NUMERIC], axis=1)
        codes = [table[name].combine_chunks().dictionary_encode().indices for name in CATEGORICAL]
        self.ids = np.stack([code.fill_null(0).to_numpy() for code in codes], axis=1).astype(np.int64)
        self.text = table[SEQUENCE].combine_chunks().cast(pa.large_string())
        self.labels = table[LABEL].to_numpy().astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]:
        sequence = np.fromstring(self.text[row].as_py(), dtype=np.int64, sep=",")
        return self.dense[row], self.ids[row], sequence, self.labels[row]


def collate(rows: list) -> tuple[Tensor, KeyedJaggedTensor, KeyedJaggedTensor, Tensor]:
    dense, ids, sequences, labels = zip(*rows)
    num_rows = len(labels)
    ids_KB = torch.from_numpy(np.stack(ids)).t().contiguous()
    ones = torch.ones(ids_KB.numel(), dtype=torch.int64)
    return (
        torch.from_numpy(np.stack(dense)),
        KeyedJaggedTensor(list(CATEGORICAL), ids_KB.flatten(), lengths=ones, stride=num_rows),
        KeyedJaggedTensor(
            [SEQUENCE],
            torch.from_numpy(np.concatenate(sequences)),
            lengths=torch.tensor([len(s) for s in sequences]),
            stride=num_rows,
        ),
        torch.from_numpy(np.array(labels)),
    )


def batches(dataset: RowDataset, *, batch_size: int) -> Iterator[int]:
    """Rows of each batch."""
    for dense, *_ in DataLoader(dataset, batch_size, shuffle=True, num_workers=NUM_WORKERS, collate_fn=collate):
        yield len(dense)
