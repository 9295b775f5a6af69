"""The whole path on a small scale, from training to search. Run by ``python3 dev.py demo``."""
