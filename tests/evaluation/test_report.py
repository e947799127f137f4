"""The page must hold everything it shows, say what the numbers mean, and survive results of every kind."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from torchrec_models.pipelines.evaluation.curves import score_curves
from torchrec_models.pipelines.evaluation.evaluate import evaluate_columns
from torchrec_models.pipelines.evaluation.findings import findings, weak_slices
from torchrec_models.pipelines.evaluation.report import TaskReport, read_history, write_report
from torchrec_models.pipelines.evaluation.results import Evaluation

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Well-formedness, ids, and every attribute that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.ids, self.references = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "action", "xlink:href"):
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def scored(seed: int = 0, num_rows: int = 4000, **kwargs):
    rng = np.random.default_rng(seed)
    z = rng.normal(-2, 1.5, num_rows)
    p = 1 / (1 + np.exp(-z))
    y = rng.random(num_rows) < p
    return y, p.astype(np.float32), evaluate_columns(y, p.astype(np.float32), base_rate=0.2, **kwargs)


def read(folder, **kwargs) -> Page:
    return Page(write_report(folder, **kwargs).read_text(encoding="utf-8"))


HISTORY = [{"step": s, "loss": 1 / s, "lr_factor": 0.1, "data_wait_share": 0.03} for s in range(1, 1000)] + [
    {"step": 500, "valid_auc": 0.7, "valid_log_loss": 0.4},
    {"step": 1000, "valid_auc": 0.75, "valid_log_loss": float("nan")},
]


def test_the_page_is_whole_and_self_contained(tmp_path):
    y, p, evaluation = scored(slices={"device": np.array(["phone", "tv"]).repeat(2000)}, bootstrap=10)
    task = TaskReport(evaluation, score_curves(y, p))
    page = read(
        tmp_path / "new" / "folder",
        title="A & B",
        tasks={"click": task, "buy": task},
        history=HISTORY,
        config_text="train:\n  lr: 1e-3  # </pre><script>alert(1)</script>",
        facts={"model": "deepfm"},
        notes=["Rows of one day only."],
    )
    assert [f.name for f in (tmp_path / "new" / "folder").iterdir()] == ["report.html"]
    assert len(page.ids) == len(set(page.ids)), "two charts share an id"
    assert all(r.startswith("#") and r[1:] in page.ids for r in page.references)
    assert all(u in page.ids for u in re.findall(r"url\(#([^)]+)\)", page.text))
    assert not re.search(r"https?:|url\((?!#)|@import|<script|<link", page.text)
    assert page.text.count("<svg") == 2 * 4 + 4
    assert "&lt;script&gt;" in page.text and "A &amp; B" in page.text
    for shown in ("deepfm", "Rows of one day only.", "device", "phone", "tv", "Validation AUC", "95 % interval"):
        assert shown in page.text
    assert f"{evaluation.metrics['auc'].value:.5f}" in page.text and f"{evaluation.base['log_loss']:.5f}" in page.text
    assert "#0102" not in page.text, "a stand-in colour is left"


def test_a_chart_is_the_same_bytes_every_time_and_long_logs_stay_small(tmp_path):
    y, p, evaluation = scored()
    kwargs = {"title": "t", "tasks": {"click": TaskReport(evaluation, score_curves(y, p))}, "history": HISTORY}
    assert write_report(tmp_path / "a", **kwargs).read_bytes() == write_report(tmp_path / "b", **kwargs).read_bytes()
    long = [{"step": s, "loss": 1.0, "data_wait_share": 0.1} for s in range(50_000)]
    assert write_report(tmp_path / "c", title="t", tasks={}, history=long).stat().st_size < 150_000


def test_every_kind_of_result_makes_a_page(tmp_path):
    y, p, _ = scored()
    regression = evaluate_columns(p * 5, p * 5 + 1, base_rate=1.0, kind="regression", slices={"half": y})
    retrieval = Evaluation(
        kind="retrieval", num_rows=10, base_name="popularity", metrics={"recall@10": 0.3}, base={"recall@10": 0.1}
    )
    one_class = evaluate_columns(np.zeros(4), np.full(4, 0.1), base_rate=0.1, slices={"c": np.arange(4)}, bootstrap=3)
    empty = evaluate_columns(np.zeros(0), np.zeros(0), base_rate=0.1, slices={"c": np.zeros(0)})
    constant = (y, np.full_like(p, 0.2))
    tasks = {
        "regression": TaskReport(regression),
        "retrieval": TaskReport(retrieval),
        "one class": TaskReport(one_class, score_curves(np.zeros(4), np.full(4, 0.1))),
        "empty": TaskReport(empty),
        "constant": TaskReport(evaluate_columns(*constant, base_rate=0.2), score_curves(*constant)),
    }
    text = read(tmp_path, title="all", tasks=tasks).text
    assert "0.3000 against 0.1000 of popularity, 3.0 times as good" in text
    assert "all 4 rows have label 0" in text and "no rows with weight &gt; 0" in text
    assert "10 queries" in text and "RMSE" in text


def test_findings_of_a_good_model():
    _, _, evaluation = scored(bootstrap=20)
    worth, ranking, calibration = findings(evaluation)
    gain = 1 - evaluation.value("log_loss") / evaluation.base["log_loss"]
    assert worth.level == "good" and worth.figure == f"{100 * gain:.1f} % less log loss"
    assert ranking.level == "good" and f"{100 * evaluation.value('auc'):.1f} % of the time" in ranking.text
    assert calibration.level == "good" and "within chance" in calibration.text


@pytest.mark.parametrize(
    ("off", "level", "figure"), [(1.05, "fair", "% too high"), (0.7, "bad", "% too low"), (1.0, "good", "Yes")]
)
def test_calibration_is_judged(off, level, figure):
    y, p, _ = scored(num_rows=20000)
    exact = p * (y.sum() / p.sum())
    got = findings(evaluate_columns(y, (exact * off).clip(0, 1), base_rate=0.2))[2]
    assert got.level == level and figure in got.figure


def test_a_model_worse_than_the_base_rate_is_called_so():
    y, p, _ = scored()
    worth, ranking, calibration = findings(evaluate_columns(y, 1 - p, base_rate=float(y.mean())))
    assert (worth.level, ranking.level, calibration.level) == ("bad", "bad", "bad")
    assert worth.figure.endswith("% worse")


def test_weak_slices_are_found_and_sound_ones_are_not():
    y, p, _ = scored(num_rows=12000)
    device = np.array(["good", "random", "high"])[np.arange(12000) % 3]
    p = np.where(device == "high", np.sqrt(p), p)
    p = np.where(device == "random", np.random.default_rng(1).permutation(p), p).astype(np.float32)
    evaluation = evaluate_columns(y, p, base_rate=0.2, slices={"device": device}, bootstrap=20)
    weak = {w.value: w.text for w in weak_slices(evaluation)}
    assert set(weak) == {"random", "high"}
    assert "ranks worse" in weak["random"] and "worse than the plain label rate" in weak["random"]
    assert "more positives than there were" in weak["high"]
    assert next(iter(weak)) == "high"  # off by far more than the random slice: the worst comes first


def test_few_rows_without_an_interval_accuse_nobody():
    y, p, _ = scored(num_rows=1500)
    small = np.arange(1500) < 50
    p = np.where(small, 1 - p, p)
    plain = evaluate_columns(y, p, base_rate=0.2, slices={"small": small})
    assert not [w for w in weak_slices(plain) if w.value == "True"]
    assert [
        w for w in weak_slices(evaluate_columns(y, p, base_rate=0.2, slices={"small": small}, bootstrap=50)) if w.value == "True"
    ]


def test_history_is_read_without_empty_cells(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,valid_auc\n1,0.5,\n2,,0.7\n")
    assert read_history(tmp_path / "metrics.csv") == [{"step": 1.0, "loss": 0.5}, {"step": 2.0, "valid_auc": 0.7}]
