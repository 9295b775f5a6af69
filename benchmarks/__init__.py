"""Measurements that take longer than a test may. Each module runs alone: ``python -m``."""
