# Makes container images from Debian packages without a container engine: folders become layers, layers an OCI layout.
# shellcheck shell=bash
architecture=$(dpkg --print-architecture)
for tool in apt-get dpkg-deb tar gzip sha256sum; do
    command -v "$tool" >/dev/null || fail "$tool is needed to make images; this is not a Debian or Ubuntu machine"
done

# unpack FOLDER PACKAGE...: fetches packages, without installing them, and unpacks them into one folder.
unpack() {
    local folder=$1 package file
    shift
    mkdir -p "$folder" "$work/debs"
    for package in "$@"; do
        file=$(compgen -G "$work/debs/${package}_*.deb" | head -n 1 || true)
        if [ -z "$file" ]; then
            (cd "$work/debs" && apt-get -q -o APT::Sandbox::User=root download "$package" >/dev/null) ||
                fail "cannot fetch the package $package: is there a package source? Try: apt-get update"
            file=$(compgen -G "$work/debs/${package}_*.deb" | head -n 1)
        fi
        dpkg-deb --extract "$file" "$folder"
    done
}

# libraries_of PACKAGE: the library packages that a package depends on.
libraries_of() {
    apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: //p' | tr ',|' '\n\n' |
        sed 's/^ *//; s/[ (:].*//' | grep -E '^(lib|zlib)' | LC_ALL=C sort -u
}

# copy_with_libraries UNPACKED ROOT FILE: copies a program and the libraries that its loader finds for it.
copy_with_libraries() {
    local unpacked=$1 root=$2 program=$3 loader paths library
    loader=$(find "$unpacked" -name 'ld-linux*.so.*' | head -n 1)
    paths=$(find "$unpacked" -name 'lib*.so.*' -printf '%h\n' | LC_ALL=C sort -u | paste -sd:)
    install -D "$unpacked/$program" "$root/$program"
    "$loader" --inhibit-cache --library-path "$paths" --list "$unpacked/$program" | grep -oE "$unpacked/[^ ]+" |
        while read -r library; do
            install -D -m 0755 "$library" "$root/usr/lib/$(basename "$(dirname "$library")")/$(basename "$library")"
        done
    # The kernel looks for the loader where the program says.
    install -D -m 0755 "$loader" "$root/usr/lib64/$(basename "$loader")"
}

# skeleton ROOT: the folders and accounts that programs expect.
skeleton() {
    local root=$1 folder
    mkdir -p "$root"/{dev,proc,sys,tmp,run,root,etc,var/log,usr/bin,usr/sbin,usr/lib,usr/lib64}
    chmod 1777 "$root/tmp"
    for folder in bin sbin lib lib64; do ln -sfn "usr/$folder" "$root/$folder"; done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > "$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' > "$root/etc/group"
    printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
}

# add_busybox ROOT TOOL...: a shell and these tools.
add_busybox() {
    local root=$1 tool
    shift
    unpack "$work/busybox-unpacked" busybox-static
    install -D "$work/busybox-unpacked/bin/busybox" "$root/usr/bin/busybox" 2>/dev/null ||
        install -D "$work/busybox-unpacked/usr/bin/busybox" "$root/usr/bin/busybox"
    for tool in "$@"; do ln -sfn busybox "$root/usr/bin/$tool"; done
}

digest_of() { sha256sum "$1" | cut -d' ' -f1; }

# put_blob LAYOUT FILE: moves a file into a layout and prints its digest.
put_blob() {
    local digest
    digest=$(digest_of "$2")
    mkdir -p "$1/blobs/sha256"
    mv "$2" "$1/blobs/sha256/$digest"
    printf '%s\n' "$digest"
}

# add_layer LAYOUT FOLDER: makes a folder a layer and prints "DIGEST SIZE DIFF_ID". The same files give the same layer.
add_layer() {
    local layout=$1 folder=$2 diff digest
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$folder" -cf "$work/layer.tar" .
    diff=$(digest_of "$work/layer.tar")
    gzip -n -9 < "$work/layer.tar" > "$work/layer.tar.gz"
    rm "$work/layer.tar"
    digest=$(put_blob "$layout" "$work/layer.tar.gz")
    printf '%s %s %s\n' "$digest" "$(stat -c %s "$layout/blobs/sha256/$digest")" "$diff"
}

# add_image LAYOUT TAG CONFIG LAYER...: CONFIG is the JSON of what to run, each LAYER a line of add_layer.
add_image() {
    local layout=$1 tag=$2 run=$3 layer digest size diff diffs='' layers='' config manifest
    shift 3
    for layer in "$@"; do
        read -r digest size diff <<< "$layer"
        diffs+="${diffs:+,}\"sha256:$diff\""
        layers+="${layers:+,}{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$digest\",\"size\":$size}"
    done
    printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
        "$architecture" "$run" "$diffs" > "$work/config.json"
    size=$(stat -c %s "$work/config.json")
    config=$(put_blob "$layout" "$work/config.json")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
        "$config" "$size" "$layers" > "$work/manifest.json"
    size=$(stat -c %s "$work/manifest.json")
    manifest=$(put_blob "$layout" "$work/manifest.json")
    printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}\n' \
        "$manifest" "$size" "$tag" >> "$layout/manifests"
}

# start_layout LAYOUT / end_layout LAYOUT: around the images of a layout.
start_layout() {
    rm -rf "$1"
    mkdir -p "$1"
    printf '{"imageLayoutVersion":"1.0.0"}' > "$1/oci-layout"
}
end_layout() {
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' \
        "$(paste -sd, "$1/manifests")" > "$1/index.json"
    rm "$1/manifests"
}
