#!/bin/sh
# The first process of a guest: file systems, devices, then the one command this guest is for.
# What it ends with goes to the host through the port "result", what it prints through "output".

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
hostname guest

modprobe -q virtio_pci
modprobe -q virtio_console
mkdir -p /dev/virtio-ports
. /etc/guest

# The device of a port, once the host has announced it.
wait_for_port() {
    tries=0
    while [ ! -e "/dev/virtio-ports/$1" ] && [ $tries -lt 500 ]; do
        for port in /sys/class/virtio-ports/*; do
            if [ "$(cat "$port/name" 2>/dev/null)" = "$1" ]; then
                ln -s "../${port##*/}" "/dev/virtio-ports/$1"
                return
            fi
        done
        tries=$((tries + 1))
        sleep 0.02
    done
}
wait_for_port result

cd /root || exit 1
if [ "$GUEST_TERMINAL" ]; then
    until [ -e /dev/hvc0 ]; do sleep 0.02; done
    setsid -c /bin/sh -c "stty sane $GUEST_TERMINAL; exec /bin/guest-command" \
        < /dev/hvc0 > /dev/hvc0 2>&1
    status=$?
else
    wait_for_port output
    exec 3> /dev/virtio-ports/output
    /bin/guest-command < /dev/null >&3 2>&1
    status=$?
    # The end of the output: the host waits for it.
    printf '\036' >&3
fi

# The kernel may have complained without falling over, and below the level the console shows.
dmesg | grep -E 'WARNING:|BUG:|Oops|stall|lockup|blocked for more' |
    grep -vE '[Cc]ommand line:|stall warnings timeout' > /tmp/complaints
tar -C /out -cf /tmp/out.tar .
size=$(stat -c %s /tmp/out.tar)
{
    echo "exit=$status complaints=$(stat -c %s /tmp/complaints) files=$size"
    cat /tmp/complaints /tmp/out.tar
} > /dev/virtio-ports/result

# The host ends the machine once it has everything; if it is gone, the machine ends itself.
sleep 20
poweroff -f
