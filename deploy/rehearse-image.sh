#!/usr/bin/env bash
# Where no container engine runs: carries out the steps of the image's build stage, as the container file has them, in a
# temporary folder instead of /opt and /src, and asks what was installed for its commands. Takes one or two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

mkdir "$place/src"
# The build's context, as .dockerignore leaves it.
sed -n 's/^!//p' .dockerignore | while read -r name; do
    # shellcheck disable=SC2086 # requirements/*.lock is a pattern
    cp -r --parents $name "$place/src"
done

steps=$(sed -e ':a' -e '/\\$/{N;s/\\\n//;ba}' deploy/Containerfile | sed -n '/ AS build$/,/^FROM build/s/^RUN //p' |
    sed -e 's/--mount=[^ ]* *//g' -e "s#/opt/#$place/#g")
[ "$(wc -l <<<"$steps")" -ge 3 ] || { echo "no build stage with RUN steps in deploy/Containerfile" >&2; exit 1; }
cd "$place/src"
export PIP_DISABLE_PIP_VERSION_CHECK=1
while read -r step; do
    echo "RUN ${step//$place/}"
    bash -euo pipefail -c "$step" >"$place/log" 2>&1 || { cat "$place/log" >&2; exit 1; }
done <<<"$steps"

# From elsewhere, so that what answers is what was installed; a command that imports all that a run needs.
cd /
"$place/vocbeam/bin/vocbeam" --version
"$place/vocbeam/bin/vocbeam" run --help >/dev/null
"$place/vocbeam/bin/vocbeam" flink worker-pool --help >/dev/null
du -sh "$place/vocbeam" | sed "s#$place#/opt#"
