// Loops over one system call or one kind of fault each, in the manner of will-it-scale: one process (or thread) for each CPU does the
// same thing again and again for a fixed time, and what it did is counted.
//
// It is the first process of an initramfs, statically linked, so that the same file runs on memvisor's guest and on any Linux.
// /loops.conf says what to do, in words: `ms=N` for the time of each loop, `faults=N` for N faults at once in place of all loops, and names of
// loops; without names all of them run. One line for each:
//
//     loop NAME cpus=N ops=OPERATIONS cycles=CYCLES
//
// with the operations of all processes, and the cycles of the time-stamp counter that they took: the mean, each
// process from its own begin to its own end. Time is read by RDTSC alone, which no kernel takes part in.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE 4096UL
// As will-it-scale's page_fault1, mmap1 and malloc1 have it.
#define BUFFER (128UL << 20)
#define CPUS_MAX 64

// What the processes of a loop share. A line each, so that nobody's counting disturbs another's.
struct line {
    _Atomic unsigned long ready, ops, cycles;
} __attribute__((aligned(128)));

static struct line *lines;
static int cpus;
static unsigned long duration;

static void die(const char *what) {
    perror(what);
    fflush(stdout);
    reboot(RB_POWER_OFF);
    _exit(1);
}

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) die("sched_setaffinity");
}

// Waits until all processes are there, and returns the begin.
static unsigned long begin(int number) {
    atomic_store(&lines[number].ready, 1);
    for (int i = 0; i < cpus; i++)
        while (!atomic_load(&lines[i].ready)) sched_yield();
    return __rdtsc();
}

static void report(int number, unsigned long ops, unsigned long start) {
    atomic_store(&lines[number].cycles, __rdtsc() - start);
    atomic_store(&lines[number].ops, ops);
}

// Repeats `body`, which is `count` operations, until the time is over. Once before it counts: what is only there from then on is
// not part of an operation, such as guest RAM that the host has to find first.
#define REPEAT(number, count, body)                      \
    do {                                                 \
        body;                                            \
        unsigned long ops_ = 0, start_ = begin(number);  \
        do {                                             \
            body;                                        \
            ops_ += (count);                             \
        } while (__rdtsc() - start_ < duration);         \
        report(number, ops_, start_);                    \
    } while (0)

// getppid: a system call that does nothing.
static void null_call(int number) {
    REPEAT(number, 16, for (int i = 0; i < 16; i++) syscall(SYS_getppid));
}

// Touch each page of anonymous memory, and unmap it: an operation is a page.
static void page_fault1(int number) {
    REPEAT(number, BUFFER / PAGE, {
        char *buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (buffer == MAP_FAILED) die("mmap");
        for (unsigned long at = 0; at < BUFFER; at += PAGE) ((volatile char *)buffer)[at] = 1;
        munmap(buffer, BUFFER);
    });
}

// Map and unmap without a touch.
static void mmap1(int number) {
    REPEAT(number, 1, {
        char *buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (buffer == MAP_FAILED) die("mmap");
        munmap(buffer, BUFFER);
    });
}

// The heap grows by a page and shrinks again: two operations.
static void brk1(int number) {
    char *heap = sbrk(0);
    REPEAT(number, 2, {
        if (brk(heap + PAGE) != 0) die("brk");
        if (brk(heap) != 0) die("brk");
    });
}

// malloc and free of a large block, which the library maps.
static void malloc1(int number) {
    REPEAT(number, 1, {
        void *block = malloc(BUFFER);
        if (!block) die("malloc");
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    });
}

// fork, exit, wait.
static void fork1(int number) {
    REPEAT(number, 1, {
        pid_t child = fork();
        if (child == 0) _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) != child) die("fork");
    });
}

static void handler(int signo) { (void)signo; }

// A signal to oneself, its handler, and the return from it.
static void signal1(int number) {
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGUSR1, &action, NULL);
    pid_t pid = getpid();
    REPEAT(number, 1, kill(pid, SIGUSR1));
}

// A byte to another process on the same CPU and back: two context switches.
static void context_switch(int number) {
    int to[2], from[2];
    char byte = 0;
    if (pipe(to) != 0 || pipe(from) != 0) die("pipe");
    pid_t child = fork();
    if (child == 0) {
        close(to[1]);
        close(from[0]);
        while (read(to[0], &byte, 1) == 1)
            if (write(from[1], &byte, 1) != 1) break;
        _exit(0);
    }
    close(to[0]);
    close(from[1]);
    REPEAT(number, 1, {
        if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1) die("ping");
    });
    close(to[1]);
    waitpid(child, NULL, 0);
}

static volatile char *touched;
static _Atomic int stop;

static void *toucher(void *argument) {
    pin((int)(long)argument);
    atomic_fetch_add(&lines[0].ready, 1);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) (void)*touched;
    return NULL;
}

// A page that threads on all CPUs read loses a right and gets it back: each time, every CPU's translation must go.
static void tlb_flush(int number) {
    if (number != 0) {
        report(number, 0, __rdtsc());
        return;
    }
    char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) die("mmap");
    *page = 1;
    touched = page;
    pthread_t threads[CPUS_MAX];
    for (int cpu = 1; cpu < cpus; cpu++)
        if (pthread_create(&threads[cpu], NULL, toucher, (void *)(long)cpu) != 0) die("pthread_create");
    while (atomic_load(&lines[0].ready) != (unsigned long)cpus - 1) sched_yield();
    unsigned long ops = 0, start = __rdtsc();
    do {
        if (mprotect(page, PAGE, PROT_READ) != 0) die("mprotect");
        if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0) die("mprotect");
        *page = 1;
        ops++;
    } while (__rdtsc() - start < duration);
    report(0, ops, start);
    atomic_store(&stop, 1);
    for (int cpu = 1; cpu < cpus; cpu++) pthread_join(threads[cpu], NULL);
}

static const struct {
    const char *name;
    void (*run)(int number);
    int one_process; // the others do nothing
} LOOPS[] = {
    {"null", null_call, 0},     {"page_fault1", page_fault1, 0},       {"mmap1", mmap1, 0},         {"brk1", brk1, 0},
    {"malloc1", malloc1, 0},    {"fork1", fork1, 0},                   {"tlb_flush", tlb_flush, 1}, {"signal", signal1, 0},
    {"pipe", context_switch, 0},
};
#define NR_LOOPS (sizeof LOOPS / sizeof LOOPS[0])

static void run(unsigned loop) {
    memset(lines, 0, CPUS_MAX * sizeof *lines);
    int processes = LOOPS[loop].one_process ? 1 : cpus;
    pid_t children[CPUS_MAX];
    for (int number = 0; number < processes; number++) {
        children[number] = fork();
        if (children[number] < 0) die("fork");
        if (children[number] == 0) {
            pin(number);
            LOOPS[loop].run(number);
            _exit(0);
        }
    }
    unsigned long ops = 0, cycles = 0;
    for (int number = 0; number < processes; number++) {
        int status;
        if (waitpid(children[number], &status, 0) != children[number] || status != 0) {
            printf("loop %s failed: status %#x\n", LOOPS[loop].name, status);
            return;
        }
        ops += atomic_load(&lines[number].ops);
        cycles += atomic_load(&lines[number].cycles);
    }
    printf("loop %s cpus=%d ops=%lu cycles=%lu\n", LOOPS[loop].name, cpus, ops, cycles / (unsigned long)processes);
    fflush(stdout);
}

// The cost of a demand fault: `count` of them, one after the other.
static void faults(unsigned long count) {
    char *buffer = mmap(NULL, count * PAGE + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) die("mmap");
    madvise(buffer, count * PAGE + PAGE, MADV_NOHUGEPAGE);
    // The VMA's first fault makes more than an entry.
    ((volatile char *)buffer)[0] = 1;
    unsigned long start = __rdtsc();
    for (unsigned long at = 1; at <= count; at++) ((volatile char *)buffer)[at * PAGE] = 1;
    printf("faults cpus=1 ops=%lu cycles=%llu\n", count, __rdtsc() - start);
    fflush(stdout);
}

// Cycles of a duration: QEMU and KVM give the host's counter, whose rate the host may have told, else 2 GHz are taken.
static unsigned long milliseconds(unsigned long ms, unsigned long khz) { return ms * (khz ? khz : 2000000); }

int main(void) {
    char words[1024] = "";
    int wanted[NR_LOOPS] = {0}, any = 0;
    unsigned long ms = 200, khz = 0, count = 0;
    int file = open("/loops.conf", O_RDONLY);
    if (file >= 0) {
        ssize_t len = read(file, words, sizeof words - 1);
        words[len > 0 ? len : 0] = 0;
        close(file);
    }
    for (char *word = strtok(words, " \n"); word; word = strtok(NULL, " \n")) {
        if (sscanf(word, "ms=%lu", &ms) == 1 || sscanf(word, "khz=%lu", &khz) == 1 || sscanf(word, "faults=%lu", &count) == 1)
            continue;
        unsigned loop = 0;
        while (loop < NR_LOOPS && strcmp(word, LOOPS[loop].name) != 0) loop++;
        if (loop == NR_LOOPS)
            printf("no loop is called %s\n", word);
        else
            wanted[loop] = any = 1;
    }
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) die("sched_getaffinity");
    cpus = CPU_COUNT(&set);
    if (cpus > CPUS_MAX) cpus = CPUS_MAX;
    duration = milliseconds(ms, khz);
    lines = mmap(NULL, CPUS_MAX * sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (lines == MAP_FAILED) die("mmap");
    if (count) {
        faults(count);
    } else {
        for (unsigned loop = 0; loop < NR_LOOPS; loop++)
            if (!any || wanted[loop]) run(loop);
    }
    printf("loops done\n");
    fflush(stdout);
    reboot(RB_POWER_OFF);
    return 0;
}
