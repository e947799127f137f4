"""dense.c writes the bits that numpy writes, and leaves to numpy whatever is odd."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.data import dense
from torchrec_models.pipelines.data.numeric import Clip, Fill, IsMissing, Log1p, MinMax, Standard, Step, apply_steps, to_float
from torchrec_models.pipelines.data.values import Place

PLACE = Place("log", "x")
NUMBERS = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, 0.1, 1e-310])
STEPS = st.lists(
    st.builds(Fill, NUMBERS)
    | st.builds(Clip, st.none() | st.floats(-5, 0), st.none() | st.floats(1, 5))
    | st.just(IsMissing())
    | st.builds(MinMax, st.floats(-3, 0), st.floats(0, 3))
    | st.builds(Standard, NUMBERS, st.sampled_from([0.0, 0.3, 7.0])),
    max_size=4,
)


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_LEAST_ROWS", 1)
    assert dense._function() is not None, "these tests need a C compiler"


def scales(steps: list[Step]) -> bool:
    return any(isinstance(step, MinMax | Standard) for step in steps)


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.none() | NUMBERS | st.just(float("nan")), min_size=1, max_size=300),
    steps=STEPS,
    kind=st.sampled_from([pa.float64(), pa.float32(), pa.int64(), pa.int32()]),
    start=st.integers(0, 9),
)
def test_columns_have_the_bits_of_numpy(values: list, steps: list[Step], kind: pa.DataType, start: int) -> None:
    if pa.types.is_integer(kind):
        values = [None if v is None or v != v else int(v) for v in values]
    chain = [*steps, Fill(2.0)] if steps[:1] == [IsMissing()] else [Fill(2.0), *steps]
    column = pa.array([*([None] * start), *values], pa.float64() if pa.types.is_floating(kind) else kind).cast(kind).slice(start)
    out = np.full((len(column), 3), -7, np.float32)
    written = dense.encode_columns({1: (column, chain)}, out)
    if written:
        expected = apply_steps(chain, to_float(column, PLACE), PLACE)
        assert out[:, 1].tobytes() == expected.tobytes()
    elif not any(isinstance(step, Clip) and scales(chain[:i]) for i, step in enumerate(chain)):
        with pytest.raises(ValueError, match=r"does not become a finite|is missing"):
            apply_steps(chain, to_float(column, PLACE), PLACE)
    assert (out[:, [0, 2]] == -7).all()


def test_odd_columns_are_left_to_numpy() -> None:
    out = np.zeros((3, 6), np.float32)
    columns = {
        0: (pa.array([1.0, None, 2.0]), ()),  # missing, and no fill
        1: (pa.array([1.0, 1e300, 2.0]), ()),  # infinite in 32 bits
        2: (pa.array([1.0, 2.0, 3.0]), (Log1p(),)),  # numpy's own last bit
        3: (pa.array(["1", "2", "3"]), ()),
        4: (pa.array([1, 2, 3], pa.uint8()), ()),
        5: (pa.array([1, 2, 3]), ()),
    }
    assert dense.encode_columns(columns, out) == {5}
    assert out[:, 5].tolist() == [1, 2, 3]
