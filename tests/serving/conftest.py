"""Bundles that several files of this folder serve."""

from pathlib import Path

import pytest
from bundle_cases import CLICK_SCHEMA, click_rows, click_transforms, export_model, make_model


@pytest.fixture(scope="session")
def click_bundles(tmp_path_factory) -> tuple[Path, Path]:
    """Two versions of one model: other weights, the same columns."""
    folder = tmp_path_factory.mktemp("click-bundles")
    for seed, name in enumerate(("first", "second")):
        export_model(make_model(CLICK_SCHEMA, "deepfm", seed=seed), click_transforms(), click_rows(50), folder / name)
    return folder / "first", folder / "second"
