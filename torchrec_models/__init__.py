"""TorchRec-native recommenders: towers and ranking nets that stand on sharded embedding tables."""
