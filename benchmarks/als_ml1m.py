"""Popularity and implicit's ALS on MovieLens-1M, the last interaction of every user held out, the whole corpus ranked.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.als_ml1m --data ../shared/data/ml1m_loo

Hyperparameters are chosen on each user's *next-to-last* interaction (the last one of the training file) by NDCG@10; the model is
then fitted again on the whole training file and judged once. Items that a user has seen in training are never recommended.
Needs the packages implicit and scipy. ALS: Hu, Koren & Volinsky, ICDM 2008; `alpha` is the weight of an interaction.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from torchrec_models.retrieval_metrics import ndcg_at_k, recall_at_k

from .record import merge_rows

K = 10
USERS_PER_CHUNK = 1024


class Split(NamedTuple):
    """What a model may see, and the one item per user that it should find.

    Attributes:
        seen: [users, items] 0/1 matrix of the interactions before the held-out one.
        held: [users] int64, the held-out item.
    """

    seen: csr_matrix
    held: torch.Tensor


def load(folder: Path) -> tuple[Split, Split]:
    """(for choosing, for judging): the next-to-last interaction held out, then the last one.

    The corpus is every item of the training and the test file.
    """
    train = pq.read_table(folder / "train.parquet").sort_by([("user", "ascending"), ("position", "ascending")])
    test = pq.read_table(folder / "test.parquet").sort_by("user")
    users, user_codes = np.unique(train["user"].to_numpy(), return_inverse=True)
    assert np.array_equal(users, test["user"].to_numpy()), "every user must have exactly one test interaction"
    items, item_codes = np.unique(np.concatenate([train["item"].to_numpy(), test["item"].to_numpy()]), return_inverse=True)
    train_items, test_items = item_codes[: train.num_rows], item_codes[train.num_rows :]
    is_last = np.append(user_codes[1:] != user_codes[:-1], True)

    def matrix(keep: np.ndarray) -> csr_matrix:
        ones = np.ones(int(keep.sum()), dtype=np.float32)
        return csr_matrix((ones, (user_codes[keep], train_items[keep])), shape=(len(users), len(items)))

    choosing = Split(seen=matrix(~is_last), held=torch.from_numpy(train_items[is_last]))
    judging = Split(seen=matrix(np.ones(train.num_rows, dtype=bool)), held=torch.from_numpy(test_items))
    return choosing, judging


def judge(score: Callable[[slice], np.ndarray], split: Split) -> dict[str, float]:
    """recall@10 and NDCG@10 over all users.

    Args:
        score: users -> [users, items] float32, higher is better.
    """
    retrieved = []
    for start in range(0, len(split.held), USERS_PER_CHUNK):
        users = slice(start, start + USERS_PER_CHUNK)
        scores_UI = torch.from_numpy(score(users))
        rows, columns = split.seen[users].nonzero()
        scores_UI[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()] = -torch.inf
        retrieved.append(scores_UI.topk(K, dim=1).indices)
    retrieved_UK = torch.cat(retrieved)
    return {"recall@10": recall_at_k(retrieved_UK, split.held, k=K), "ndcg@10": ndcg_at_k(retrieved_UK, split.held, k=K)}


def popularity(split: Split) -> dict[str, float]:
    """Items by their number of interactions in training."""
    counts = np.asarray(split.seen.sum(axis=0), dtype=np.float32)
    return judge(lambda users: np.repeat(counts, split.seen[users].shape[0], axis=0), split)


def als(split: Split, *, factors: int, regularization: float, alpha: float, iterations: int, seed: int) -> dict[str, float]:
    """implicit's ALS on one thread."""
    model = AlternatingLeastSquares(
        factors=factors,
        regularization=regularization,
        alpha=alpha,
        iterations=iterations,
        random_state=seed,
        num_threads=1,
    )
    model.fit(split.seen, show_progress=False)
    return judge(lambda users: model.user_factors[users] @ model.item_factors.T, split)


def choose(split: Split, *, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best options by NDCG@10 on the choosing split, and every trial. Greedy: weights first, then size, then iterations."""
    trials: list[dict[str, Any]] = []
    best: dict[str, Any] = {"factors": 64, "regularization": 10.0, "alpha": 1.0, "iterations": 15}

    def try_all(candidates: list[dict[str, Any]]) -> None:
        nonlocal best
        for options in candidates:
            if not any(trial["options"] == options for trial in trials):
                trials.append({"options": options, **als(split, **options, seed=seed)})
                print(trials[-1], flush=True)
        best = max(trials, key=lambda trial: trial["ndcg@10"])["options"]

    try_all([{**best, "regularization": r, "alpha": a} for r in (1.0, 10.0, 30.0) for a in (1.0, 2.0, 5.0, 20.0)])
    try_all([{**best, "factors": f} for f in (32, 128, 256)])
    try_all([{**best, "regularization": best["regularization"] * r} for r in (0.3, 3.0)])
    try_all([{**best, "iterations": i} for i in (8, 30)])
    return best, trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    choosing, judging = load(args.data)
    num_users, num_items = judging.seen.shape
    cold = int((np.asarray(judging.seen.sum(axis=0)).ravel()[judging.held.numpy()] == 0).sum())
    shared = {"num_users": num_users, "num_items": num_items, "test_items_unseen_in_training": cold}
    best, trials = choose(choosing, seed=args.seed)
    rows = [
        {"model": "popularity", **popularity(judging), **shared},
        {"model": "implicit ALS", **als(judging, **best, seed=args.seed), **shared, "options": best, "trials": trials},
    ]
    for row in rows:
        print(f"{row['model']:>14}: recall@10 {row['recall@10']:.4f}, NDCG@10 {row['ndcg@10']:.4f}")
    print(merge_rows("ml1m_retrieval", rows, packages=("implicit", "numpy", "scipy", "torch")))


if __name__ == "__main__":
    main()
