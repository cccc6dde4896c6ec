#!/bin/sh
# Reads and writes the log of the kernel, as programs made for Linux do. Meant for a console that is quiet: what it does not show is in the log.
. /root/check.sh
count() { dmesg | grep -c "$1"; }

is "the boot is in the log" "$(count 'ommand line: ')" = 1
is "from its first line on" "$(dmesg | head -n 1 | grep -c 'memvisor guest kernel')" = 1
is "every line has its time" "$(dmesg | grep -cvE '^\[ *[0-9]+\.[0-9]{6}\] ')" = 0
is "times do not fall" "$(dmesg | awk -F '[][]' '$2 + 0 < last { falls++ } { last = $2 + 0 } END { print falls + 0 }')" = 0
is "quiet means level 4" "$(cut -f 1 /proc/sys/kernel/printk)" = 4

# Who eats all memory is killed; the console says only so.
sh -c 'echo 1000 >/proc/self/oom_score_adj; exec tail /dev/zero'
is "the eater was killed" $? = 137
is "its report is in the log" "$(count 'Mem-Info:')" = 1
is "with its last line" "$(count 'Out of memory: Killed process')" = 1

echo "<6>told by a program" >/dev/kmsg
is "what programs say is in the log" "$(count 'told by a program')" = 1
is "not as the kernel's own" "$(timeout 2 cat /dev/kmsg | grep 'told by a program' | cut -d , -f 1)" = 14
is "/dev/kmsg has numbers without gap" "$(timeout 2 cat /dev/kmsg | awk -F , '$2 != NR - 1' | wc -l)" = 0
is "a record for each line of dmesg" "$(timeout 2 cat /dev/kmsg | wc -l)" = "$(dmesg | wc -l)"
is "who clears the log reads it once more" "$(dmesg -c | grep -c 'told by a program')" = 1
is "then it is empty" "$(dmesg | wc -l)" = 0
echo new >/dev/kmsg
is "and begins again" "$(dmesg | sed 's/.*\] //')" = new

dmesg -n 2
is "the console's level can be set" "$(cut -f 1 /proc/sys/kernel/printk)" = 2
echo 5 >/proc/sys/kernel/printk
is "by /proc, too" "$(cut -f 1 /proc/sys/kernel/printk)" = 5
echo "<4>a warning that is shown" >/dev/kmsg
echo "<5>a notice that is not" >/dev/kmsg

# More than the log holds: the oldest goes, and what is left is whole.
i=0
while [ $i -lt 1500 ]; do
    echo "<7>line $i of many, long enough to fill sixty-four kibibytes soon" >/dev/kmsg
    i=$((i + 1))
done
is "the newest line is there" "$(count 'line 1499 of')" = 1
is "the oldest is not" "$(count 'line 0 of')" = 0
is "no line between is lost" "$(dmesg | awk '/of many/ { for (f = 1; f < NF; f++) if ($f == "line") { if (n && $(f + 1) != n + 1) lost++; n = $(f + 1) } } END { print lost + 0 }')" = 0

[ $failed = 0 ] && echo "log: all steps passed"
[ $failed = 0 ]
