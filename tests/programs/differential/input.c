/*
 * The description of sequences, lines of text:
 *
 *   mode compact|full|ktap COUNT
 *   S ID CALLS HASH NAME
 *   CALL VALUE...
 *
 * Values are hexadecimal; a letter before one says from which hole's start it counts.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "differential.h"

static char buffer[1 << 16];
static unsigned filled, used;
static int file;

void open_input(const char *path)
{
	file = (int)sys(SYS_open, path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		die(path, file);
}

static int next_char(void)
{
	if (used == filled) {
		long got = sys(SYS_read, file, buffer, sizeof(buffer));

		if (got < 0)
			die("read the sequences", got);
		if (got == 0)
			return -1;
		filled = (unsigned)got;
		used = 0;
	}
	return (unsigned char)buffer[used++];
}

/* The next line without its end; 0 at the end. */
static int read_line(char *line, unsigned room)
{
	unsigned len = 0;

	for (;;) {
		int c = next_char();

		if (c < 0 && len == 0)
			return 0;
		if (c < 0 || c == '\n')
			break;
		if (len + 1 < room)
			line[len++] = (char)c;
	}
	line[len] = 0;
	return 1;
}

/* The next word of a line; "" if there is none. */
static char *word(char **line)
{
	char *start = *line;

	while (*start == ' ')
		start++;
	char *end = start;
	while (*end && *end != ' ')
		end++;
	*line = *end ? end + 1 : end;
	*end = 0;
	return start;
}

static unsigned long value(const char *text)
{
	unsigned long base = 0, number = 0;

	for (int i = 0; i < HOLES; i++)
		if (text[0] == holes[i].letter) {
			base = holes[i].start;
			text++;
			break;
		}
	for (; *text; text++) {
		unsigned digit = *text <= '9' ? (unsigned)(*text - '0') : (unsigned)(*text - 'a' + 10);

		if (digit > 15)
			die("a value that is not hexadecimal", *text);
		number = number << 4 | digit;
	}
	return base + number;
}

enum mode read_mode(unsigned *count)
{
	char text[64], *rest = text;

	if (!read_line(text, sizeof(text)) || strcmp(word(&rest), "mode"))
		die("the sequences do not begin with a mode", 0);
	const char *mode = word(&rest);
	*count = (unsigned)value(word(&rest));
	return !strcmp(mode, "full") ? FULL : !strcmp(mode, "ktap") ? KTAP : COMPACT;
}

int read_sequence(struct sequence *into)
{
	char text[256], *rest = text;

	if (!read_line(text, sizeof(text)))
		return 0;
	if (strcmp(word(&rest), "S"))
		die("a line that begins no sequence", 0);
	into->id = value(word(&rest));
	into->count = (unsigned)value(word(&rest));
	into->expected = value(word(&rest));
	const char *title = word(&rest);
	unsigned len = 0;
	for (; title[len] && len + 1 < sizeof(into->name); len++)
		into->name[len] = title[len];
	into->name[len] = 0;
	if (into->count > CALLS)
		die("a sequence of too many calls", into->count);
	for (unsigned i = 0; i < into->count; i++) {
		struct call *call = &into->calls[i];

		rest = text;
		if (!read_line(text, sizeof(text)))
			die("a sequence that ends early", (long)into->id);
		const char *name = word(&rest);
		call->operation = operation_named(name, strlen(name));
		if (!call->operation)
			die(name, 0);
		for (int k = 0; k < 6; k++)
			call->v[k] = value(word(&rest));
	}
	return 1;
}
