"""From a trained run to a bundle that runs without torch, checked row by row against PyTorch."""
