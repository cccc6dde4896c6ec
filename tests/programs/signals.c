/* Signals, setjmp and timers by the C library. Prints what it finds; ends with 0 if all is as on Linux. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failed;
static volatile sig_atomic_t count;
static volatile void *fault_address;
static sigjmp_buf again;

#define CHECK(what) check(#what, what)

static void check(const char *what, int holds)
{
	if (!holds) {
		printf("FAILED: %s (errno %d)\n", what, errno);
		failed++;
	}
}

static void counts(int signal)
{
	(void)signal;
	count++;
}

static void jumps(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	fault_address = info->si_addr;
	siglongjmp(again, 1);
}

int main(void)
{
	struct sigaction action = { .sa_handler = counts };
	sigemptyset(&action.sa_mask);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(raise(SIGUSR1) == 0 && count == 1);

	/* A null pointer, survived by a jump; twice, since the mask comes back. */
	struct sigaction faults = { .sa_sigaction = jumps, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &faults, NULL);
	for (int turn = 0; turn < 2; turn++) {
		volatile char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (sigsetjmp(again, 1) == 0) {
			page[turn] = 1;
			CHECK(!"a page without rights was written");
		}
		CHECK(fault_address == (void *)(page + turn));
	}

	/* A timer that interrupts sigsuspend. */
	sigaction(SIGALRM, &action, NULL);
	struct itimerval timer = { .it_value.tv_usec = 20000, .it_interval.tv_usec = 20000 };
	count = 0;
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
	sigset_t none;
	sigemptyset(&none);
	while (count < 3)
		sigsuspend(&none);
	memset(&timer, 0, sizeof timer);
	setitimer(ITIMER_REAL, &timer, NULL);

	/* A child and how it ends. */
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0)
		abort();
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);

	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	union sigval value = { .sival_int = 42 };
	CHECK(sigqueue(getpid(), SIGRTMIN, value) == 0);
	siginfo_t info;
	struct timespec limit = { .tv_sec = 5 };
	CHECK(sigtimedwait(&set, &info, &limit) == SIGRTMIN && info.si_value.sival_int == 42);

	double sum = 0;
	for (int turn = 1; turn < 1000; turn++)
		sum += 1.0 / turn;
	printf("signals: sum %.6f, %d failed\n", sum, failed);
	return failed != 0;
}
