"""Indexing behind requests: jobs that survive the service, one at a time.

``ledger`` keeps jobs and uploaded files in SQLite, and ``records`` defines both. ``table`` holds
the jobs that have not ended, and ``news`` the numbers of events. ``work`` indexes the videos of one
job, ``reports`` puts its outcome into JSON, and ``queue`` drives it all from one thread.
"""
