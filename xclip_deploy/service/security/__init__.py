"""Who may send a request, and what it may hold: checks before any route runs.

Everything here is plain ASGI, so that bodies and responses stream through it.
"""
