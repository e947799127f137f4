"""Which settings make another cache."""

from data_flow import run_config

from torchrec_models.pipelines.data.fingerprint import settings_of


def bag(**options: object) -> dict:
    settings = settings_of(run_config({"tags": {"kind": "categorical", "max_len": 2, "separator": "|", **options}}))
    return settings["features"]["tags"]


def test_a_bag_of_first_values_is_described_as_before_there_was_a_choice() -> None:
    assert "keep" not in bag() and bag() == bag(keep="first")
    assert bag(keep="last") == bag() | {"keep": "last"}


def test_a_number_of_buckets_is_described_as_before_there_was_a_margin() -> None:
    for of, name in (("features", "tags"), ("tables", "tags")):
        ids = settings_of(run_config({"tags": {"kind": "categorical", "ids": {"by": "hash", "buckets": 5}}}))[of][name]["ids"]
        assert ids == {"by": "hash", "buckets": 5, "seed": 0, "null": "token"}
        wide = settings_of(run_config({"tags": {"kind": "categorical", "ids": {"by": "hash", "margin": 2}}}))[of][name]["ids"]
        assert wide["margin"] == 2
