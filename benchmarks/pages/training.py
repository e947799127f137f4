"""Tables of docs/results.md: accuracy beside what is published, speed of training beside FuxiCTR."""

from statistics import mean, stdev

from .aims import Aim, at_least
from .results import Results, Row, count, named_one, origin, table

SPEEDS = {
    "frappe_deepfm_speed": "Frappe DeepFM, batch 4096, float32",
    "frappe_deepfm_speed_bfloat16": "the same, `train.precision: bfloat16` (FuxiCTR: float32)",
    "large_tables": "DeepFM, 26 tables x 100,000 x 16, from cache to updated weights",
}
AIM_RATIOS = {"frappe_deepfm_speed": 3, "frappe_deepfm_speed_bfloat16": 3, "large_tables": 5}
RETRIEVERS = {
    "popularity": "popularity",
    "implicit ALS": "ALS (`implicit`, {factors} factors)",
    "ml1m/two_tower_history": "two-tower with history",
}
AIM_FRAPPE_AUC = 0.9830


def frappe_deepfm(results: Results) -> str:
    row = named_one(results("frappe_quality")["rows"], {"model": "frappe/deepfm"})
    rows = []
    for key, name in (("auc", "AUC"), ("gauc", "gAUC"), ("log_loss", "log loss")):
        seeds = [one[key] for one in row["seeds"]]
        rows.append((name, *(f"{number:.5f}" for number in (*seeds, mean(seeds), stdev(seeds)))))
    head = ("", *(f"seed {one['seed']}" for one in row["seeds"]), "mean", "std")
    return f"{table(head, rows)}\n\n{origin('frappe_quality', [row])}"


def retrieval(results: Results) -> str:
    found = results("ml1m_retrieval")["rows"]
    rows = [
        (
            RETRIEVERS.get(row["model"], row["model"]).format(**row.get("options", {})),
            f"{row['recall@10']:.4f}",
            f"{row['ndcg@10']:.4f}",
            str(len(row["seeds"])) if "seeds" in row else "",
        )
        for row in found
    ]
    return f"{table(('', 'recall@10', 'NDCG@10', 'seeds'), rows)}\n\n{origin('ml1m_retrieval', found)}"


def beside_fuxictr(results: Results) -> str:
    rows = []
    for name, what in SPEEDS.items():
        found = results(name)
        spread = f"{found['ratio_min']:.2f} to {found['ratio_max']:.2f}, {len(found['pairs'])} pairs"
        rows.append(
            (
                what,
                count(found["ours_samples_per_second_median"]),
                count(found["theirs_samples_per_second_median"]),
                f"**{found['ratio_median']:.2f}** ({spread})",
                f"{found['theirs']['library']} {found['theirs']['versions']['fuxictr']}",
            )
        )
    head = ("training step", "ours, rows/s", "theirs, rows/s", "ratio, median of the pairs", "theirs")
    return "\n\n".join([table(head, rows), *(origin(name, [results(name)]) for name in SPEEDS)])


def aims(results: Results) -> list[Aim]:
    nets = results("frappe_x1")["rows"]
    below = [row for row in nets if row["difference"] < -row["tolerance"]]
    names = "; not: " + ", ".join(f"{row['model']} ({row['difference']:+.4f})" for row in below) if below else ""
    deepfm = named_one(results("frappe_quality")["rows"], {"model": "frappe/deepfm"})["auc"]
    retrievers = results("ml1m_retrieval")["rows"]
    als, ours = (named_one(retrievers, {"model": model}) for model in ("implicit ALS", "ml1m/two_tower_history"))
    return [
        Aim("Frappe_x1, DeepFM, mean of the seeds", f"AUC {AIM_FRAPPE_AUC:.4f}", f"{deepfm:.5f}", [], deepfm >= AIM_FRAPPE_AUC),
        Aim(
            "Frappe_x1, every net of the table, mean of the seeds",
            f"at most {max(row['tolerance'] for row in nets):.4f} below the published AUC",
            f"{len(nets) - len(below)} of {len(nets)} nets{names}",
            [],
            not below,
        ),
        Aim("MovieLens-1M, two-tower with history", "above ALS", _recalls(ours, als), [], ours["recall@10"] > als["recall@10"]),
        *(
            at_least(f"training step: {SPEEDS[name]}", [p["ratio"] for p in results(name)["pairs"]], aim, "x FuxiCTR", digits=2)
            for name, aim in AIM_RATIOS.items()
        ),
    ]


def _recalls(ours: Row, other: Row) -> str:
    return f"recall@10 {ours['recall@10']:.4f}, ALS {other['recall@10']:.4f}"
