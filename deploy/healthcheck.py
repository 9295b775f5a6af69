"""Ask the service in this container whether it takes requests; exit with 0 if it does."""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException


def is_ready(port: int) -> bool:
    """Return whether the service answers that it is ready, within four seconds."""
    connection = HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready(int(os.environ.get("XCLIP_DEPLOY_PORT", "8000"))) else 1)
