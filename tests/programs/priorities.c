/* Nice values and policies as every program may set them, and who gets the CPU then. Ends with 0 if all is as on Linux.
 * Who may not raise priorities (no root) is told so, and tests the rest. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failed;

#define CHECK(what) check(#what, what)

static void check(const char *what, int holds)
{
	if (!holds) {
		printf("FAILED: %s (errno %d)\n", what, errno);
		failed++;
	}
}

/* The call itself: musl's wrappers of scheduling calls say ENOSYS. */
static long setscheduler(pid_t pid, int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };
	return syscall(SYS_sched_setscheduler, pid, policy, &param);
}

static void values(void)
{
	CHECK(getpriority(PRIO_PROCESS, 0) == 0);
	CHECK(setpriority(PRIO_PROCESS, 0, 7) == 0 && getpriority(PRIO_PROCESS, 0) == 7);
	CHECK(setpriority(PRIO_PROCESS, getpid(), 99) == 0 && getpriority(PRIO_PROCESS, getpid()) == 19);
	errno = 0;
	CHECK(getpriority(PRIO_PROCESS, 29999) == -1 && errno == ESRCH);
	errno = 0;
	CHECK(getpriority(3, 0) == -1 && errno == EINVAL);
	pid_t child = fork();
	if (child == 0)
		_exit(getpriority(PRIO_PROCESS, 0) + 1);
	int status = 0;
	CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 20);

	CHECK(syscall(SYS_sched_getscheduler, 0) == SCHED_OTHER);
	CHECK(setscheduler(0, SCHED_OTHER, 1) == -1 && errno == EINVAL);
	CHECK(setscheduler(0, 4, 0) == -1 && errno == EINVAL);
	CHECK(setscheduler(0, SCHED_FIFO, 0) == -1 && errno == EINVAL);
	CHECK(setscheduler(-1, SCHED_OTHER, 0) == -1 && errno == EINVAL);
	CHECK(setscheduler(29999, SCHED_OTHER, 0) == -1 && errno == ESRCH);
	CHECK(syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, 0) == -1 && errno == EINVAL);
	CHECK(setscheduler(0, SCHED_BATCH, 0) == 0 && syscall(SYS_sched_getscheduler, 0) == SCHED_BATCH);
	CHECK(setscheduler(0, SCHED_OTHER, 0) == 0);
	CHECK(sched_get_priority_max(SCHED_RR) == 99 && sched_get_priority_min(SCHED_FIFO) == 1);
	CHECK(sched_get_priority_max(SCHED_OTHER) == 0);
	CHECK(sched_get_priority_max(4) == -1 && errno == EINVAL);
}

/* Two children count on one CPU; the second is started with `nice`. Returns how often the first counted when the second had
 * had a chance to count, over how often the second did. */
static double ratio(int nice)
{
	atomic_long *counts =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
	pid_t children[2];
	for (int i = 0; i < 2; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			setpriority(PRIO_PROCESS, 0, i ? nice : 0);
			atomic_fetch_add(&counts[2], 1);
			while (atomic_load(&counts[2]) < 2)
				sched_yield();
			for (;;)
				atomic_fetch_add(&counts[i], 1);
		}
	}
	struct timespec half = { .tv_nsec = 500000000 };
	nanosleep(&half, NULL);
	for (int i = 0; i < 2; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
	}
	return (double)atomic_load(&counts[0]) / (double)(atomic_load(&counts[1]) + 1);
}

/* A real-time task keeps its CPU from others until it waits. */
static void real_time(void)
{
	if (setscheduler(0, SCHED_FIFO, 10) != 0) {
		CHECK(errno == EPERM);
		printf("not root: no real-time policies\n");
		return;
	}
	CHECK(syscall(SYS_sched_getscheduler, 0) == SCHED_FIFO);
	struct sched_param param = { 0 };
	CHECK(syscall(SYS_sched_getparam, 0, &param) == 0 && param.sched_priority == 10);
	atomic_int *ran = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = fork();
	if (child == 0) {
		atomic_store(ran, 1);
		setscheduler(0, SCHED_OTHER, 0);
		atomic_store(ran, 2);
		_exit(0);
	}
	/* Of the same priority it stands behind; then behind for its policy. */
	struct timespec begin, now;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < 60);
	CHECK(atomic_load(ran) == 0);
	CHECK(waitpid(child, NULL, 0) == child && atomic_load(ran) == 2);
	CHECK(setscheduler(0, SCHED_RR | 0x40000000, 10) == 0);
	child = fork();
	if (child == 0)
		_exit(syscall(SYS_sched_getscheduler, 0) == SCHED_OTHER ? 0 : 1);
	int status = 1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(setscheduler(0, SCHED_OTHER, 0) == 0);
}

int main(void)
{
	pid_t child = fork();
	if (child == 0) {
		values();
		_exit(failed ? 1 : 0);
	}
	int status = 1;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	/* Weights are 1024 and 110; nobody counts evenly to the last turn. */
	double shares = ratio(10);
	CHECK(shares > 3);
	real_time();
	printf("priorities: %d failed\n", failed);
	return failed ? 1 : 0;
}
