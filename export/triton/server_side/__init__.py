"""What Triton's Python backend runs: each file here is copied into a repository as ``model.py``.

They are loaded by the server, in its Python, and by their file alone: nothing of this package
may be imported in them but ``xclip_deploy.runtime``, where the server has it.
"""
