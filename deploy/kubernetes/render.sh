#!/bin/sh
# Print the manifests with two images, each named by its digest, because a tag may name another image tomorrow:
#   deploy/kubernetes/render.sh REGISTRY/shelfwise-serve@sha256:... REGISTRY/shelfwise-train@sha256:... | kubectl apply -f -
set -eu
if [ $# -ne 2 ]; then
  echo "usage: $0 SERVE_IMAGE TRAIN_IMAGE" >&2
  exit 2
fi
for image in "$1" "$2"; do
  if ! printf '%s' "$image" | grep -Eqx '[a-zA-Z0-9./:_-]+@sha256:[0-9a-f]{64}'; then
    echo "$0: $image does not end with a digest: expected NAME@sha256: and 64 hexadecimal digits, as \`docker push\` prints" >&2
    exit 1
  fi
done
sed -e "s|SERVE_IMAGE|$1|" -e "s|TRAIN_IMAGE|$2|" "$(dirname "$0")/shelfwise.yaml"
