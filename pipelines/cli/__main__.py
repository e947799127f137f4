"""`python -m torchrec_models.pipelines.cli` is `trm`: what torchrun and torchx start."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
