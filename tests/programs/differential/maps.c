/* What /proc says about the holes. */
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "differential.h"

static char text[1 << 18];
static int maps_file = -1;

/* /proc/self is looked up when a file is opened. */
void opened_anew(void)
{
	if (maps_file >= 0)
		sys(SYS_close, maps_file);
	maps_file = (int)sys(SYS_open, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (maps_file < 0)
		die("open /proc/self/maps", maps_file);
}

static unsigned read_whole(int file, char *into, unsigned room)
{
	unsigned len = 0;

	while (len < room) {
		long got = sys(SYS_pread64, file, into + len, room - len, len);

		if (got < 0)
			die("read /proc", got);
		if (got == 0)
			break;
		len += (unsigned)got;
	}
	return len;
}

/* 0 if there is no such file. */
unsigned read_file(const char *path, char *into, unsigned room)
{
	int file = (int)sys(SYS_open, path, O_RDONLY | O_CLOEXEC);
	unsigned len;

	if (file < 0)
		return 0;
	len = read_whole(file, into, room);
	sys(SYS_close, file);
	return len;
}

const char *maps_text(void)
{
	unsigned len = read_whole(maps_file, text, sizeof(text) - 1);

	if (len == sizeof(text) - 1)
		die("/proc/self/maps is too long", len);
	text[len] = 0;
	return text;
}

static unsigned long hex(const char **at)
{
	unsigned long number = 0;

	for (;; (*at)++) {
		char c = **at;

		if (c >= '0' && c <= '9')
			number = number << 4 | (unsigned long)(c - '0');
		else if (c >= 'a' && c <= 'f')
			number = number << 4 | (unsigned long)(c - 'a' + 10);
		else
			return number;
	}
}

/* One line of maps, or the first of an area of smaps; 0 at the end of the text. */
int next_area(const char **from, struct area *area)
{
	const char *at = *from;

	if (!*at)
		return 0;
	area->start = hex(&at);
	at++;
	area->end = hex(&at);
	at++;
	memcpy(area->perms, at, 4);
	area->perms[4] = 0;
	at += 5;
	area->offset = hex(&at);
	at++;
	/* The device: numbers of file systems mean nothing elsewhere. */
	while (*at != ' ')
		at++;
	at++;
	area->inode = 0;
	while (*at >= '0' && *at <= '9')
		area->inode = area->inode * 10 + (unsigned long)(*at++ - '0');
	while (*at == ' ')
		at++;
	area->name = at;
	while (*at && *at != '\n')
		at++;
	area->name_len = (int)(at - area->name);
	*from = *at ? at + 1 : at;
	return 1;
}

/* Files by their order here, since inodes have other numbers elsewhere. */
static void put_file(const struct area *area)
{
	static unsigned long seen[64];
	static unsigned count;
	unsigned i;

	if (!area) {
		count = 0;
		return;
	}
	for (i = 0; i < count && seen[i] != area->inode; i++)
		;
	if (i == count && count < 64)
		seen[count++] = area->inode;
	put(" #");
	put_number(i);
}

static int has(const struct area *area, const char *part)
{
	int len = (int)strlen(part);

	for (int i = 0; i + len <= area->name_len; i++)
		if (!memcmp(area->name + i, part, (size_t)len))
			return 1;
	return 0;
}

static void put_name(const struct area *area)
{
	if (has(area, "differential."))
		put(has(area, "(deleted)") ? " file (deleted)" : " file");
	else if (area->name_len)
		put_char(' ');
	if (!has(area, "differential."))
		for (int i = 0; i < area->name_len; i++)
			put_char(area->name[i]);
}

/* Whether part of an area is in a hole; then it is cut to that. */
int cut_to_hole(struct area *area)
{
	for (int i = 0; i < HOLES; i++) {
		unsigned long start = holes[i].start, end = start + holes[i].pages * PAGE;

		if (area->start >= end || area->end <= start)
			continue;
		if (area->start < start)
			area->start = start;
		if (area->end > end)
			area->end = end;
		return 1;
	}
	return 0;
}

static void put_area(const struct area *area)
{
	put("  ");
	put_address(area->start, 0);
	put_char('-');
	/* The end of a hole is the hole's. */
	put_address(area->end, 0);
	put_char(' ');
	put(area->perms);
	put_char(' ');
	put_hex(area->offset);
	if (area->inode)
		put_file(area);
	put_name(area);
	put_char('\n');
}

/* The areas in the holes, a line each. */
void put_maps(void)
{
	const char *at = maps_text();
	struct area area;

	put_file(NULL);
	while (next_area(&at, &area))
		if (cut_to_hole(&area))
			put_area(&area);
}

static const char *const counted[] = { "Rss:",		"Pss:",		  "Shared_Clean:", "Shared_Dirty:", "Private_Clean:",
				       "Private_Dirty:", "Anonymous:", "Locked:" };

/* The line of smaps that begins here, if it is one that is compared. */
static void put_smaps_line(const char *line, unsigned len)
{
	if (len > 8 && !memcmp(line, "VmFlags:", 8)) {
		put("   ");
		for (unsigned i = 8; i + 2 < len; i += 3) {
			/* Soft-dirty is a choice of the kernel's configuration. */
			if (line[i + 1] == 's' && line[i + 2] == 'd')
				continue;
			put_char(' ');
			put_char(line[i + 1]);
			put_char(line[i + 2]);
		}
		put_char('\n');
		return;
	}
	for (unsigned k = 0; k < sizeof(counted) / sizeof(*counted); k++) {
		size_t name = strlen(counted[k]);
		unsigned i = (unsigned)name;

		if (len < name || memcmp(line, counted[k], name))
			continue;
		put("    ");
		put(counted[k]);
		put_char(' ');
		while (i < len && line[i] == ' ')
			i++;
		for (; i < len && line[i] != ' '; i++)
			put_char(line[i]);
		put_char('\n');
	}
}

/* /proc/self/smaps of the holes: what is resident, and flags. */
void put_smaps(void)
{
	unsigned len = read_file("/proc/self/smaps", text, sizeof(text) - 1);
	int wanted = 0;
	const char *at = text;

	text[len] = 0;
	put_file(NULL);
	while (*at) {
		const char *end = strchr(at, '\n');
		struct area area;

		if (!end)
			break;
		if (*at >= 'A' && *at <= 'Z') {
			if (wanted)
				put_smaps_line(at, (unsigned)(end - at));
			at = end + 1;
			continue;
		}
		if (!next_area(&at, &area))
			break;
		wanted = cut_to_hole(&area);
		if (wanted)
			put_area(&area);
	}
}

/* A number of /proc/self/status. */
unsigned long status_field(const char *name)
{
	static char status[4096];
	unsigned long number = 0;

	status[read_file("/proc/self/status", status, sizeof(status) - 1)] = 0;
	const char *at = strstr(status, name);
	if (!at)
		die(name, 0);
	for (at += strlen(name); *at == ':' || *at == ' ' || *at == '\t'; at++)
		;
	while (*at >= '0' && *at <= '9')
		number = number * 10 + (unsigned long)(*at++ - '0');
	return number;
}
