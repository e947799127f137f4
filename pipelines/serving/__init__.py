"""What answers requests: raw rows in, predictions out. Runs in exported bundles, without torch."""
