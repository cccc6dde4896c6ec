/* The address space that sequences work in: three holes, and no other page that a kernel could choose. */
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "differential.h"

#define TASK_SIZE 0x7ffffffff000UL
/* Below a stack nothing is placed, but it must be able to grow. */
#define GUARD (256 * PAGE)
#define MEMLOCK (24 * PAGE)
#define STACK (64 * PAGE)
/* From here on MAP_32BIT looks. */
#define WINDOW 0x40000000UL

extern char **environ;

struct hole holes[HOLES] = {
	{ 'm', 0x700000000000UL, 704 }, /* the main one: more than a stack's guard gap */
	{ 'l', 0x50000000UL, 64 },	/* low, where MAP_32BIT looks */
	{ 'h', 0, 64 },			/* the heap */
};

const struct hole *hole_of(unsigned long address)
{
	for (int i = 0; i < HOLES; i++)
		if (address >= holes[i].start && address <= holes[i].start + holes[i].pages * PAGE)
			return &holes[i];
	return NULL;
}

static unsigned long lowest(void)
{
	char text[32] = "";
	unsigned long number = 0;

	if (read_file("/proc/sys/vm/mmap_min_addr", text, sizeof(text) - 1) == 0)
		return 16 * PAGE;
	for (const char *c = text; *c >= '0' && *c <= '9'; c++)
		number = number * 10 + (unsigned long)(*c - '0');
	return number > PAGE ? number : PAGE;
}

static void take(unsigned long from, unsigned long to)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;

	if (from >= to)
		return;
	long at = sys(SYS_mmap, from, to - from, PROT_NONE, flags, -1, 0);
	if (at != (long)from)
		die("take the address space", at);
}

/* Takes what is free of [from, to) apart from the holes. */
static void take_outside_holes(unsigned long from, unsigned long to)
{
	/* By address: heap, low, main. */
	for (int i = HOLES - 1; i >= 0; i--) {
		const struct hole *hole = &holes[i];
		unsigned long end = hole->start + hole->pages * PAGE;

		if (hole->start >= to || end <= from)
			continue;
		if (hole->start < from || end > to)
			die("something is where a hole should be", (long)hole->start);
		take(from, hole->start);
		from = end;
	}
	take(from, to);
}

static void take_all(void)
{
	static char copy[1 << 16];
	const char *text = copy;
	unsigned long at = lowest();
	struct area area;

	/* A copy: the text changes with each mapping. */
	strncpy(copy, maps_text(), sizeof(copy) - 1);
	while (next_area(&text, &area)) {
		int is_stack = area.name_len == 7 && !memcmp(area.name, "[stack]", 7);
		unsigned long end = area.start - (is_stack ? GUARD : 0);

		if (area.start >= TASK_SIZE)
			break;
		if (at < end)
			take_outside_holes(at, end);
		at = area.end;
	}
	take_outside_holes(at, TASK_SIZE);
}

static unsigned long heap(void)
{
	return ((unsigned long)sys(SYS_brk, 0) + PAGE - 1) & -PAGE;
}

/* Linux draws the place of the heap from a GiB, the upper end of which is where MAP_32BIT looks: it would find a second hole there. Then
   the program begins anew, with another heap. */
void heap_below_window(char **argv)
{
	if (heap() + holes[2].pages * PAGE > WINDOW)
		die("begin anew with another heap", sys(SYS_execve, (long)"/proc/self/exe", (long)argv, (long)environ));
}

static void find_heap(void)
{
	unsigned long brk = heap();

	if (sys(SYS_brk, brk) != (long)brk)
		die("brk to a page's start", (long)brk);
	holes[2].start = brk;
}

/* So that the stack need not grow later, when its limit is small. */
void use_stack(void)
{
	volatile char room[16 * PAGE];

	for (unsigned long i = 0; i < sizeof(room); i += PAGE)
		room[i] = 0;
}

/* What one kernel has and the other not may fail here: it only makes them more alike. */
static void limit(int which, unsigned long value)
{
	const unsigned long both[2] = { value, value };
	long result = sys(SYS_setrlimit, which, both);

	if (result)
		die("setrlimit", result);
}

void prepare(void)
{
	const unsigned header[2] = { 0x20080522, 0 }, none[6] = { 0 };

	use_stack();
	find_heap();
	sys(SYS_prctl, PR_SET_THP_DISABLE, 1);
	limit(RLIMIT_MEMLOCK, MEMLOCK);
	limit(RLIMIT_STACK, STACK);
	/* No privileges: limits count. */
	sys(SYS_capset, header, none);
	take_all();
}
