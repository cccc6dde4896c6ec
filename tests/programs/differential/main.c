/*
 *   differential INPUT DIRECTORY
 *
 * Each sequence runs in a child of its own. What is said of it on standard output, always a line that begins with `~`:
 *
 *   ~= ID HASH           the hash of its record
 *   ~+ TEXT              with mode full: a line of the record, before that
 *   ~. COUNT             the end
 *
 * With mode ktap the hash is compared with the one that the sequence brings along, and KTAP is printed instead. As the first process of a
 * machine the program reads /sequences and works in /tmp.
 */
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "differential.h"

static char out[1 << 16];
static unsigned out_len;
static struct sequence sequence;

static void flush(void)
{
	unsigned done = 0;

	while (done < out_len) {
		long wrote = sys(SYS_write, 1, out + done, out_len - done);

		if (wrote <= 0)
			break;
		done += (unsigned)wrote;
	}
	out_len = 0;
}

void say(const char *text)
{
	for (; *text; text++) {
		if (out_len == sizeof(out))
			flush();
		out[out_len++] = *text;
	}
}

static void say_number(unsigned long value, unsigned base)
{
	char digits[20], text[21];
	int n = 0, i = 0;

	do
		digits[n++] = "0123456789abcdef"[value % base];
	while (value /= base);
	while (n)
		text[i++] = digits[--n];
	text[i] = 0;
	say(text);
}

_Noreturn void die(const char *what, long why)
{
	say("~! ");
	say(what);
	say(": ");
	if (why < 0)
		say("-");
	say_number(why < 0 ? -(unsigned long)why : (unsigned long)why, 10);
	say("\n");
	flush();
	sys(SYS_exit_group, 90);
	__builtin_unreachable();
}

static void say_record(const char *prefix)
{
	unsigned long len;
	const char *text = record_text(&len);

	for (unsigned long i = 0; i < len; i++) {
		char c[2] = { text[i], 0 };

		if (i == 0 || text[i - 1] == '\n')
			say(prefix);
		say(c);
	}
}

static void run_sequence(const char *directory, int keep_text)
{
	int status = 0;

	clear_record(keep_text);
	long pid = sys(SYS_fork);
	if (pid < 0)
		die("fork", pid);
	if (pid == 0) {
		opened_anew();
		open_files(directory);
		run_calls(&sequence, 0, sequence.count);
		put("end ");
		put_contents();
		put_maps();
		sys(SYS_exit_group, 0);
	}
	sys(SYS_wait4, pid, &status, 0, 0);
	put("status ");
	put_number(status);
	put_char('\n');
}

static int say_ktap(unsigned number)
{
	int same = record_hash() == sequence.expected;

	if (!same)
		say_record("# ");
	say(same ? "ok " : "not ok ");
	say_number(number, 10);
	say(" - ");
	say(sequence.name);
	say("\n");
	return !same;
}

static void say_hash(void)
{
	say_record("~+ ");
	say("~= ");
	say_number(sequence.id, 16);
	say(" ");
	say_number(record_hash(), 16);
	say("\n");
}

int main(int argc, char **argv)
{
	const char *input = argc > 2 ? argv[1] : "/sequences";
	const char *directory = argc > 2 ? argv[2] : "/tmp";
	unsigned count, number = 0, differing = 0;

	heap_below_window(argv);
	if (argc <= 2)
		mount("proc", "/proc", "proc", 0, NULL);
	opened_anew();
	catch_faults();
	begin_records();
	prepare();
	open_input(input);
	enum mode mode = read_mode(&count);
	if (mode == KTAP) {
		say("TAP version 14\n1..");
		say_number(count, 10);
		say("\n");
	}
	while (read_sequence(&sequence)) {
		run_sequence(directory, mode != COMPACT);
		number++;
		if (mode == KTAP)
			differing += (unsigned)say_ktap(number);
		else
			say_hash();
		flush();
	}
	say("~. ");
	say_number(number, 10);
	say("\n");
	flush();
	return differing || number != count;
}
