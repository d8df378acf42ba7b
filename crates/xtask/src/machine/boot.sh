#!/bin/sh
# Boots systemd in a copy of this system that ends with it: an overlay in memory, with processes, network and
# control groups of its own. Called as `boot.sh FOLDER SHARED`: FOLDER is an empty directory to mount the copy
# on, and SHARED a directory that the copy sees as /media.
set -eu
# Of this copy only: those of another run, or of one that was killed, may still be there.
group=packages-test-$$

if [ "${3-}" != inside ]; then
    # A control group for everything inside, in each hierarchy. Without one, systemd would take the root's.
    while read -r _ place type _; do
        case $type in cgroup | cgroup2) ;; *) continue ;; esac
        mkdir -p "$place/$group"
        # A new group of `cpuset` takes no processes.
        echo $$ 2>/dev/null >"$place/$group/cgroup.procs" || rmdir "$place/$group"
    done </proc/mounts
    exec unshare --mount --pid --cgroup --net --uts --ipc --fork --kill-child sh "$0" "$1" "$2" inside
fi

folder=$1
mount --make-rprivate /
mount -t tmpfs memory "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"
cd "$folder/root"
mount --bind -o ro "$2" media
mount -t proc proc proc
# Nothing inside changes settings of the kernel.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs run run
mount -t tmpfs dev dev
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s null dev/console
if [ -f /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup sys/fs/cgroup
else
    mount -t tmpfs cgroup sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup sys/fs/cgroup/unified
fi

# Only what users and services need is started: no services of this machine.
units=etc/systemd/system
rm -rf "$units" usr/lib/systemd/system/*.target.wants etc/systemd/user/*.target.wants
mkdir -p "$units"
for target in sysinit basic; do
    printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\n' >"$units/$target.target"
done
printf '[Unit]\nWants=dbus.socket systemd-logind.service\nAfter=systemd-logind.service\n' \
    >"$units/packages-test.target"
: >etc/machine-id
# Without this, each installation updates the index of man pages, for several seconds.
rm -f var/lib/man-db/auto-update

pivot_root . mnt
exec chroot . env -i container=packages-test PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c '
    umount --lazy /mnt
    # As systemd does itself outside of containers: credentials of services are mounts.
    mount --make-rshared /
    exec /lib/systemd/systemd --system --unit=packages-test.target --show-status=no --log-target=journal'
