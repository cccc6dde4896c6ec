/* The kernel's log by klogctl and /dev/kmsg: who reads what, and when. Prints what it finds; ends with 0 if all is as on Linux. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* Actions of klogctl, which no header names. */
enum { READ = 2, SIZE_UNREAD = 9, SIZE_BUFFER = 10 };

static int failed;
static int kmsg;
static char text[8192];

#define CHECK(what) check(#what, what)

static void check(const char *what, int holds)
{
	if (!holds) {
		printf("FAILED: %s (errno %d)\n", what, errno);
		failed++;
	}
}

static void says(const char *message)
{
	CHECK(write(kmsg, message, strlen(message)) == (ssize_t)strlen(message));
}

/* Reads all that is unread, `piece` bytes at a time at most: how much it was. `text` has the end of it. */
static int drain(int piece)
{
	char buffer[1024];
	int total = 0, unread, fill = 0;
	while ((unread = klogctl(SIZE_UNREAD, NULL, 0)) > 0) {
		int got = klogctl(READ, buffer, piece);
		if (got <= 0 || got > piece || got > unread) {
			CHECK(!"READ gives a piece of what is unread");
			break;
		}
		if (fill + got >= (int)sizeof text)
			fill = 0;
		memcpy(text + fill, buffer, got);
		fill += got;
		total += got;
	}
	text[fill] = 0;
	return total;
}

static void in_pieces(void)
{
	drain(sizeof text / 8);
	says("<4>log: a record that is read in pieces\n");
	int unread = klogctl(SIZE_UNREAD, NULL, 0);
	CHECK(drain(7) == unread);
	/* A facility of user space was added: 1 << 3 | 4. */
	CHECK(strncmp(text, "<12>[", 5) == 0);
	char *end = strchr(text, ']');
	CHECK(end && strcmp(end, "] log: a record that is read in pieces\n") == 0);
	CHECK(klogctl(READ, text, 0) == 0);
	errno = 0;
	CHECK(klogctl(READ, NULL, 1) == -1 && errno == EINVAL);
}

static void wakes(int signal)
{
	(void)signal;
}

static void waiting(void)
{
	struct sigaction action = { .sa_handler = wakes };
	sigaction(SIGALRM, &action, NULL);
	struct itimerval timer = { .it_value.tv_usec = 50000 };
	drain(512);
	setitimer(ITIMER_REAL, &timer, NULL);
	errno = 0;
	CHECK(klogctl(READ, text, 512) == -1 && errno == EINTR);

	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		usleep(50000);
		says("log: what was waited for\n");
		_exit(0);
	}
	int got = klogctl(READ, text, sizeof text - 1);
	text[got > 0 ? got : 0] = 0;
	CHECK(strstr(text, "what was waited for\n") != NULL);
	waitpid(pid, NULL, 0);
}

/* Of a record of /dev/kmsg, "priority,number,microseconds,flags;text", the number. */
static long number(const char *record)
{
	const char *comma = strchr(record, ',');
	return comma && isdigit(comma[1]) ? atol(comma + 1) : -1;
}

static void overtaken(void)
{
	char record[2048];
	int reader = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	CHECK(reader >= 0 && lseek(reader, 0, SEEK_END) == 0);
	errno = 0;
	CHECK(read(reader, record, sizeof record) == -1 && errno == EAGAIN);
	says("log: one\n");
	says("log: two\n");
	errno = 0;
	CHECK(read(reader, record, 4) == -1 && errno == EINVAL);
	/* What did not fit is lost to this reader. */
	ssize_t got = read(reader, record, sizeof record - 1);
	record[got > 0 ? got : 0] = 0;
	CHECK(strstr(record, ";log: two\n") != NULL);
	long first = number(record);

	/* Each record needs more than its text. */
	static const char FILL[] = "<7>log: a record that takes its share of the buffer, so that the oldest give way to it\n";
	long size = klogctl(SIZE_BUFFER, NULL, 0);
	CHECK(size >= 4096);
	for (long done = 0; done < 2 * size; done += sizeof FILL - 1)
		says(FILL);
	errno = 0;
	CHECK(read(reader, record, sizeof record) == -1 && errno == EPIPE);
	got = read(reader, record, sizeof record - 1);
	record[got > 0 ? got : 0] = 0;
	CHECK(strstr(record, "takes its share") != NULL && number(record) > first + 1);
	long second = number(record);
	got = read(reader, record, sizeof record - 1);
	CHECK(got > 0 && number(record) == second + 1);
	close(reader);

	/* The reader of klogctl was overtaken too and goes on with whole lines. */
	CHECK(klogctl(READ, text, 512) > 0 && text[0] == '<');
}

int main(void)
{
	kmsg = open("/dev/kmsg", O_WRONLY);
	CHECK(kmsg >= 0);
	in_pieces();
	waiting();
	overtaken();
	drain(1024);
	printf("log: %d failed\n", failed);
	return failed != 0;
}
