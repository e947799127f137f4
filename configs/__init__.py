"""Whole runs, one YAML file each: configs/<dataset>/<model>.yaml."""
