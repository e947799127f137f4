"""What a GPU says of itself while steps run: utilisation, memory, PCIe. Needs the package nvidia-ml-py."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

SAMPLE_SECONDS = 0.1


@dataclass
class GpuSamples:
    """Attributes:
    utilisation: per sample, share of the time in which a kernel ran, 0 to 1.
    memory_bytes: per sample, in use on the device, by all processes.
    to_device_bytes_per_second, from_device_bytes_per_second: per sample, over PCIe.
    missing: why there are no samples; empty if there are.
    """

    utilisation: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    to_device_bytes_per_second: list[float] = field(default_factory=list)
    from_device_bytes_per_second: list[float] = field(default_factory=list)
    missing: str = ""

    def as_dict(self) -> dict[str, float | str]:
        if self.missing or not self.utilisation:
            return {"missing": self.missing or "no sample was taken"}
        return {
            "utilisation": _mean(self.utilisation),
            "most_memory_bytes": max(self.memory_bytes),
            "to_device_bytes_per_second": _mean(self.to_device_bytes_per_second),
            "from_device_bytes_per_second": _mean(self.from_device_bytes_per_second),
        }


@contextmanager
def sampled(device: torch.device) -> Iterator[GpuSamples]:
    """Samples of a CUDA device, taken by a thread for as long as the block runs."""
    samples = GpuSamples()
    try:
        import pynvml
    except ImportError:
        samples.missing = "nvidia-ml-py is not installed; pip install torchrec-models[gpu]"
        yield samples
        return
    try:
        pynvml.nvmlInit()
        # not by index: CUDA_VISIBLE_DEVICES renumbers CUDA's devices and not NVML's
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError as error:
        samples.missing = f"NVML: {error}"
        yield samples
        return
    stop = threading.Event()

    def pcie(counter: int) -> float:
        return 1000.0 * pynvml.nvmlDeviceGetPcieThroughput(handle, counter)  # KB/s over 20 ms

    def work() -> None:
        try:
            while not stop.wait(SAMPLE_SECONDS):
                utilisation = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                received, sent = pcie(pynvml.NVML_PCIE_UTIL_RX_BYTES), pcie(pynvml.NVML_PCIE_UTIL_TX_BYTES)
                samples.memory_bytes.append(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
                samples.to_device_bytes_per_second.append(received)  # RX and TX are as the device sees them
                samples.from_device_bytes_per_second.append(sent)
                samples.utilisation.append(utilisation)
        except pynvml.NVMLError as error:
            samples.missing = f"NVML: {error}"

    thread = threading.Thread(target=work, name="gpu samples", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        pynvml.nvmlShutdown()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
