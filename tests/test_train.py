"""The training loop in one process: a resumed run is the uninterrupted one, and every option does what it says."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click_run import differing, forget_after, last_state, make_config, metric_rows, prepared, raw_config, write_click_log

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.distributed import processes
from torchrec_models.pipelines.monitor import NonFiniteLoss
from torchrec_models.pipelines.train import Trainer, TrainResult, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("clicks"))


def run(data: Path, name: str, **changes: Any) -> TrainResult:
    return train(make_config(data, name, **changes), progress=False)


def final_weights(data: Path, name: str, **changes: Any) -> dict[str, torch.Tensor]:
    run(data, name, **changes)
    return last_state(data / name, data / f"{name}.pt")["model"]


# --- resuming ---------------------------------------------------------------------------------------------------------

PLATEAU = {
    "train__schedule": {"kind": "plateau", "warmup_steps": 2, "factor": 0.5},
    "train__early_stopping": {"metric": "log_loss", "patience": 3},
    "train__dense__lr": 0.2,
    "train__epochs": 6,
    "train__evaluate_every_steps": 3,
    "train__checkpoint__every_steps": 2,
}
WAYS = {
    "fused": {},
    "fused_adagrad": {"train__sparse__optimizer": "adagrad", "train__clip_norm": 0.1, "train__shuffle": False},
    "fused_plateau": PLATEAU,
    "unfused": {"train__mode": "unfused", "train__embedding_l2": 0.01},
    "unfused_plateau": {"train__mode": "unfused", **PLATEAU},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_bit_identical_to_the_uninterrupted_one(data: Path, way: str) -> None:
    changes = WAYS[way]
    whole = run(data, f"{way}-whole", **changes)
    assert whole.progress.best_step > 0
    if "plateau" in way:
        assert whole.progress.stopped.startswith("no better log_loss") and whole.progress.plateau_factor < 1
    expected = last_state(data / f"{way}-whole", data / "whole.pt")
    expected_rows = metric_rows(data / f"{way}-whole")
    run(data, f"{way}-parts", **changes)
    for step in (3, 6, 12, 18) if "plateau" not in way else (2, 4, 6):  # 11 is the end of an epoch; some are evaluations
        forget_after(data / f"{way}-parts", step)
        parts = run(data, f"{way}-parts", **changes)
        assert differing(expected, last_state(data / f"{way}-parts", data / "parts.pt")) == []
        assert metric_rows(data / f"{way}-parts") == expected_rows
        assert parts.progress == whole.progress and parts.metrics == whole.metrics


def test_two_seeds_differ(data: Path) -> None:
    """Else the comparison above would show nothing."""
    a, b = (final_weights(data, f"seed-{seed}", train__seed=seed) for seed in (0, 1))
    assert len(differing(a, b)) == len([v for v in a.values() if v.is_floating_point()])


def test_a_finished_run_says_so_and_can_be_lengthened(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(data, "longer", train__epochs=1)
    again = run(data, "longer", train__epochs=1)
    assert "is finished already (step 11)" in caplog.text and again.progress.step == 11
    assert run(data, "longer", train__epochs=2).progress.step == 22


def test_a_run_folder_of_another_config_is_refused(data: Path) -> None:
    run(data, "taken", train__steps=3)
    with pytest.raises(
        ValueError, match=r"(?s)taken was trained with another config.*train.dense.lr: was 0.01, now 0.5.*run=\.\.\."
    ):
        run(data, "taken", train__steps=3, train__dense__lr=0.5)
    with pytest.raises(ValueError, match="taken holds checkpoints already; remove the folder, or train into another one"):
        train(make_config(data, "taken", train__steps=3), resume=False, progress=False)


# --- optimizers and schedules -----------------------------------------------------------------------------------------


def trainer_of(data: Path, name: str, procs: Any, **changes: Any) -> Trainer:
    config = make_config(data, name, **changes)
    Path(config.run).mkdir(exist_ok=True)
    return Trainer(config, open_prepared(config), procs, show=False)


def kernels_of(optimizer: Any) -> Iterator[Any]:
    """FBGEMM's modules behind TorchRec's nested fused optimizers."""
    if hasattr(optimizer, "_emb_module"):
        yield optimizer._emb_module
    for _, inner in getattr(optimizer, "optimizers", ()):
        yield from kernels_of(inner)


def test_both_sides_follow_the_schedule(data: Path) -> None:
    """The rate that counts for tables is the one inside FBGEMM's kernels, not the one in param_groups."""
    seen = []
    with processes() as procs:
        trainer = trainer_of(data, "rates", procs, train__schedule={"kind": "linear", "warmup_steps": 4, "min_factor": 0.1})
        step = trainer.pipeline.progress
        kernels = list(kernels_of(trainer.optimizer.fused))
        assert len(kernels) == 2  # vectors and first-order weights

        def progress(batches: Any) -> Any:
            output = step(batches)
            (dense,) = {g["lr"] for g in trainer.optimizer.dense.param_groups}
            (sparse,) = {float(m.get_learning_rate()) for m in kernels}
            seen.append((dense / 0.01, sparse / 0.05))
            return output

        trainer.pipeline.progress = progress
        trainer.fit()
    expected = [0.25, 0.5, 0.75, 1.0, *(0.1 + 0.9 * (1 - i / 18) for i in range(18))]
    assert [dense for dense, _ in seen] == pytest.approx(expected)
    assert [sparse for _, sparse in seen] == pytest.approx(expected, rel=1e-6)


def test_a_rate_of_almost_nothing_keeps_the_tables_where_they_are(data: Path) -> None:
    """The tables' updates happen in the kernels: they move, and by their own rate only."""
    one, still = final_weights(data, "moves", train__steps=1), final_weights(data, "still", train__steps=1, train__sparse__lr=1e-30)
    with processes() as procs:
        first = {k: v.clone() for k, v in last_free(trainer_of(data, "first", procs)).items()}
    tables = [k for k in one if "embedding" in k]
    assert len(tables) == 8  # four tables and their first-order weights
    for name in tables:
        assert torch.equal(still[name], first[name])
        assert not torch.equal(one[name], first[name])
    assert not torch.equal(one["model.net.mlp.linears.0.weight"], first["model.net.mlp.linears.0.weight"])


def last_free(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A fresh model's state, tables whole."""
    state = trainer.built.state_dict()
    return {k: v.local_shards()[0].tensor if hasattr(v, "local_shards") else v for k, v in state.items()}


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_embedding_l2_is_the_gradient_of_half_the_squared_norm_of_whole_tables(data: Path, clip_norm: float) -> None:
    changes = {"train__mode": "unfused", "train__dense": {"optimizer": "sgd", "lr": 0.5}, "train__schedule": {"warmup_steps": 0}}
    changes |= {"train__embedding_l2": 0.3, "train__clip_norm": clip_norm, "train__steps": 1, "train__ema": 0.0}
    with processes() as procs:
        ours, reference = (trainer_of(data, f"l2-{i}", procs, **changes) for i in (0, 1))
        torch.manual_seed(5)
        ours.optimizer.set_step(0)
        ours.pipeline.progress(ours.loader.epoch(0))
        torch.manual_seed(5)
        loss, _ = reference.built.task(next(reference.loader.epoch(0)))
        (loss + 0.3 / 2 * sum(w.square().sum() for w in reference.built.embedding_parameters.values())).backward()
        parameters = dict(reference.built.plain.named_parameters())
        if clip_norm:
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
            assert float(norm) > 2 * clip_norm
            assert float(ours.optimizer.last_norm) == pytest.approx(float(norm), rel=1e-5)
        for name, parameter in ours.built.plain.named_parameters():
            expected = parameters[name].detach() - 0.5 * parameters[name].grad
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


def test_clipping_says_what_it_covers(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="torchrec_models"), processes() as procs:
        trainer_of(data, "clip", procs, train__clip_norm=0.5)
        assert "clip_norm = 0.5 covers the dense parameters only" in caplog.text
        caplog.clear()
        trainer_of(data, "clip", procs, train__clip_norm=0.5, train__mode="unfused")
        assert "clip_norm" not in caplog.text  # there it covers everything


# --- numbers ----------------------------------------------------------------------------------------------------------


def last_loss(data: Path, name: str) -> float:
    return float(metric_rows(data / name)[-1]["loss"])


def test_bfloat16_rounds_and_stays_close(data: Path) -> None:
    for precision in ("float32", "bfloat16"):
        run(data, precision, train__precision=precision, train__steps=11)
    exact, coarse = ([float(row["loss"]) for row in metric_rows(data / name)] for name in ("float32", "bfloat16"))
    assert exact != coarse
    assert coarse == pytest.approx(exact, abs=0.03)
    weights = last_state(data / "bfloat16", data / "b.pt")["model"]
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float32}


def test_a_compiled_net_learns_the_same(data: Path) -> None:
    plain = {"model": {"name": "deepfm", "hidden_units": [8]}, "train__steps": 4, "train__checkpoint__every_steps": 1}
    run(data, "eager", **plain)
    run(data, "compiled", **plain, train__compile=True)
    eager, compiled = ([float(row["loss"]) for row in metric_rows(data / name)] for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, abs=1e-5)


def test_weights_of_classes_and_rows_enter_the_loss_as_the_formula_says(tmp_path: Path) -> None:
    write_click_log(tmp_path)
    raw = raw_config(tmp_path, "weighted")
    raw["data"]["weight"] = "weight"
    raw["labels"] = {"label": {"positive_weight": 3.0}}
    raw["model"] = {"name": "deepfm", "hidden_units": [8]}
    raw["train"] |= {"steps": 1, "shuffle": False}
    config = C.parse(raw)
    cache = prepare(config, progress=False)
    with processes() as procs:
        Path(config.run).mkdir()
        trainer = Trainer(config, cache, procs, show=False)
        loss, (_, logits, labels, _) = trainer.built.task(next(trainer.loader.epoch(0)))
    rows = pq.read_table(tmp_path / "train.parquet").slice(0, 60)
    weight = torch.tensor(rows["weight"].to_pylist(), dtype=torch.float32)
    label = torch.tensor(rows["label"].to_pylist(), dtype=torch.float32)
    assert torch.equal(labels[:, 0], label)
    weight = weight * torch.where(label == 1, 3.0, 1.0)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], label, reduction="none")
    assert float(loss) == pytest.approx(float((weight * each).sum() / weight.sum()), rel=1e-5)
    assert float(loss) != pytest.approx(float(each.mean()), rel=1e-3)


# --- stopping ---------------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Evaluations that give these values of auc, one after the other."""
    remaining = iter(values)
    monkeypatch.setattr("torchrec_models.pipelines.train.validation_metrics", lambda *_: {"auc": next(remaining)})


def test_early_stopping_counts_evaluations_without_gain_and_keeps_the_best(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.6, 0.601, 0.7, 0.65, 0.7, 0.9])
    rule = {"train__early_stopping": {"metric": "auc", "patience": 2, "min_delta": 0.01}}
    result = run(
        data, "early", **rule, train__evaluate_every_steps=3, train__epochs=3, train__checkpoint={"every_steps": 1, "keep": 2}
    )
    assert result.progress.step == 18 and result.progress.best_step == 12
    assert result.progress.stopped == "no better auc than 0.700000 in 2 evaluations"
    assert result.metrics == {"auc": 0.7}
    assert sorted(p.name for p in (data / "early" / "checkpoints").iterdir()) == [f"step-{n:08d}" for n in (12, 17, 18)]
    assert [row["step"] for row in metric_rows(data / "early") if row["valid_auc"]] == ["3", "6", "9", "12", "15", "18"]


def test_an_undefined_metric_never_counts_as_the_best(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted(monkeypatch, [float("nan"), 0.6])
    result = run(data, "undefined", train__evaluate_every_steps=3, train__steps=6)
    assert "auc of the valid split is not defined" in caplog.text
    assert result.progress.best_step == 6
    scripted(monkeypatch, [float("nan")])
    with pytest.raises(ValueError, match=r"train.early_stopping.metric: auc of the valid split is not defined"):
        run(data, "undefined-rule", train__evaluate_every_steps=3, train__early_stopping={"metric": "auc"})


def test_a_misspelt_metric_is_refused_with_the_nearest_name(data: Path) -> None:
    with pytest.raises(ValueError, match=r"train.early_stopping.metric: given 'log_los'.*did you mean 'log_loss'"):
        make_config(data, "misspelt", train__early_stopping={"metric": "log_los"})


def test_a_value_that_overflows_is_named_with_its_row_and_feature(tmp_path: Path) -> None:
    write_click_log(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    price = table["price"].to_pylist()
    price[130] = 1e38
    table = table.set_column(table.schema.get_field_index("price"), "price", [price])
    pq.write_table(table, tmp_path / "train.parquet")
    raw = raw_config(tmp_path, "overflow")
    raw["features"]["price"] = {"kind": "numeric"}
    raw["features"]["age"] = {"kind": "numeric", "steps": [{"fill": 0}]}
    raw["model"] = {"name": "deepfm", "hidden_units": [8]}
    raw["train"]["shuffle"] = False
    config = C.parse(raw)
    prepare(config, progress=False)
    with pytest.raises(NonFiniteLoss) as caught:
        train(config, progress=False)
    text = str(caught.value)
    assert "not finite at step 3 (epoch 0, batch 2)" in text  # rows 120 .. 179
    assert "1 of 60 rows; row ids in the training split: 130" in text
    assert "largest absolute values in those rows: price 1e+38, age" in text


def test_a_rate_that_explodes_is_told_from_a_bad_row(data: Path) -> None:
    with pytest.raises(
        NonFiniteLoss, match=r"(?s)all rows of the batch.*parameters that are not finite any more: model\."
    ) as caught:
        run(data, "explodes", train__dense={"optimizer": "sgd", "lr": 1e30}, train__clip_norm=0.0, train__ema=0.0)
    assert "a lower train.dense.lr" in str(caught.value)
    assert not list((data / "explodes" / "checkpoints").glob("*")), "a broken model must not be kept"


def test_batch_norm_refuses_a_last_batch_of_one_row_up_front(data: Path) -> None:
    with pytest.raises(ValueError, match=r"one row per process \(630 rows, train.batch_size 37, 1 process.*train.last_batch=drop"):
        run(data, "one-row", train__batch_size=37)
    assert run(data, "one-row", train__batch_size=37, train__last_batch="drop", train__epochs=1).progress.step == 17
    assert run(data, "one-row-unreached", train__batch_size=37, train__steps=5).progress.step == 5
    with pytest.raises(ValueError, match=r"batch norm needs two rows per process; given train.batch_size 1"):
        run(data, "single", train__batch_size=1)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_metrics_csv_has_a_row_per_logged_step_and_the_share_of_waiting(data: Path) -> None:
    run(data, "logged")
    with (data / "logged" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 23))
    assert all(0 <= float(row["data_wait_share"]) <= 1 for row in rows)
    assert any(float(row["data_wait_share"]) > 0 for row in rows)
    assert [bool(row["valid_auc"]) for row in rows] == [step % 11 == 0 for step in range(1, 23)]


def test_half_a_line_left_by_a_kill_is_dropped(data: Path) -> None:
    run(data, "half", train__steps=12)
    expected = metric_rows(data / "half")
    forget_after(data / "half", 9)
    path = data / "half" / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:10]) + lines[8][:1])  # "8": half of a line that a reader could take for step 8
    run(data, "half", train__steps=12)
    assert metric_rows(data / "half") == expected
