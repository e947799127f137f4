"""One training step of DCN v3 against DCN v2 of as many parameters: forward, loss, backward, Adam; without the tables.

"released" is DCN v3 as its authors wrote it (salmon1802/FCN of 2025-06-19, `src/DCNv3.py`): `[c; mask]` joined, one operation
after another; "ours" is `ranking/dcnv3.py`, which gives the same numbers to 1e-10 in float64 (checked first). "shared first
product" makes the first crossing of both networks in one product. Two widths: 39 fields of 16 (Criteo) and 10 of 16 (Frappe).

The ways take turns, one step each, so that a slow second hits all of them; ratios are taken round by round.

    python -m benchmarks.dcnv3 --rounds 15 [--compile] [--threads 2] [--device cuda]

Writes benchmarks/results/dcnv3_DEVICE.json.
"""

import argparse
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from torchrec_models.layers.cross import masked_cross
from torchrec_models.losses import RankingLoss
from torchrec_models.net import FieldSpec, Inputs, InputSpec, Net, TrainingOutput
from torchrec_models.ranking.dcnv2 import DCNv2
from torchrec_models.ranking.dcnv3 import DCNv3
from torchrec_models.schema import Task

from .mlp_step import Step, compare, race
from .record import write_result

BATCH_SIZE = 4096
DIM = 16
NUM_LAYERS = 4
SHAPES = {"criteo": 39, "frappe": 10}
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "norms": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "copies": ("aten::cat", "aten::copy_", "aten::fill_"),
    "sums": ("aten::sum",),
    "optimizer": ("aten::_fused_adam_",),
}


class Released(DCNv3):
    """The same parameters, in the authors' order of operations."""

    def forward(self, inputs: Inputs) -> TrainingOutput:
        views_BHNE = torch.stack(self.fields(inputs).tensor_split(self.num_heads, dim=-1), dim=1)
        first_BHD = torch.cat([view.flatten(2) for view in views_BHNE.tensor_split(2, dim=-1)], dim=-1)
        assert self.shallow is not None
        deep_BT = self._network(self.deep, first_BHD)
        shallow_BT = self._network(self.shallow, first_BHD)
        return TrainingOutput((deep_BT + shallow_BT) * 0.5, {"deep": deep_BT, "shallow": shallow_BT})

    @staticmethod
    def _network(network: Any, first_BHD: Tensor) -> Tensor:
        x_BHD = first_BHD
        for layer in network.layers:
            crossing_BHK = layer.linear(x_BHD)
            mask_BHK = functional.relu(layer.layer_norm(crossing_BHK))
            gate_BHD = torch.cat([crossing_BHK, crossing_BHK * mask_BHK], dim=-1)
            x_BHD = (x_BHD if network.exponential else first_BHD) * (gate_BHD + layer.bias_D) + x_BHD
            if network.dropout:
                x_BHD = functional.dropout(x_BHD, network.dropout)
        return network.out(x_BHD).mean(dim=1)


class SharedFirst(DCNv3):
    """Ours without dropout, the first crossing of both networks made by one matrix product."""

    def forward(self, inputs: Inputs) -> TrainingOutput:
        first_BHD = self.fields(inputs).unflatten(2, (self.num_heads, 2, -1)).permute(0, 2, 3, 1, 4).flatten(2)
        networks: list[Any] = [self.deep, self.shallow]
        weight_DD = torch.cat([network.layers[0].linear.weight for network in networks])
        crossings = functional.linear(first_BHD, weight_DD).chunk(2, dim=-1)
        logits = []
        for network, crossing_BHK in zip(networks, crossings):
            layer, *others = network.layers
            first = None if network.exponential else first_BHD
            mask_BHK = functional.relu(layer.layer_norm(crossing_BHK))
            x_BHD = masked_cross(first, first_BHD, crossing_BHK, mask_BHK, layer.bias_D)
            for other in others:
                x_BHD = other(first, x_BHD)
            logits.append(network.out(x_BHD).mean(dim=1))
        return TrainingOutput((logits[0] + logits[1]) * 0.5, {"deep": logits[0], "shallow": logits[1]})


def spec(num_fields: int) -> InputSpec:
    return InputSpec((), tuple(FieldSpec(str(i), DIM) for i in range(num_fields)), ())


def v2(num_fields: int) -> DCNv2:
    return DCNv2(spec(num_fields), DCNv2.Config(structure="cross_only", num_layers=NUM_LAYERS))


def v3(cls: type[DCNv3], num_fields: int, *, dropout: float = 0.0) -> DCNv3:
    """A layer of either network has half of the weights of a layer of DCN v2: as many of each give the same number."""
    config = DCNv3.Config(num_deep_layers=NUM_LAYERS, num_shallow_layers=NUM_LAYERS, deep_dropout=dropout, shallow_dropout=dropout)
    return cls(spec(num_fields), config)


def make_inputs(num_fields: int, num_rows: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Vectors as wide as trained ones, so that products of order 2**4 stay finite."""
    fields_BC = 0.05 * torch.randn(num_rows, num_fields * DIM, device=device, dtype=dtype)
    return Inputs(fields_BC.new_empty(num_rows, 0), fields_BC.requires_grad_(), fields_BC.new_empty(num_rows, 0), {})


def training(net: Net, inputs: Inputs, *, compiled: bool = False) -> Step:
    """One training step with the net's own losses; the input needs a gradient, as embeddings do."""
    device = inputs.fields_BC.device
    net.to(device)
    criterion = RankingLoss([Task(name="click")], net.auxiliary_losses()).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    labels_B1 = torch.randint(2, (BATCH_SIZE, 1), device=device).float()
    weights_B1 = torch.ones_like(labels_B1)
    forward: Any = torch.compile(net, dynamic=False) if compiled else net

    def step() -> None:
        optimizer.zero_grad()
        inputs.fields_BC.grad = None
        criterion(forward(inputs), labels_B1, weights_B1)[0].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def ways(num_fields: int, device: torch.device, *, compiled: bool) -> dict[str, Step]:
    """Name -> step. The first is what all others are compared with."""
    inputs = make_inputs(num_fields, BATCH_SIZE, device, torch.float32)
    steps = {
        "v3 released": training(v3(Released, num_fields), inputs),
        "v3 ours": training(v3(DCNv3, num_fields), inputs),
        "v3 ours, shared first product": training(v3(SharedFirst, num_fields), inputs),
        "v3 released, dropout 0.1": training(v3(Released, num_fields, dropout=0.1), inputs),
        "v3 ours, dropout 0.1": training(v3(DCNv3, num_fields, dropout=0.1), inputs),
        "v2": training(v2(num_fields), inputs),
    }
    if compiled:
        steps["v3 released, compiled"] = training(v3(Released, num_fields), inputs, compiled=True)
        steps["v3 ours, compiled"] = training(v3(DCNv3, num_fields), inputs, compiled=True)
        steps["v2, compiled"] = training(v2(num_fields), inputs, compiled=True)
    return steps


def largest_difference(cls: type[DCNv3], num_fields: int, device: torch.device) -> float:
    """Of logits and all gradients, in float64, between the released form and `cls`; relative to the largest of each tensor."""
    inputs = make_inputs(num_fields, 256, device, torch.float64)
    released, other = (v3(c, num_fields).double().to(device) for c in (Released, cls))
    other.load_state_dict(released.state_dict())
    results = []
    for net in (released, other):
        logits_B1 = net(inputs).logits_BT
        weighted = (logits_B1 * torch.linspace(-1, 1, 256, device=device, dtype=torch.float64)[:, None]).sum()
        results.append((logits_B1.detach(), *torch.autograd.grad(weighted, [inputs.fields_BC, *net.parameters()])))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results, strict=True))


def shares(step: Step, device: torch.device) -> dict[str, float]:
    """Kind of operation -> share of the time of three steps; what is in no kind is elementwise or overhead."""
    on_device = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]) as record:
        for _ in range(3):
            step()
    time = {e.key: e.self_device_time_total if on_device else e.self_cpu_time_total for e in record.key_averages()}
    total = sum(time.values())
    found = {kind: sum(time.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    return {**found, "elementwise and overhead": 1 - sum(found.values())}


def num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def measure(num_fields: int, device: torch.device, *, rounds: int, compiled: bool) -> dict[str, Any]:
    differences = {cls.__name__: largest_difference(cls, num_fields, device) for cls in (DCNv3, SharedFirst)}
    if max(differences.values()) > 1e-10:
        raise AssertionError(f"the forms do not agree: {differences}")
    steps = ways(num_fields, device, compiled=compiled)
    rows = compare(race(steps, rounds=rounds), first="v3 released")
    profiles = {name: shares(steps[name], device) for name in ("v3 released", "v3 ours", "v2")}
    for name, parts in profiles.items():
        print(f"{name:32} " + ", ".join(f"{kind} {share:.0%}" for kind, share in parts.items()))
    return {
        "num_fields": num_fields,
        "dim": DIM,
        "num_parameters": {"v2": num_parameters(v2(num_fields)), "v3": num_parameters(v3(DCNv3, num_fields))},
        "largest_difference_float64": differences,
        "ways": rows,
        "shares": profiles,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also under torch.compile; needs a C++ compiler and two minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    load_before = os.getloadavg()[0]
    shapes = {}
    for name, num_fields in SHAPES.items():
        print(f"--- {name}: {num_fields} fields of {DIM}, batch {BATCH_SIZE}")
        shapes[name] = measure(num_fields, device, rounds=args.rounds, compiled=args.compile)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": args.threads,
        "rounds": args.rounds,
        "batch_size": BATCH_SIZE,
        "num_layers": NUM_LAYERS,
        "load_average_before": load_before,
        "shapes": shapes,
    }
    print(f"written: {write_result(f'dcnv3_{device.type}', result, packages=('torch',)).name}")


if __name__ == "__main__":
    main()
