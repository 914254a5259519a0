#!/bin/bash
# Uploads the samples that were built to the registry of a cluster.
#   samples/push.sh KUBECONFIG                       TANDEM=the binary, OUT=the folder that build.sh built into
#   samples/push.sh KUBECONFIG LAYOUT REPOSITORY     all images NAME:TAG of another layout, as REPOSITORY/NAME:TAG
set -euo pipefail
samples=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-$samples/../target/samples}
kubeconfig=${1:?usage: samples/push.sh KUBECONFIG [LAYOUT REPOSITORY]}

find_tandem() {
    local candidate
    for candidate in "${TANDEM:-}" "$samples/../target/release/tandem" "$samples/../target/debug/tandem"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ]; then printf '%s\n' "$candidate" && return; fi
    done
    command -v tandem || { echo "the tandem binary is not built; set TANDEM to it" >&2 && exit 1; }
}
tandem=$(find_tandem)

# The parts of the kubeconfig that skopeo needs, as files that only this user reads.
umask 077
certificates=$(mktemp -d)
trap 'rm -rf "$certificates"' EXIT
field() { sed -n "s/^[ -]*$1: *//p" "$kubeconfig" | head -n 1 | tr -d "\"'"; }
server=$(field server)
field certificate-authority-data | base64 -d > "$certificates/ca.crt"
login=()
if [ -n "$(field client-certificate-data)" ]; then
    field client-certificate-data | base64 -d > "$certificates/client.cert"
    field client-key-data | base64 -d > "$certificates/client.key"
elif [ -n "$(field token)" ]; then
    login=(--dest-creds "token:$(field token)")
fi

# push_image LAYOUT TAG REFERENCE
push_image() {
    skopeo --insecure-policy copy --quiet "${login[@]}" --dest-cert-dir "$certificates" \
        "oci:$1:$2" "docker://${server#https://}/$3"
}
if [ $# -gt 1 ]; then
    for name in $(jq -r '.manifests[].annotations["org.opencontainers.image.ref.name"]' "$2/index.json"); do
        push_image "$2" "$name" "${3:?the repository is missing}/$name"
    done
    exit
fi

push_container() {
    local layout=$1 tag=$2
    [ ! -e "$OUT/$layout/index.json" ] || push_image "$OUT/$layout" "$tag" "library/$layout:$tag"
}
push_container nginx 1.25
push_container nginx 1.26
push_container busybox 1.36

push_component() {
    local file=$1 name=$2
    [ ! -e "$OUT/$file" ] || "$tandem" push --kubeconfig "$kubeconfig" "$OUT/$file" "registry.tandem/samples/$name"
}
push_component hello-http-1.wasm hello-http:1
push_component hello-http-2.wasm hello-http:2
push_component hello-http3.wasm hello-http3:1
push_component faults.wasm faults:1
push_component tick.wasm tick:1
push_component mixed.wasm mixed:1
