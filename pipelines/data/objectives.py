"""A generated log of a video feed with five correlated objectives whose truth is known, for multi-objective nets.

    python -m torchrec_models.pipelines.data.objectives data/objectives --rows 200000

writes log.parquet and truth.parquet, and says how well the best possible model would do.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from torchrec_models import metrics

NUM_INTERESTS = 4
NUM_TOPICS = 12
ASKED_SHARE = 0.5  # of the rows, those for which it is known whether the video was reported
WATCH_NOISE = 0.4


@dataclass(frozen=True)
class ObjectiveLog:
    """A generated log.

    Attributes:
        table: user, item, topic (int64), device (string), minutes (float64, length of the video), and the labels: click (int8);
            watch (float64, log of minutes, null unless clicked); chat (int8, only after a click); hide (int8); report (int8, null
            where nobody was asked).
        truth: the same rows: P(label = 1 | features) of click, chat, hide, report, and E(watch | features, click).
    """

    table: pa.Table
    truth: pa.Table


def objective_log(num_rows: int, *, num_users: int = 400, num_items: int = 300, seed: int = 0) -> ObjectiveLog:
    """Labels drawn from one taste and one quality, on which all of them depend in different ways.

    fit = <interests of the user, topic and item>; quality is the item's.
    click ~ -1 + 1.5 fit + 0.4 quality + device;  watch = -0.5 + 0.5 fit + 0.4 quality + 0.5 log minutes + noise;
    chat given click ~ -1 + fit + how much the user chats;  hide ~ -2.2 - fit - 0.6 quality;  report ~ -2.5 - 0.9 quality.

    Args:
        num_users, num_items: ids are 0 .. n - 1, uniform.
        seed: equal arguments give an equal log with one numpy version.
    """
    random = np.random.default_rng(seed)
    interests = random.normal(0, 0.7, (num_users, NUM_INTERESTS))
    topic_of = random.integers(0, NUM_TOPICS, num_items)
    content = random.normal(0, 0.7, (NUM_TOPICS, NUM_INTERESTS))[topic_of] + random.normal(0, 0.3, (num_items, NUM_INTERESTS))
    quality_of, chats = random.normal(0, 1, num_items), random.normal(0, 0.7, num_users)

    user, item = random.integers(0, num_users, num_rows), random.integers(0, num_items, num_rows)
    device, minutes = random.integers(0, 3, num_rows), random.gamma(3, 2, num_rows) + 0.1
    fit, quality = (interests[user] * content[item]).sum(axis=1), quality_of[item]
    click = _sigmoid(-1 + 1.5 * fit + 0.4 * quality + np.array([-0.4, 0.0, 0.4])[device])
    watch = -0.5 + 0.5 * fit + 0.4 * quality + 0.5 * np.log(minutes)
    chat_given_click = _sigmoid(-1 + fit + chats[user])
    hide, report = _sigmoid(-2.2 - fit - 0.6 * quality), _sigmoid(-2.5 - 0.9 * quality)

    clicked = random.random(num_rows) < click
    columns = {
        "user": user,
        "item": item,
        "topic": topic_of[item],
        "device": np.array(["phone", "tablet", "desktop"])[device],
        "minutes": minutes,
        "click": clicked.astype(np.int8),
        "watch": pa.array(watch + random.normal(0, WATCH_NOISE, num_rows), mask=~clicked),
        "chat": (clicked & (random.random(num_rows) < chat_given_click)).astype(np.int8),
        "hide": (random.random(num_rows) < hide).astype(np.int8),
        "report": pa.array((random.random(num_rows) < report).astype(np.int8), mask=random.random(num_rows) > ASKED_SHARE),
    }
    truth = {"click": click, "watch": watch, "chat": click * chat_given_click, "hide": hide, "report": report}
    return ObjectiveLog(pa.table(columns), pa.table(truth))


def best_possible(log: ObjectiveLog) -> dict[str, float]:
    """On the rows that have the label: AUC of the true probabilities, root mean squared error of the true mean of `watch`."""
    found = {}
    for name in log.truth.column_names:
        known = log.table[name].combine_chunks()
        mask = known.is_valid().to_numpy(zero_copy_only=False)
        label = torch.from_numpy(known.drop_null().to_numpy(zero_copy_only=False).astype(np.float64))
        truth = torch.from_numpy(log.truth[name].to_numpy()[mask])
        found[name] = metrics.rmse(label, truth) if name == "watch" else metrics.BinaryRows(label, truth).metrics()["auc"]
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def main() -> None:
    parser = argparse.ArgumentParser(description="generate a log of five objectives")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    log = objective_log(args.rows, seed=args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(log.table, args.folder / "log.parquet")
    pq.write_table(log.truth, args.folder / "truth.parquet")
    print(f"{args.folder}: {args.rows:,} rows. Best possible:", end=" ")
    print(", ".join(f"{name} {'RMSE' if name == 'watch' else 'AUC'} {value:.4f}" for name, value in best_possible(log).items()))


if __name__ == "__main__":
    main()
