#!/bin/sh
# Prints the files of /proc that suites compare with Linux's, and lets busybox's own programs read them.
for file in meminfo zoneinfo vmstat buddyinfo pagetypeinfo swaps iomem cpuinfo uptime loadavg stat \
    self/maps self/smaps self/smaps_rollup self/status self/stat self/statm self/oom_score self/oom_score_adj self/limits 1/maps; do
    echo "proc: /proc/$file"
    cat /proc/$file
    echo "proc: end"
done

. /root/check.sh
field() { awk -v key="$2:" '$1 == key { print $2 }' "/proc/$1"; }

is "free sees all memory" "$(free | awk '/^Mem:/ { print $2 }')" = "$(field meminfo MemTotal)"
is "free adds up" "$(free | awk '/^Mem:/ { print ($3 + $4 + $6 <= $2 + 64) }')" = 1
is "top sees itself" "$(top -b -n1 | grep -c 'top -b')" -ge 1
is "top sees memory" "$(top -b -n1 | awk '/^Mem:/ { print ($2 + 0 > 0) }')" = 1
is "ps has a shell" "$(ps | grep -c '[p]roc.sh')" -ge 1
is "anonymous pages are on the lists" "$(field meminfo 'Active(anon)')" -gt 0
is "kernel stacks are counted" "$(field meminfo KernelStack)" -gt 0
is "page tables are counted" "$(field meminfo PageTables)" -gt 0
is "a shell is resident" "$(field self/status VmRSS)" -gt 0
is "its most is no less" "$(awk '/^VmHWM/ { hwm = $2 } /^VmRSS/ { rss = $2 } END { print (hwm >= rss) }' /proc/self/status)" = 1
is "its code is text" "$(field self/status VmExe)" -gt 0
is "faults are counted" "$(awk '{ print $10 }' /proc/self/stat)" -gt 0
is "the sum of mappings is what status says" "$(field self/smaps_rollup Rss)" -gt 0
is "a page is present in pagemap" "$(dd if=/proc/self/pagemap bs=8 skip=$((0x401)) count=1 2>/dev/null | od -An -tx1 | awk '{ print substr($8, 1, 1) }')" = a
is "swappiness can be set" "$(echo 10 >/proc/sys/vm/swappiness; cat /proc/sys/vm/swappiness)" = 10
echo 60 >/proc/sys/vm/swappiness
is "System RAM is in iomem" "$(grep -c 'System RAM' /proc/iomem)" -ge 1
is "the kernel is in it" "$(grep -c '  .* : Kernel code' /proc/iomem)" = 1
is "functions are in order" "$(cut -d ' ' -f 1 /proc/kallsyms | sort -c 2>&1)" = ""
is "each has an address, a type and a name" "$(grep -cvE '^f{8}[0-9a-f]{8} [tTwW] [^ ]+$' /proc/kallsyms)" = 0
is "there are many, one of which faults" "$(grep -c . /proc/kallsyms)" -gt 1000 -a "$(grep -c handle_fault /proc/kallsyms)" -ge 1
is "time passes" "$(awk '/^cpu / { print ($2 + $4 + $5 > 0) }' /proc/stat)" = 1
is "switches are counted" "$(awk '/^ctxt/ { print $2 }' /proc/stat)" -gt 0

[ $failed = 0 ] && echo "proc: all steps passed"
[ $failed = 0 ]
