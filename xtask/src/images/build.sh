# Makes layers of Debian packages as a Dockerfile's `FROM debian` and `RUN apt-get install` would:
# base.tar.gz, and for each argument NAME=PACKAGE,... a layer NAME.tar.gz that lies on the base.
# Started in a mount namespace of its own and in an empty folder, with the mirror first.
set -eu
mirror=$1
suite=$2
shift 2
result=$PWD

# Some 700 MB at most. dpkg syncs every file, which takes most of the time on a busy disk.
mkdir build
mount -t tmpfs tmpfs build
cd build

# What Debian's slim images leave out as well, also of packages that are installed later. Folders
# of manuals stay: packages link into them.
for folder in doc groff info lintian locale 'man/*'; do
    echo "path-exclude=/usr/share/$folder/*"
done > dpkg.cfg
echo 'path-include=/usr/share/locale/locale.alias' >> dpkg.cfg
# The hook links /bin and the like from the start; a package that converts them needs all of perl.
mmdebstrap --quiet --mode=root --variant=minbase --skip=cleanup/apt/lists \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --dpkgopt="$PWD/dpkg.cfg" \
    "$suite" base "deb $mirror $suite main"
# Images have no lists of packages; here they spare an update per layer.
mkdir lists
mv base/var/lib/apt/lists/* lists
rm -r base/dev/*
# As in Debian's own images: no package starts a service.
printf '#!/bin/sh\nexit 101\n' > base/usr/sbin/policy-rc.d
chmod 755 base/usr/sbin/policy-rc.d

pack() {
    tar --create --file="$result/$1.tar.gz" --use-compress-program='gzip -1' \
        --sort=name --numeric-owner --xattrs-include=security.capability --directory="$1" .
}

pack base
mkdir work root
for layer; do
    name=${layer%%=*}
    mkdir "$name"
    mount -t overlay overlay -o "lowerdir=base,upperdir=$name,workdir=work" root
    mount -t proc proc root/proc
    mount --rbind /dev root/dev
    mount --bind lists root/var/lib/apt/lists
    mount -t tmpfs tmpfs root/var/cache/apt
    mount -t tmpfs tmpfs root/tmp
    # shellcheck disable=SC2046 # a word per package
    env --ignore-environment PATH=/usr/sbin:/usr/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C \
        chroot root apt-get install --quiet --yes --no-install-recommends \
        -o APT::Sandbox::User=root $(echo "${layer#*=}" | tr , ' ')
    umount --recursive root
    # What packages removed of the base may stay: a device is how overlayfs remembers it, and no
    # entry of a layer.
    find "$name" -type c -delete
    pack "$name"
    rm -r "$name"
done
cd "$result"
umount build
rmdir build
