/* The calls: what each does, and what of its result is recorded. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "differential.h"

/* Pages of the file that mappings are of, and bytes of its last. */
#define FILE_PAGES 10
#define FILE_TAIL 104

struct operation {
	const char *name;
	void (*run)(const struct call *call, unsigned index);
	/* Whether the areas may look different afterwards. */
	int changes;
};

/* By the number that sequences use: the file, the same for reading only and for writing only, a pipe, a directory. */
static int files[5];
static int depth;

/* A word that can be run: it begins with `ret`. */
static unsigned long word_of(unsigned index)
{
	return 0xc3 | (unsigned long)(index + 1) << 8 | (unsigned long)depth << 40;
}

void open_files(const char *directory)
{
	char path[128];
	int pipes[2];

	strncpy(path, directory, 64);
	path[63] = 0;
	strcat(path, "/differential.");
	for (long rest = sys(SYS_getpid); rest; rest /= 10) {
		size_t len = strlen(path);

		path[len] = (char)('0' + rest % 10);
		path[len + 1] = 0;
	}
	files[0] = (int)sys(SYS_open, path, O_RDWR | O_CREAT | O_EXCL, 0600);
	files[1] = (int)sys(SYS_open, path, O_RDONLY);
	files[2] = (int)sys(SYS_open, path, O_WRONLY);
	if (files[0] < 0 || files[1] < 0 || files[2] < 0)
		die(path, files[0]);
	sys(SYS_unlink, path);
	if (sys(SYS_pipe, pipes))
		die("pipe", 0);
	files[3] = pipes[0];
	files[4] = (int)sys(SYS_open, "/", O_RDONLY | O_DIRECTORY);
	sys(SYS_ftruncate, files[0], FILE_PAGES * PAGE + FILE_TAIL);
	for (unsigned page = 0; page <= FILE_PAGES; page++) {
		unsigned long word = word_of(0xf000 + page);

		sys(SYS_pwrite64, files[0], &word, sizeof(word), page * PAGE);
	}
}

static void put_result(long result)
{
	put_number(result);
	put_char('\n');
}

/* An error, or an address. */
static void put_place(long result, unsigned long named)
{
	if (result < 0 && result > -4096)
		put_number(result);
	else
		put_address((unsigned long)result, named);
	put_char('\n');
}

static void do_mmap(const struct call *call, unsigned index)
{
	const unsigned long *v = call->v;
	int fd = v[4] < sizeof(files) / sizeof(*files) ? files[v[4]] : v[4] == 0xff ? 999 : -1;

	(void)index;
	put_place(sys(SYS_mmap, v[0], v[1], v[2], v[3], fd, v[5]), v[0]);
}

static void do_mremap(const struct call *call, unsigned index)
{
	const unsigned long *v = call->v;

	(void)index;
	put_place(sys(SYS_mremap, v[0], v[1], v[2], v[3], v[4]), v[0]);
}

static void do_brk(const struct call *call, unsigned index)
{
	(void)index;
	put_place(sys(SYS_brk, call->v[0]), call->v[0]);
}

#define PLAIN(name, number)                                                  \
	static void do_##name(const struct call *call, unsigned index)       \
	{                                                                    \
		const unsigned long *v = call->v;                            \
		(void)index;                                                 \
		put_result(sys(number, v[0], v[1], v[2], v[3], v[4], v[5])); \
	}

PLAIN(munmap, SYS_munmap)
PLAIN(mprotect, SYS_mprotect)
PLAIN(madvise, SYS_madvise)
PLAIN(mlock, SYS_mlock)
PLAIN(mlock2, SYS_mlock2)
PLAIN(munlock, SYS_munlock)
PLAIN(mlockall, SYS_mlockall)
PLAIN(munlockall, SYS_munlockall)
PLAIN(msync, SYS_msync)

/* Nodes are bits of a word; all ones stand for a word that cannot be read. */
static void do_mbind(const struct call *call, unsigned index)
{
	const unsigned long *v = call->v;
	const unsigned long *nodes = v[3] == ~0UL ? (const unsigned long *)8 : &v[3];

	(void)index;
	put_result(sys(SYS_mbind, v[0], v[1], v[2], nodes, v[4], v[5]));
}

static void do_policy(const struct call *call, unsigned index)
{
	int mode = -1;
	unsigned long nodes = 0;
	long result = sys(SYS_get_mempolicy, &mode, &nodes, 65, call->v[0], 2 /* MPOL_F_ADDR */);

	(void)index;
	if (!result) {
		put("mode ");
		put_number(mode);
		put(" nodes ");
		put_hex(nodes);
		put_char(' ');
	}
	put_result(result);
}

/* The third value is where the answer goes; 0 for memory of our own. */
static void do_mincore(const struct call *call, unsigned index)
{
	static unsigned char resident[4096];
	const unsigned long *v = call->v;
	unsigned long pages = (v[1] + PAGE - 1) / PAGE;
	long result = sys(SYS_mincore, v[0], v[1], v[2] ? v[2] : (unsigned long)resident);

	(void)index;
	put_number(result);
	if (result == 0 && v[2] == 0 && pages && pages <= sizeof(resident)) {
		put_char(' ');
		for (unsigned long i = 0; i < pages; i++)
			put_char('0' + (resident[i] & 1));
	}
	put_char('\n');
}

static void one_touch(enum touch how, unsigned long address, unsigned index)
{
	unsigned long word = word_of(index);
	struct fault fault;

	if (!touch(how, address, &word, &fault)) {
		put_fault(&fault, address);
	} else if (how == READ) {
		put_hex(word);
	} else {
		put("done");
	}
}

static void do_read(const struct call *call, unsigned index)
{
	one_touch(READ, call->v[0], index);
	put_char('\n');
}

static void do_write(const struct call *call, unsigned index)
{
	one_touch(WRITE, call->v[0], index);
	put_char('\n');
}

static void do_execute(const struct call *call, unsigned index)
{
	one_touch(EXECUTE, call->v[0], index);
	put_char('\n');
}

/* A word to each of some pages, until one faults. */
static void do_fill(const struct call *call, unsigned index)
{
	for (unsigned long i = 0; i < call->v[1]; i++) {
		unsigned long word = word_of(index) + (i << 24);
		struct fault fault;

		if (!touch(WRITE, call->v[0] + i * PAGE, &word, &fault)) {
			put_number((long)i);
			put_char(' ');
			put_fault(&fault, call->v[0]);
			put_char('\n');
			return;
		}
	}
	put("done\n");
}

/* A touch, and how many faults it took: 0 reads, 1 writes. */
static void do_count(const struct call *call, unsigned index)
{
	static struct rusage before, after;
	static unsigned long own;
	unsigned long word = 0;
	struct fault fault;

	/*
	 * What the program itself touches must not fault in between: its stack, the handler of a signal, its variables. Nothing is at
	 * address 8.
	 */
	use_stack();
	touch(READ, 8, &word, &fault);
	touch(WRITE, (unsigned long)&own, &word, &fault);
	sys(SYS_getrusage, RUSAGE_SELF, &after);
	sys(SYS_getrusage, RUSAGE_SELF, &before);
	word = word_of(index);
	int worked = touch(call->v[1] ? WRITE : READ, call->v[0], &word, &fault);

	sys(SYS_getrusage, RUSAGE_SELF, &after);
	if (worked)
		put("done");
	else
		put_fault(&fault, call->v[0]);
	put(" minor ");
	put_number(after.ru_minflt - before.ru_minflt);
	put(" major ");
	put_number(after.ru_majflt - before.ru_majflt);
	put_char('\n');
}

static void do_contents(const struct call *call, unsigned index)
{
	(void)call;
	(void)index;
	put_contents();
}

static void do_smaps(const struct call *call, unsigned index)
{
	(void)call;
	(void)index;
	put_char('\n');
	put_smaps();
}

/* The kernel copies from the file to memory, and back. */
static void do_pread(const struct call *call, unsigned index)
{
	(void)index;
	put_result(sys(SYS_pread64, files[0], call->v[0], call->v[1], call->v[2]));
}

static void do_pwrite(const struct call *call, unsigned index)
{
	(void)index;
	put_result(sys(SYS_pwrite64, files[0], call->v[0], call->v[1], call->v[2]));
}

static void do_truncate(const struct call *call, unsigned index)
{
	(void)index;
	put_result(sys(SYS_ftruncate, files[0], call->v[0]));
}

/* RLIMIT_AS and RLIMIT_DATA count from what is in use, which is not the same elsewhere. */
static void do_limit(const struct call *call, unsigned index)
{
	unsigned long both[2] = { call->v[1], ~0UL };

	(void)index;
	if (call->v[0] == RLIMIT_AS)
		both[0] += status_field("VmSize") * 1024;
	else if (call->v[0] == RLIMIT_DATA)
		both[0] += status_field("VmData") * 1024;
	else
		both[1] = both[0];
	put_result(sys(SYS_setrlimit, call->v[0], both));
}

static void do_fork(const struct call *call, unsigned index)
{
	/* run_calls does it. */
	(void)call;
	(void)index;
}

static const struct operation operations[] = {
	{ "mmap", do_mmap, 1 },
	{ "munmap", do_munmap, 1 },
	{ "mprotect", do_mprotect, 1 },
	{ "mremap", do_mremap, 1 },
	{ "madvise", do_madvise, 1 },
	{ "brk", do_brk, 1 },
	{ "mlock", do_mlock, 1 },
	{ "mlock2", do_mlock2, 1 },
	{ "munlock", do_munlock, 1 },
	{ "mlockall", do_mlockall, 1 },
	{ "munlockall", do_munlockall, 1 },
	{ "msync", do_msync, 0 },
	{ "mincore", do_mincore, 0 },
	{ "mbind", do_mbind, 1 },
	{ "policy", do_policy, 0 },
	{ "read", do_read, 0 },
	{ "write", do_write, 0 },
	{ "execute", do_execute, 0 },
	{ "fill", do_fill, 1 },
	{ "count", do_count, 0 },
	{ "contents", do_contents, 0 },
	{ "smaps", do_smaps, 0 },
	{ "pread", do_pread, 0 },
	{ "pwrite", do_pwrite, 0 },
	{ "truncate", do_truncate, 0 },
	{ "limit", do_limit, 0 },
	{ "fork", do_fork, 0 },
};

const struct operation *operation_named(const char *name, size_t len)
{
	for (unsigned i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		if (strlen(operations[i].name) == len && !memcmp(operations[i].name, name, len))
			return &operations[i];
	return NULL;
}

/* Waits for the other process's byte; 0 if it is gone. */
static int wait_for(const int pipe[2])
{
	char byte;

	return sys(SYS_read, pipe[0], &byte, 1) == 1;
}

static void tell(const int pipe[2])
{
	sys(SYS_write, pipe[1], "", 1);
}

static void must_pipe(int pipe[2])
{
	long result = sys(SYS_pipe, pipe);

	if (result)
		die("pipe", result);
}

static void must_close(int fd)
{
	sys(SYS_close, fd);
}

/*
 * A child does the first calls, then the parent the next ones while the child waits; then the child looks at its memory and ends, and the
 * parent looks at its own. So each sees what the other must not change.
 */
static void run_fork(const struct sequence *sequence, unsigned index, unsigned middle, unsigned end)
{
	int done[2], go[2], status = 0;

	must_pipe(done);
	must_pipe(go);
	long pid = sys(SYS_fork);

	if (pid < 0) {
		put_result(pid);
		return;
	}
	if (pid == 0) {
		depth++;
		opened_anew();
		must_close(done[0]);
		must_close(go[1]);
		run_calls(sequence, index + 1, middle);
		tell(done);
		wait_for(go);
		put_number(index);
		put(" child ");
		put_contents();
		sys(SYS_exit_group, 0);
	}
	must_close(done[1]);
	must_close(go[0]);
	if (wait_for(done)) {
		run_calls(sequence, middle, end);
		tell(go);
	}
	sys(SYS_wait4, pid, &status, 0, 0);
	must_close(done[0]);
	must_close(go[1]);
	put_number(index);
	put(" parent status ");
	put_number(status);
	put_char(' ');
	put_contents();
}

static unsigned within(unsigned from, unsigned long count, unsigned end)
{
	return count > end - from ? end : from + (unsigned)count;
}

/* Carries calls [from, to) out. Each record begins with the call's number. */
void run_calls(const struct sequence *sequence, unsigned from, unsigned to)
{
	unsigned index = from;

	while (index < to) {
		const struct call *call = &sequence->calls[index];

		put_number(index);
		put_char(' ');
		if (call->operation->run == do_fork) {
			unsigned middle = within(index + 1, call->v[0], to);
			unsigned end = within(middle, call->v[1], to);

			put("fork\n");
			run_fork(sequence, index, middle, end);
			index = end;
			continue;
		}
		call->operation->run(call, index);
		if (call->operation->changes)
			put_maps();
		index++;
	}
}
