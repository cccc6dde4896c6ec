/*
 * Carries out sequences of calls on memory and records what came of each, so that two kernels can be compared.
 *
 * Addresses are compared by where they are in one of three holes; everything else of the address space is taken, so that every
 * kernel has the same choices. tests/differential makes the sequences and reads the records.
 */
#ifndef DIFFERENTIAL_H
#define DIFFERENTIAL_H

#include <stddef.h>

#define PAGE 4096UL

/* Calls of one sequence. */
#define CALLS 1024

/* Where sequences work. The heap's place is the kernel's choice, and found out. */
struct hole {
	char letter;
	unsigned long start, pages;
};

#define HOLES 3
extern struct hole holes[HOLES]; /* main, low, heap */

struct call {
	const struct operation *operation;
	unsigned long v[6];
};

struct sequence {
	unsigned long id;
	unsigned long expected; /* hash of the other kernel's record; 0 if not known */
	char name[96];
	unsigned count;
	struct call calls[CALLS];
};

/* sys.c: system calls as the kernel returns them. */
#define sys(...) sys_of(__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define sys_of(n, a, b, c, d, e, f, ...) \
	sys6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
long sys6(long number, long a, long b, long c, long d, long e, long f);

/* input.c */
enum mode { COMPACT, FULL, KTAP };
void open_input(const char *path);
enum mode read_mode(unsigned *count);
int read_sequence(struct sequence *into);

/* arena.c */
void prepare(void);
void heap_below_window(char **argv);
void use_stack(void);
const struct hole *hole_of(unsigned long address);

/* record.c: text in memory that forked processes share. */
void begin_records(void);
void clear_record(int keep_text);
unsigned long record_hash(void);
const char *record_text(unsigned long *len);
void put(const char *text);
void put_char(char c);
void put_hex(unsigned long value);
void put_number(long value);
void put_address(unsigned long address, unsigned long named);

/* maps.c */
struct area {
	unsigned long start, end, offset, inode;
	char perms[5];
	const char *name;
	int name_len;
};
void opened_anew(void); /* after fork */
unsigned read_file(const char *path, char *into, unsigned room);
int next_area(const char **text, struct area *area);
int cut_to_hole(struct area *area);
const char *maps_text(void);
void put_maps(void);
void put_smaps(void);
unsigned long status_field(const char *name);

/* touch.c */
enum touch { READ, WRITE, EXECUTE };
struct fault {
	int signal, code;
	unsigned long address;
};
void catch_faults(void);
int touch(enum touch how, unsigned long address, unsigned long *word, struct fault *fault);
void put_fault(const struct fault *fault, unsigned long named);
void put_contents(void);

/* calls.c */
const struct operation *operation_named(const char *name, size_t len);
void open_files(const char *directory);
void run_calls(const struct sequence *sequence, unsigned from, unsigned to);

_Noreturn void die(const char *what, long why);
void say(const char *text);

#endif
