"""torchx components. Imported as `torchrec_models.launch`, or named by path: `launch/components.py:train`."""

if __name__ != "torchrec_models.launch":
    raise ImportError("import torchrec_models.launch, not launch")
