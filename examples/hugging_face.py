"""Search with a CLIP of the Hugging Face hub, from the local cache or the hub itself.

    python hugging_face.py openai/clip-vit-base-patch32 videos/ "a dog on a leash"

It needs the extras export, cpu and hub. Without a network, the model must be in the cache, where
``hf download org/name`` puts it; otherwise the error says what is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xclip_deploy import Retriever, XclipDeployError, export_bundle


def main() -> None:
    """Export the model once, index the videos in memory, and search."""
    if len(sys.argv) != 4:
        sys.exit((__doc__ or "").strip())
    name, videos, query = sys.argv[1:]
    bundle = Path(f"{name.replace('/', '--')}-bundle")
    try:
        if not bundle.is_dir():
            for note in export_bundle(name, bundle).notes:
                print(f"note: {note}")
        with Retriever(bundle) as retriever:
            print(retriever.add([videos]))
            for hit in retriever.search(query, k=5):
                print(f"{hit.rank}. {hit.score:.2f}  {hit.path}")
    except XclipDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
