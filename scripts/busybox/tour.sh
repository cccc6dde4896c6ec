#!/bin/sh
# What a person would try first, each step with what Linux answers.
failed=0
step() { # WHAT GOT WANTED
    if [ "$2" = "$3" ]; then
        echo "ok: $1"
    else
        echo "FAILED: $1: got '$2', not '$3'"
        failed=$((failed + 1))
    fi
}

step "arithmetic" "$((6 * 7))" 42
step "a pipeline" "$(seq 1 100 | grep 7 | wc -l)" 19
step "three writers" "$(yes | head -3 | tr '\n' .)" y.y.y.
step "SIGPIPE is no error here" "$(yes | head -1)" y

mkdir -p /tmp/a/b && echo one >/tmp/a/b/f && echo two >>/tmp/a/b/f
step "files" "$(cat /tmp/a/b/f | tr '\n' ' ')" "one two "
step "sizes" "$(stat -c %s /tmp/a/b/f)" 8
ln -s b/f /tmp/a/l
step "symbolic links" "$(cat /tmp/a/l | wc -l)" 2
mv /tmp/a/b/f /tmp/a/g
step "renamed" "$(ls /tmp/a | tr '\n' ' ')" "b g l "
step "a broken link" "$(cat /tmp/a/l 2>&1)" "cat: can't open '/tmp/a/l': No such file or directory"
rm -r /tmp/a
step "removed" "$(ls /tmp)" ""
dd if=/dev/zero of=/tmp/z bs=4096 count=256 2>/dev/null
step "a MiB of zeros" "$(md5sum </tmp/z)" "b6d81b360a5672d80c27430f39153e2c  -"
rm /tmp/z

step "argv of init" "$(tr '\0' ' ' </proc/1/cmdline)" "/bin/sh /init "
step "a child in ps" "$(sleep 100 & ps | grep -c 's[l]eep 100'; kill $!)" 1
sleep 100 &
job=$!
kill $job
wait $job
step "a killed job" "$?" 143
sh -c 'trap "echo caught; exit 3" USR1; kill -USR1 $$; while :; do :; done' >/tmp/out
step "a handler's exit" "$?" 3
step "its output" "$(cat /tmp/out)" caught
no-such-program 2>/dev/null
step "no such program" "$?" 127
sh -c 'kill -SEGV $$'
step "a signal's status" "$?" 139
step "environment" "$(X=y sh -c 'echo $X')" y
step "here documents" "$(cat <<END
$((1 + 1))
END
)" 2
step "memory is counted" "$(awk '/MemTotal/ { print ($2 > 100000) }' /proc/meminfo)" 1
step "a subshell's memory" "$(a=1; (a=2); echo $a)" 1

[ $failed = 0 ] && echo "tour: all steps passed"
[ $failed = 0 ]
