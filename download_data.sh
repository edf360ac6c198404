#!/bin/sh
# Fetches the course's data into ./data; arguments go to `kvarts data download course` (try --help).
set -eu
python=$(dirname "$0")/.venv/bin/python
[ -x "$python" ] || python=python3
if ! "$python" -c 'import kvarts' 2>/dev/null; then
    echo "download_data.sh: kvarts is not installed; run make train once, or: pip install -e '.[download]'" >&2
    exit 2
fi
exec "$python" -m kvarts data download course "$@"
