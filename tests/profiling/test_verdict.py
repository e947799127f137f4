"""The words follow from the figures."""

import pytest

from torchrec_models.pipelines.profiling.verdict import Part, Speeds, judge

SHARES: dict[Part, float] = {"host_to_device": 0.05, "sparse": 0.25, "dense": 0.5, "optimizer": 0.15, "logging": 0.05}


def test_a_loader_slower_than_the_model_is_named_with_both_speeds() -> None:
    verdict = judge(Speeds(loader=50.0, cached=200.0, reached=0.25, reached_of_varied=0.25, shares=SHARES))
    assert verdict.limit == "input" and verdict.gain == pytest.approx(4.0)
    assert "input-bound: training reaches 25.0% of the speed on a cached batch" in verdict.text
    assert "the loader alone makes 50.0 batches a second and the model takes 200.0" in verdict.text
    assert "compete" not in verdict.text and "cache" in verdict.advice


def test_a_loader_that_is_fast_alone_competes_with_the_model() -> None:
    verdict = judge(Speeds(loader=900.0, cached=200.0, reached=0.78, reached_of_varied=0.8, shares=SHARES))
    assert verdict.limit == "input" and verdict.gain == pytest.approx(1.25)
    assert "compete for the same cores" in verdict.text and "OMP_NUM_THREADS" in verdict.advice


@pytest.mark.parametrize("part", SHARES)
def test_otherwise_the_largest_part_of_a_step_limits(part: Part) -> None:
    shares: dict[Part, float] = {**dict.fromkeys(SHARES, 0.1), part: 0.6}  # type: ignore[dict-item]
    verdict = judge(Speeds(loader=900.0, cached=200.0, reached=0.97, reached_of_varied=0.98, shares=shares))
    assert verdict.limit == part and verdict.gain == pytest.approx(2.5)
    assert "60% of a step. Without it, steps would be 2.50 times as fast" in verdict.text
    assert "The loader does not limit: training reaches 97.0%" in verdict.text and len(verdict.advice) > 20


def test_on_a_gpu_copies_count_as_what_they_delay() -> None:
    """They overlap with the step before: their own time says little."""
    speeds = Speeds(loader=900.0, cached=40.0, reached=0.99, reached_of_varied=0.99, shares=SHARES, resident=100.0)
    verdict = judge(speeds)
    assert verdict.limit == "host_to_device" and verdict.gain == pytest.approx(2.5)
    hidden = judge(
        Speeds(
            loader=900.0,
            cached=100.0,
            reached=0.99,
            reached_of_varied=0.99,
            shares={**SHARES, "host_to_device": 0.9},
            resident=100.0,
        )
    )
    assert hidden.limit == "dense"


def test_a_batch_whose_rows_stay_in_the_caches_is_no_fault_of_the_loader() -> None:
    verdict = judge(Speeds(loader=900.0, cached=200.0, reached=0.88, reached_of_varied=0.99, shares=SHARES))
    assert verdict.limit == "dense" and "88.0% of the speed on a cached batch, 99.0% of that on several in turn" in verdict.text
