"""The code of docs/add_a_net.md is what a reader will paste: it must run, and be the formula that the page states."""

import re
from pathlib import Path

import pytest
import torch
from click_run import raw_config, write_click_log
from fixtures import SCHEMAS, make_inputs

from torchrec_models.model import net_class
from torchrec_models.net import InputSpec, Net
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.train import train

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "add_a_net.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Net]:
    (tmp_path / "my_nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    found = net_class("my_nets:FwFM")
    assert issubclass(found, Net)
    return found


def test_the_code_is_as_short_as_the_page_says() -> None:
    assert len(CODE.splitlines()) <= 60


def test_it_is_the_formula(net: type[Net]) -> None:
    spec = InputSpec.from_schema(SCHEMAS["pooled"])
    torch.manual_seed(0)
    fwfm = net(spec, net.Config()).double()
    inputs = make_inputs(spec, 4, first_order=False, dtype=torch.float64)
    v_BNE = inputs.fields_BC.unflatten(1, (3, 8))
    parameters = dict(fwfm.named_parameters())
    for row, v_NE in enumerate(v_BNE):
        expected = parameters["bias_T"][0] + sum(parameters["linear_TNE"][0, i] @ v_NE[i] for i in range(3))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            expected = expected + parameters["pair_TNN"][0, i, j] * (v_NE[i] @ v_NE[j])
        torch.testing.assert_close(fwfm(inputs)[row, 0], expected, atol=1e-12, rtol=0)


def test_it_trains_and_exports_like_any_other(net: type[Net], tmp_path: Path) -> None:
    write_click_log(tmp_path)
    (model,) = re.findall(r"^model: \{name: \"(.*?)\"", PAGE, flags=re.MULTILINE)
    raw = {**raw_config(tmp_path, "run"), "model": {"name": model, "init_std": 0.05}}
    config = C.parse(raw)
    prepare(config, progress=False)
    result = train(config, progress=False)
    assert result.progress.step == 22
    export_run(result.run)
    assert (result.run / "bundle" / "model.onnx").exists()
