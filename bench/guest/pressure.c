// Programs that want more memory than there is, each for itself: what it takes a kernel to give pages, take them back, write and read them.
//
// It is the first process of an initramfs, statically linked, so that the same file runs on memvisor's guest and on any Linux. The machine has two
// disks: /dev/vda with an empty ext2, /dev/vdb with a swap area. /disk/*.ko, in the order of /disk/order, are loaded first if they are there.
// /pressure.conf says what to do, in words: `khz=N` for the rate of the time-stamp counter, and names of rows; without names all of them run. A line each:
//
//     row NAME ops=OPERATIONS cycles=CYCLES refaults=PAGES swapins=PAGES swapouts=PAGES
//
// Every page is checked when it is read again; a wrong one ends the run.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE 4096UL
#define BLOCK (64UL << 10)
#define FILE_NAME "/mnt/data"
#define SWAP "/dev/vdb"

static unsigned long ram; // pages that the kernel manages
static unsigned long khz = 2000000;

static void end(void) {
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    _exit(1);
}

static void die(const char *what) {
    perror(what);
    end();
}

// What page `number` holds in its first and last words.
static uint64_t stamp(uint64_t number) { return (number + 1) * 0x9e3779b97f4a7c15u; }

static void write_page(volatile char *page, uint64_t number) {
    *(volatile uint64_t *)page = stamp(number);
    *(volatile uint64_t *)(page + PAGE - 8) = ~stamp(number);
}

static void check_page(const volatile char *page, uint64_t number) {
    if (*(const volatile uint64_t *)page == stamp(number) && *(const volatile uint64_t *)(page + PAGE - 8) == ~stamp(number)) return;
    printf("page %lu holds %#lx, not %#lx\n", number, *(const volatile uint64_t *)page, stamp(number));
    end();
}

// A number of /proc/vmstat; a name that ends with * means all that begin so.
static unsigned long vmstat(const char *name) {
    char line[128];
    unsigned long sum = 0;
    size_t len = strlen(name);
    int prefix = name[len - 1] == '*';
    FILE *file = fopen("/proc/vmstat", "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        char *space = strchr(line, ' ');
        if (!space) continue;
        *space = 0;
        if (prefix ? strncmp(line, name, len - 1) == 0 : strcmp(line, name) == 0) sum += strtoul(space + 1, NULL, 10);
    }
    fclose(file);
    return sum;
}

struct counts {
    unsigned long refaults, swapins, swapouts;
};

static struct counts counts(void) {
    return (struct counts){vmstat("workingset_refault*"), vmstat("pswpin"), vmstat("pswpout")};
}

static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    if (file < 0) return;
    if (write(file, text, strlen(text)) < 0) perror(path);
    close(file);
}

static void drop_caches(void) {
    sync();
    put("/proc/sys/vm/drop_caches", "3");
}

static unsigned long begin_cycles;
static struct counts begin_counts;

static void begin(void) {
    begin_counts = counts();
    begin_cycles = __rdtsc();
}

static void row_of(const char *name, unsigned long ops, unsigned long cycles) {
    struct counts now = counts();
    printf("row %s ops=%lu cycles=%lu refaults=%lu swapins=%lu swapouts=%lu\n", name, ops, cycles, now.refaults - begin_counts.refaults,
           now.swapins - begin_counts.swapins, now.swapouts - begin_counts.swapouts);
    fflush(stdout);
}

static void row(const char *name, unsigned long ops) { row_of(name, ops, __rdtsc() - begin_cycles); }

static char *anonymous(unsigned long pages) {
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
    return memory;
}

// The page after `index` in an order without pattern that comes to each page once: a congruential generator over the next power of two, whose
// period is full since the factor is 1 modulo 4 and the increment odd; what lies behind the pages is passed over.
static unsigned long shuffled(unsigned long index, unsigned long pages) {
    unsigned long mask = 1;
    while (mask < pages) mask <<= 1;
    mask -= 1;
    do index = (index * 0x9e3779b1 + 0x7f4a7c15) & mask;
    while (index >= pages);
    return index;
}

// Anonymous memory of `tenths` tenths of RAM, written once and read once.
static void touch(const char *name, unsigned long tenths, int random) {
    unsigned long pages = ram * tenths / 10;
    char *memory = anonymous(pages);
    begin();
    unsigned long at = random ? shuffled(0, pages) : 0;
    for (unsigned long i = 0; i < pages; i++) {
        write_page(memory + at * PAGE, at);
        at = random ? shuffled(at, pages) : at + 1;
    }
    at = random ? shuffled(0, pages) : 0;
    for (unsigned long i = 0; i < pages; i++) {
        check_page(memory + at * PAGE, at);
        at = random ? shuffled(at, pages) : at + 1;
    }
    row(name, 2 * pages);
    munmap(memory, pages * PAGE);
}

static unsigned long make_file(unsigned long tenths) {
    static char block[BLOCK];
    unsigned long pages = ram * tenths / 10;
    int file = open(FILE_NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0) die(FILE_NAME);
    for (unsigned long at = 0; at < pages; at += BLOCK / PAGE) {
        for (unsigned long i = 0; i < BLOCK / PAGE; i++) write_page(block + i * PAGE, at + i);
        if (write(file, block, BLOCK) != BLOCK) die("write");
    }
    if (fsync(file) != 0) die("fsync");
    close(file);
    return (pages + BLOCK / PAGE - 1) / (BLOCK / PAGE) * (BLOCK / PAGE);
}

// A file of `tenths` tenths of RAM, read twice.
static void file_read(const char *name, unsigned long tenths) {
    static char block[BLOCK];
    unsigned long pages = make_file(tenths);
    drop_caches();
    begin();
    for (int pass = 0; pass < 2; pass++) {
        int file = open(FILE_NAME, O_RDONLY);
        if (file < 0) die(FILE_NAME);
        for (unsigned long at = 0; at < pages; at += BLOCK / PAGE) {
            if (read(file, block, BLOCK) != BLOCK) die("read");
            for (unsigned long i = 0; i < BLOCK / PAGE; i++) check_page(block + i * PAGE, at + i);
        }
        close(file);
    }
    row(name, 2 * pages);
    unlink(FILE_NAME);
}

// The same through a mapping.
static void mmap_read(const char *name, unsigned long tenths) {
    unsigned long pages = make_file(tenths);
    drop_caches();
    int file = open(FILE_NAME, O_RDONLY);
    char *memory = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) die("mmap of a file");
    begin();
    for (int pass = 0; pass < 2; pass++)
        for (unsigned long at = 0; at < pages; at++) check_page(memory + at * PAGE, at);
    row(name, 2 * pages);
    munmap(memory, pages * PAGE);
    close(file);
    unlink(FILE_NAME);
}

// As much as RAM written to a file, and on the disk at the end.
static void dirty_write(const char *name) {
    begin();
    unsigned long pages = make_file(10);
    row(name, pages);
    unlink(FILE_NAME);
}

struct progress {
    _Atomic unsigned long cycles, pages;
};

// A process without swap takes page after page until it is killed: the time from its last page to the moment at which half of RAM is free again.
static void oom(const char *name) {
    struct progress *progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct sysinfo info;
    int status;
    swapoff(SWAP);
    drop_caches();
    begin();
    pid_t child = fork();
    if (child == 0) {
        unsigned long pages = 4 * ram;
        char *memory = anonymous(pages);
        put("/proc/self/oom_score_adj", "1000");
        for (unsigned long at = 0; at < pages; at++) {
            write_page(memory + at * PAGE, at);
            atomic_store(&progress->pages, at);
            atomic_store(&progress->cycles, __rdtsc());
        }
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) die("fork");
    do
        if (sysinfo(&info) != 0) die("sysinfo");
    while (info.freeram * info.mem_unit / PAGE < ram / 2);
    unsigned long cycles = __rdtsc() - atomic_load(&progress->cycles);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
        printf("%s: the process was not killed: status %#x after %lu pages\n", name, status, atomic_load(&progress->pages));
        end();
    }
    row_of(name, 1, cycles);
    if (swapon(SWAP, 0) != 0) die("swapon");
}

// Free blocks of 2 MiB and more, in blocks of 2 MiB.
static unsigned long large_blocks(void) {
    char line[512];
    unsigned long sum = 0;
    FILE *file = fopen("/proc/buddyinfo", "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        char *at = strstr(line, "zone");
        if (!at || !(at = strchr(at + 5, ' '))) continue;
        while (*at == ' ') at++;
        while (*at && *at != ' ') at++;
        for (int order = 0; order <= 10; order++) {
            unsigned long blocks = strtoul(at, &at, 10);
            if (order >= 9) sum += blocks << (order - 9);
        }
    }
    fclose(file);
    return sum;
}

// Memory is aged until its free pages lie scattered, then compacted: how many blocks of 2 MiB there are. The fewer cycles a block, the better.
static void order9(const char *name) {
    unsigned long pages = ram * 8 / 10;
    char *memory = anonymous(pages);
    for (unsigned long at = 0; at < pages; at++) write_page(memory + at * PAGE, at);
    // Three of four go, each by itself.
    for (unsigned long at = 0; at < pages; at++)
        if (at % 4 != 0) madvise(memory + at * PAGE, PAGE, MADV_DONTNEED);
    begin();
    put("/proc/sys/vm/compact_memory", "1");
    unsigned long cycles = __rdtsc() - begin_cycles, blocks = large_blocks();
    for (unsigned long at = 0; at < pages; at += 4) check_page(memory + at * PAGE, at);
    row_of(name, blocks, cycles);
    munmap(memory, pages * PAGE);
}

// A process of 64 MiB forks while another holds nearly all of RAM; the child writes to an eighth of it.
static void fork_pressure(const char *name) {
    unsigned long pages = 64UL << 20 >> 12, held = ram * 8 / 10;
    char *memory = anonymous(pages);
    for (unsigned long at = 0; at < pages; at++) write_page(memory + at * PAGE, at);
    int ready[2];
    char byte = 0;
    if (pipe(ready) != 0) die("pipe");
    pid_t holder = fork();
    if (holder == 0) {
        char *all = anonymous(held);
        for (unsigned long at = 0; at < held; at++) write_page(all + at * PAGE, at);
        if (write(ready[1], &byte, 1) != 1) die("write");
        pause();
        _exit(0);
    }
    if (holder < 0 || read(ready[0], &byte, 1) != 1) die("fork");
    begin();
    for (int round = 0; round < 10; round++) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            for (unsigned long at = 0; at < pages; at += 8) write_page(memory + at * PAGE, at);
            _exit(0);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) die("fork under pressure");
    }
    row(name, 10);
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
    for (unsigned long at = 0; at < pages; at++) check_page(memory + at * PAGE, at);
    munmap(memory, pages * PAGE);
    close(ready[0]);
    close(ready[1]);
}

static void touch_seq_10(const char *name) { touch(name, 10, 0); }
static void touch_seq_13(const char *name) { touch(name, 13, 0); }
static void touch_seq_20(const char *name) { touch(name, 20, 0); }
static void touch_random_10(const char *name) { touch(name, 10, 1); }
static void touch_random_13(const char *name) { touch(name, 13, 1); }
static void touch_random_20(const char *name) { touch(name, 20, 1); }
static void file_read_05(const char *name) { file_read(name, 5); }
static void file_read_20(const char *name) { file_read(name, 20); }
static void mmap_read_05(const char *name) { mmap_read(name, 5); }
static void mmap_read_20(const char *name) { mmap_read(name, 20); }

static const struct {
    const char *name;
    void (*run)(const char *name);
} ROWS[] = {
    {"touch-seq-1.0", touch_seq_10},       {"touch-seq-1.3", touch_seq_13},       {"touch-seq-2.0", touch_seq_20},
    {"touch-random-1.0", touch_random_10}, {"touch-random-1.3", touch_random_13}, {"touch-random-2.0", touch_random_20},
    {"file-read-0.5", file_read_05},       {"file-read-2.0", file_read_20},       {"mmap-read-0.5", mmap_read_05},
    {"mmap-read-2.0", mmap_read_20},       {"dirty-write", dirty_write},          {"oom", oom},
    {"order-9", order9},                   {"fork-pressure", fork_pressure},
};
#define NR_ROWS (sizeof ROWS / sizeof ROWS[0])

static void load_modules(void) {
    char name[64], path[128];
    FILE *order = fopen("/disk/order", "r");
    if (!order) return;
    while (fgets(name, sizeof name, order)) {
        name[strcspn(name, "\n")] = 0;
        snprintf(path, sizeof path, "/disk/%s.ko", name);
        int file = open(path, O_RDONLY);
        if (file < 0 || syscall(SYS_finit_module, file, "", 0) != 0) perror(path);
        close(file);
    }
    fclose(order);
}

int main(void) {
    char words[1024] = "";
    int wanted[NR_ROWS] = {0}, any = 0;
    // What is there already is not made again.
    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mkdir("/mnt", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    load_modules();
    if (access("/dev/vda", F_OK) != 0) mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int file = open("/pressure.conf", O_RDONLY);
    if (file >= 0) {
        ssize_t len = read(file, words, sizeof words - 1);
        words[len > 0 ? len : 0] = 0;
        close(file);
    }
    for (char *word = strtok(words, " \n"); word; word = strtok(NULL, " \n")) {
        if (sscanf(word, "khz=%lu", &khz) == 1) continue;
        unsigned found = 0;
        while (found < NR_ROWS && strcmp(word, ROWS[found].name) != 0) found++;
        if (found == NR_ROWS)
            printf("no row is called %s\n", word);
        else
            wanted[found] = any = 1;
    }
    // The driver finds its disks some time after it was loaded.
    for (int tries = 0; access(SWAP, F_OK) != 0 && tries < 500; tries++) usleep(10000);
    if (mount("/dev/vda", "/mnt", "ext2", 0, NULL) != 0) die("mount /dev/vda");
    if (swapon(SWAP, 0) != 0) die("swapon " SWAP);
    struct sysinfo info;
    if (sysinfo(&info) != 0) die("sysinfo");
    ram = info.totalram * info.mem_unit / PAGE;
    printf("machine ram=%lu swap=%lu\n", ram, info.totalswap * info.mem_unit / PAGE);
    fflush(stdout);
    for (unsigned number = 0; number < NR_ROWS; number++)
        if (!any || wanted[number]) ROWS[number].run(ROWS[number].name);
    umount("/mnt");
    printf("pressure done\n");
    fflush(stdout);
    reboot(RB_POWER_OFF);
    return 0;
}
