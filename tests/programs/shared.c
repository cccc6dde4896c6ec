/* Shared memory as the C library makes it: shm_open, memfd_create with seals, and System V. Ends with 0 if all is right. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 3 * 4096 };

static int failed;

static void check(const char *what, int holds)
{
	if (!holds) {
		printf("shared: FAILED: %s (errno %d)\n", what, errno);
		failed++;
	}
}

/* Whether a child that runs f ends with 0. */
static int in_child(int (*f)(void *), void *argument)
{
	int status = 0;
	pid_t pid = fork();
	if (pid == 0)
		_exit(f(argument));
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static int opens(void *name)
{
	int fd = shm_open(name, O_RDWR, 0);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED || strcmp(at, "from the parent") != 0)
		return 1;
	strcpy(at + 4096, "from the child");
	return munmap(at, SIZE);
}

static void posix(void)
{
	char name[] = "/shared-by-name";
	shm_unlink(name);
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	check("shm_open", fd >= 0 && ftruncate(fd, SIZE) == 0);
	char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check("mmap of it", at != MAP_FAILED);
	strcpy(at, "from the parent");
	check("another process opens it", in_child(opens, name) && strcmp(at + 4096, "from the child") == 0);
	check("its name is taken", shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
	check("shm_unlink", shm_unlink(name) == 0 && shm_open(name, O_RDWR, 0) == -1 && errno == ENOENT);
	check("it lives on", strcmp(at + 4096, "from the child") == 0 && munmap(at, SIZE) == 0 && close(fd) == 0);
}

static void memfd(void)
{
	struct stat stat;
	int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	check("memfd_create", fd >= 0 && ftruncate(fd, SIZE) == 0);
	check("seals", fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	check("sealed sizes", ftruncate(fd, 0) == -1 && errno == EPERM && ftruncate(fd, 2 * SIZE) == -1);
	check("a hole", pwrite(fd, "x", 1, 4096) == 1 && fallocate(fd, 3, 4096, 4096) == 0);
	check("takes no memory", fstat(fd, &stat) == 0 && stat.st_blocks == 0 && stat.st_size == SIZE);
	check("no data", lseek(fd, 0, SEEK_DATA) == -1 && errno == ENXIO);
	check("all seals", fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0 &&
		fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	check("no writes", pwrite(fd, "x", 1, 0) == -1 && errno == EPERM);
	check("no writable mappings",
		mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
	close(fd);
}

static int writes(void *at)
{
	((volatile char *)at)[7] = 7;
	return 0;
}

static void system_v(void)
{
	struct shmid_ds ds;
	int id = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	char *at = shmat(id, NULL, 0);
	check("shmat", id >= 0 && at != (void *)-1);
	check("a child writes there", in_child(writes, at) && at[7] == 7);
	check("one attachment", shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1 && ds.shm_segsz == SIZE);
	check("its process", ds.shm_cpid == getpid() && ds.shm_atime != 0);
	check("removed while attached", shmctl(id, IPC_RMID, NULL) == 0 && at[7] == 7);
	check("until it is detached", shmdt(at) == 0 && shmctl(id, IPC_STAT, &ds) == -1 && errno == EINVAL);
}

int main(void)
{
	posix();
	memfd();
	system_v();
	printf("shared: %d failed\n", failed);
	return failed != 0;
}
