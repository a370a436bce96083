#!/bin/sh
# The first process of a virtual machine of scripts/kernels.py: mounts what tests need, runs /run.sh, sends /results to the
# console, and powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /results
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
ln -sf /proc/self/fd /dev/fd
ip link set lo up
echo "kernels: booted after $(cut -d ' ' -f 1 /proc/uptime) s"
sh /run.sh
echo "kernels: done after $(cut -d ' ' -f 1 /proc/uptime) s"
# Else the kernel's own messages get between the lines.
echo 1 >/proc/sys/kernel/printk
echo "kernels: results begin"
tar -C /results -cz . | base64
echo "kernels: results end"
sleep 0.2
echo o >/proc/sysrq-trigger
sleep 60
