#!/bin/bash
# busybox:1.36, a label on Debian's static busybox: a shell and some three hundred tools in a megabyte.
. "$(dirname "$0")/../lib/common.sh"
sources=("$samples/busybox" "$samples/lib/oci.sh" "$samples/lib/common.sh")
fresh busybox "$OUT/busybox/index.json" "${sources[@]}" && exit
say "building busybox"
. "$samples/lib/oci.sh"

root=$work/busybox-root layout=$OUT/busybox.next
rm -rf "$root"
skeleton "$root"
add_busybox "$root" sh
mapfile -t tools < <("$root/usr/bin/busybox" --list | grep -vx busybox)
add_busybox "$root" "${tools[@]}"
start_layout "$layout"
add_image "$layout" 1.36 '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]}' \
    "$(add_layer "$layout" "$root")"
end_layout "$layout"
rm -rf "$OUT/busybox"
mv "$layout" "$OUT/busybox"
made busybox "${sources[@]}"
