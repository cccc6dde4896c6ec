/* Instructions that touch memory, and what becomes of them. */
#define _GNU_SOURCE /* names of registers */
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "differential.h"

static struct fault last;
/* Where to go on after a fault. */
static unsigned long next_ip, next_sp;
/* What pages of zeroes write to if they are run: `add %al,(%rax)`. */
static unsigned long scratch[8];

static void on_fault(int signal, siginfo_t *info, void *context)
{
	ucontext_t *where = context;

	if (!next_ip)
		sys(SYS_exit_group, 100 + signal);
	last.signal = signal;
	last.code = info->si_code;
	last.address = (unsigned long)info->si_addr;
	where->uc_mcontext.gregs[REG_RIP] = (long)next_ip;
	where->uc_mcontext.gregs[REG_RSP] = (long)next_sp;
}

void catch_faults(void)
{
	const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	for (unsigned i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		sigaction(signals[i], &action, NULL);
}

/* Reads or writes a word, or calls what is there. 1 if that worked. */
int touch(enum touch how, unsigned long address, unsigned long *word, struct fault *fault)
{
	unsigned long value = *word;

	last.signal = 0;
	switch (how) {
	case READ:
		__asm__ volatile("lea 1f(%%rip), %%rcx\n\tmov %%rcx, %0\n\tmov %%rsp, %1\n\t"
				 "mov (%3), %2\n1:"
				 : "=m"(next_ip), "=m"(next_sp), "+a"(value)
				 : "D"(address)
				 : "rcx", "memory");
		break;
	case WRITE:
		__asm__ volatile("lea 1f(%%rip), %%rcx\n\tmov %%rcx, %0\n\tmov %%rsp, %1\n\t"
				 "mov %2, (%3)\n1:"
				 : "=m"(next_ip), "=m"(next_sp), "+a"(value)
				 : "D"(address)
				 : "rcx", "memory");
		break;
	case EXECUTE:
		value = (unsigned long)scratch;
		__asm__ volatile("lea 1f(%%rip), %%rcx\n\tmov %%rcx, %0\n\tmov %%rsp, %1\n\t"
				 /* What is below the stack pointer is the compiler's. */
				 "sub $128, %%rsp\n\tcall *%3\n\tadd $128, %%rsp\n1:"
				 : "=m"(next_ip), "=m"(next_sp), "+a"(value)
				 : "D"(address)
				 : "rcx", "rdx", "rbx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc",
				   "memory");
		break;
	}
	next_ip = 0;
	*word = value;
	*fault = last;
	return last.signal == 0;
}

void put_fault(const struct fault *fault, unsigned long named)
{
	put("signal ");
	put_number(fault->signal);
	put(" code ");
	put_number(fault->code);
	put(" at ");
	put_address(fault->address, named);
}

/* Hashes a page; 0 if it holds only zeroes. */
static unsigned long page_hash(const unsigned long *page)
{
	unsigned long any = 0, hash = 0xcbf29ce484222325;

	for (unsigned i = 0; i < PAGE / 8; i += 4)
		any |= page[i] | page[i + 1] | page[i + 2] | page[i + 3];
	if (!any)
		return 0;
	for (unsigned i = 0; i < PAGE / 8; i++)
		hash = (hash ^ page[i]) * 0x100000001b3;
	return hash | 1;
}

/* Reads all that may be read in the holes: a line an area, with a hash of its content. */
void put_contents(void)
{
	static char copy[1 << 18];
	const char *at = copy;
	struct area area;

	strncpy(copy, maps_text(), sizeof(copy) - 1);
	put("contents\n");
	while (next_area(&at, &area)) {
		unsigned long hash = 0xcbf29ce484222325, zeroes = 0, faults = 0, word = 0;
		struct fault fault = { 0 };

		if (!cut_to_hole(&area) || area.perms[0] != 'r')
			continue;
		for (unsigned long page = area.start; page < area.end; page += PAGE) {
			unsigned long one;

			if (!touch(READ, page, &word, &fault)) {
				faults++;
				hash = (hash ^ (unsigned long)(fault.signal << 8 | fault.code)) * 0x100000001b3;
				continue;
			}
			one = page_hash((const unsigned long *)page);
			zeroes += !one;
			hash = (hash ^ one) * 0x100000001b3;
		}
		put("  ");
		put_address(area.start, 0);
		put(" hash ");
		put_hex(hash);
		put(" zeroes ");
		put_number((long)zeroes);
		if (faults) {
			put(" faults ");
			put_number((long)faults);
		}
		put_char('\n');
	}
}
