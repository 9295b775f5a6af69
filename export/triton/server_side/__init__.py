"""Code that Triton's Python backend runs. Each file here becomes a ``model.py`` of a repository.

The server loads each file by itself, in its own Python. The files may import nothing of this
package but ``xclip_deploy.runtime``, where the server has it.
"""
