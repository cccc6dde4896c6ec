/* The record of a sequence: a hash of its text, and the text if it is wanted. */
#include <sys/mman.h>
#include <sys/syscall.h>

#include "differential.h"

#define ROOM (4UL << 20)

/* Shared, because a sequence forks, and each process goes on with the same record. */
static struct record {
	unsigned long hash, len;
	int keep;
	char text[];
} *record;

void begin_records(void)
{
	long at = sys(SYS_mmap, 0, sizeof(struct record) + ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (at < 0 && at > -4096)
		die("mmap of the record", at);
	record = (struct record *)at;
}

void clear_record(int keep_text)
{
	record->hash = 0xcbf29ce484222325;
	record->len = 0;
	record->keep = keep_text;
}

unsigned long record_hash(void)
{
	/* 0 means that nothing is known. */
	return record->hash ? record->hash : 1;
}

const char *record_text(unsigned long *len)
{
	*len = record->len;
	return record->text;
}

/* FNV-1a. */
void put_char(char c)
{
	record->hash = (record->hash ^ (unsigned char)c) * 0x100000001b3;
	if (record->keep && record->len < ROOM)
		record->text[record->len++] = c;
}

void put(const char *text)
{
	while (*text)
		put_char(*text++);
}

void put_hex(unsigned long value)
{
	char digits[16];
	int n = 0;

	do
		digits[n++] = "0123456789abcdef"[value & 15];
	while (value >>= 4);
	while (n)
		put_char(digits[--n]);
}

void put_number(long value)
{
	unsigned long rest = value < 0 ? -(unsigned long)value : (unsigned long)value;
	char digits[20];
	int n = 0;

	if (value < 0)
		put_char('-');
	do
		digits[n++] = '0' + rest % 10;
	while (rest /= 10);
	while (n)
		put_char(digits[--n]);
}

/* An address by its hole; one outside only if the call named it, since it means nothing on the other kernel. */
void put_address(unsigned long address, unsigned long named)
{
	const struct hole *hole = hole_of(address);

	if (hole) {
		put_char(hole->letter);
		put_hex(address - hole->start);
	} else if (address == 0) {
		put_char('0');
	} else if (address == named) {
		put("named");
	} else {
		put("elsewhere");
	}
}
