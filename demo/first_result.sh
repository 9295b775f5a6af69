#!/bin/sh
# Time the way from a clone to the first right result, as a newcomer goes it.
#
#   sh demo/first_result.sh [REPOSITORY]
#
# Everything lies in an empty folder with a home of its own, and is removed at the end. It needs
# git, Python 3.10 or newer with venv, and a package index. The model is the demo's, as trained
# for the documentation, so that no time goes into training.
set -eu

repository=${1:-https://github.com/xclip-deploy/xclip-deploy}
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT INT TERM
export HOME="$folder/home" XDG_CACHE_HOME="$folder/home/.cache"
unset PYTHONPATH VIRTUAL_ENV
mkdir -p "$HOME" "$folder/work"
started=$(date +%s)
last=$started

passed() {
    now=$(date +%s)
    echo "$((now - last)) s  $1"
    last=$now
}

echo "$("$python" --version), $(nproc) cores, load $(cut -d ' ' -f 1 /proc/loadavg) before"
git clone --quiet "$repository" "$folder/clone"
passed "git clone"
"$python" -m venv "$folder/venv"
PATH="$folder/venv/bin:$PATH"
pip install --quiet --disable-pip-version-check "$folder/clone[export,cpu,gallery]"
passed "pip install '.[export,cpu,gallery]'"
cd "$folder/work"
python - "$folder/clone/tests/packages" <<'END'
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from documented_inputs import write_inputs

write_inputs(Path())
END
passed "a checkpoint and eight videos written"
xclip-deploy export ckpt.pt > export.txt
passed "xclip-deploy export ckpt.pt"
xclip-deploy index videos/
passed "xclip-deploy index videos/"
xclip-deploy search "a red square moves right" -k 3 | tee hits.txt
passed "xclip-deploy search"
grep -q "^1 .*red-square.mp4$" hits.txt || { echo "the first result is wrong" >&2; exit 1; }
echo "the first result is right, $((last - started)) s after the start"
