"""The demo, from training to search on a small scale. ``python3 dev.py demo`` runs it."""
