"""Indexing behind requests: jobs that survive the service, one at a time.

``ledger`` keeps jobs and uploaded files in SQLite. ``records`` defines both, ``running`` what is
known of a job in work, and ``news`` the numbers of events. ``work`` indexes the videos of one job,
``reports`` puts its outcome into JSON, and ``queue`` drives it all from one thread.
"""

from __future__ import annotations

from xclip_deploy.service.jobs.queue import Jobs
from xclip_deploy.service.jobs.records import Job, UploadedFile

__all__ = ["Job", "Jobs", "UploadedFile"]
