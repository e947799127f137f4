"""Retrieval models: two encoders and a scoring rule. `TOWERS` is the registry."""

from torchrec_models.towers.two_tower import TwoTower

TOWERS: dict[str, type[TwoTower]] = {"two_tower": TwoTower}
