#!/bin/bash
# nginx:1.25 and nginx:1.26: two labels on builds of Debian's nginx that differ in their page alone. They run as the
# public images do: port 80, /usr/share/nginx/html, /etc/nginx/conf.d, logs on the standard streams.
. "$(dirname "$0")/../lib/common.sh"
sources=("$samples/nginx" "$samples/lib/oci.sh" "$samples/lib/common.sh")
fresh nginx "$OUT/nginx/index.json" "${sources[@]}" && exit
say "building nginx"
. "$samples/lib/oci.sh"

unpacked=$work/nginx-unpacked root=$work/nginx-root layout=$OUT/nginx.next
rm -rf "$unpacked" "$root"
mapfile -t libraries < <(libraries_of nginx)
[ ${#libraries[@]} -gt 0 ] || fail "the package nginx is not known here. Try: apt-get update"
unpack "$unpacked" nginx nginx-common "${libraries[@]}"
skeleton "$root"
copy_with_libraries "$unpacked" "$root" usr/sbin/nginx
printf 'nginx:x:101:101:nginx:/nonexistent:/bin/false\n' >> "$root/etc/passwd"
printf 'nginx:x:101:\n' >> "$root/etc/group"
mkdir -p "$root"/var/lib/nginx "$root"/var/log/nginx "$root"/usr/share/nginx/html "$root"/etc/nginx/conf.d
ln -sfn /dev/stdout "$root/var/log/nginx/access.log"
ln -sfn /dev/stderr "$root/var/log/nginx/error.log"
install -m 0644 "$unpacked/etc/nginx/mime.types" "$samples/nginx/nginx.conf" "$root/etc/nginx/"
install -m 0644 "$samples/nginx/default.conf" "$root/etc/nginx/conf.d/"
add_busybox "$root" sh ash cat ls wget grep head tail sleep echo env ps id kill hostname ip ping nslookup nc touch rm mkdir mv cp vi date df

start_layout "$layout"
base=$(add_layer "$layout" "$root")
for version in 1.25 1.26; do
    page=$work/nginx-page
    rm -rf "$page"
    mkdir -p "$page/usr/share/nginx/html"
    sed "s/@VERSION@/$version/" "$samples/nginx/index.html" > "$page/usr/share/nginx/html/index.html"
    add_image "$layout" "$version" "{\"Env\":[\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\",\"NGINX_VERSION=$version\"],\"Cmd\":[\"nginx\",\"-g\",\"daemon off;\"],\"ExposedPorts\":{\"80/tcp\":{}},\"StopSignal\":\"SIGQUIT\"}" \
        "$base" "$(add_layer "$layout" "$page")"
done
end_layout "$layout"
rm -rf "$OUT/nginx"
mv "$layout" "$OUT/nginx"
made nginx "${sources[@]}"
