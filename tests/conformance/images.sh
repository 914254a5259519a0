#!/bin/bash
# Makes the images that the conformance suite runs, of the suite's own programs and of Debian packages, as OCI layouts
# in target/conformance: the public ones of the same names are not needed.
cd "$(dirname "$0")"
OUT=$(mkdir -p "${OUT:-../../target/conformance}" && cd "${OUT:-../../target/conformance}" && pwd)
. ../../samples/lib/common.sh
. "$samples/lib/oci.sh"
build() { CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/$1" "$2"; }
suite=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)
[ -n "$suite" ] || { go mod download k8s.io/kubernetes && suite=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes); }

say "building the programs"
build agnhost k8s.io/kubernetes/test/images/agnhost
build nnp k8s.io/kubernetes/test/images/nonewprivs
build sample-apiserver k8s.io/sample-apiserver

# The tools that tests call by name, with their libraries.
debian=$work/debian
if [ ! -e "$debian/usr/bin/dig" ]; then
    say "fetching tools"
    rm -rf "$debian"
    mmdebstrap --quiet --variant=essential --include=bind9-dnsutils,curl,netcat-openbsd,iproute2,iperf,etcd-server \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$debian" - < <(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null)
fi

root=$work/tools
rm -rf "$root"
skeleton "$root"
add_busybox "$root" sh
mapfile -t tools < <("$root/usr/bin/busybox" --list | grep -vx busybox)
add_busybox "$root" "${tools[@]}"
for tool in bash dig curl nc.openbsd ss ip iperf getent; do
    rm -f "$root/usr/bin/$tool" "$root/bin/$tool"
    copy_with_libraries "$debian" "$root" "$(cd "$debian" && find usr/bin usr/sbin bin sbin -name "$tool" 2>/dev/null | head -n 1)"
done
mv "$root/usr/bin/nc.openbsd" "$root/usr/bin/nc"
# Busybox's shell takes its own tools for others of the same names, and drops variables with a dash.
ln -sfn bash "$root/usr/bin/sh"
# What the loader does not tell: names are looked up by libraries that libc opens itself.
cp "$debian"/usr/lib/*/libnss_{dns,files}.so.2 "$root/usr/lib/$(basename "$(dirname "$(ls -d "$root"/usr/lib/*/libc.so.6)")")/"
printf 'user-defined-in-image:x:1000:1000::/:/bin/sh\n' >> "$root/etc/passwd"
printf 'user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >> "$root/etc/group"

layout=$OUT/images.next
start_layout "$layout"
base=$(add_layer "$layout" "$root")

# versions NAME: those that the suite names.
versions() { sed -n "s/.*Config{.*\"$1\", \"\([^\"]*\)\"}.*/\1/p" "$suite/test/utils/image/manifest.go"; }
# image NAME CONFIG LAYER...
image() {
    local name=$1 config=$2 version
    shift 2
    for version in $(versions "$name"); do
        add_image "$layout" "$name:$version" "{$path,$config}" "$base" "$@"
    done
}
layer() { rm -rf "$work/layer" && mkdir -p "$work/layer"; }
path='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'
layer
cp "$work/agnhost" "$work/layer/agnhost"
ln -s agnhost "$work/layer/agnhost-2"
mkdir -p "$work/layer/uploads"
cp "$suite"/test/images/agnhost/porter/localhost.{crt,key} "$work/layer/"
agnhost=$(add_layer "$layout" "$work/layer")
ports='"ExposedPorts":{"80/tcp":{},"8080/tcp":{},"8081/tcp":{},"9376/tcp":{},"5000/tcp":{}}'
image agnhost "$ports,\"Entrypoint\":[\"/agnhost\"],\"Cmd\":[\"pause\"]" "$agnhost"
image pause '"Entrypoint":["/agnhost","pause"]' "$agnhost"
for name in nautilus kitten; do
    layer
    cp "$suite/test/images/$name/html/"* "$work/layer/"
    image "$name" "$ports,\"Entrypoint\":[\"/agnhost\"],\"Cmd\":[\"test-webserver\"]" "$agnhost" "$(add_layer "$layout" "$work/layer")"
done
image busybox '"Cmd":["sh"]'
image nonroot '"User":"1234","Cmd":["sh"]'
image glibc-dns-testing '"Cmd":["bash"]'
layer
install -D -m 4755 "$work/nnp" "$work/layer/usr/local/bin/nnp"
image nonewprivs '"Cmd":["nnp"]' "$(add_layer "$layout" "$work/layer")"
layer
cp "$work/sample-apiserver" "$work/layer/sample-apiserver"
image sample-apiserver '"Entrypoint":["/sample-apiserver"]' "$(add_layer "$layout" "$work/layer")"
layer
copy_with_libraries "$debian" "$work/layer" usr/bin/etcd
mkdir -p "$work/layer/usr/local/bin"
ln -s /usr/bin/etcd "$work/layer/usr/local/bin/etcd"
image etcd '"Cmd":["etcd"]' "$(add_layer "$layout" "$work/layer")"
end_layout "$layout"
for version in $(versions nginx); do
    skopeo --insecure-policy copy --quiet "oci:$samples/../target/samples/nginx:1.25" "oci:$layout:nginx:$version"
done
rm -rf "$OUT/images"
mv "$layout" "$OUT/images"
