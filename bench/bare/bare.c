/*
 * The least that starts the benchmark's guest: the KVM calls of `memvisor run`, one after the other,
 * and nothing else. No options, no threads, no devices but a serial port's data register.
 *
 * usage: bare KERNEL ADDRESS+LENGTH...
 * The ranges of RAM, in hexadecimal: one memory slot each.
 * KERNEL is an ELF file with one PT_LOAD segment whose entry is a PVH entry (32 bits, flat segments).
 * The guest ends by a write to port 0xf4.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4
#define MAX_CPUID 256

static int call(int fd, unsigned long request, const char *name, void *argument)
{
	int result = ioctl(fd, request, argument);
	if (result < 0)
		err(1, "%s", name);
	return result;
}
#define CALL(fd, request, argument) call(fd, request, #request, (void *)(uintptr_t)(argument))

/* One memfd, one shared mapping and one slot, as memvisor makes them. */
static uint8_t *add_slot(int vm, int slot, uint64_t gpa, uint64_t len)
{
	int fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, len) < 0)
		err(1, "memfd");
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		err(1, "seal");
	uint8_t *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		err(1, "mmap");
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = len, .userspace_addr = (uintptr_t)map,
	};
	CALL(vm, KVM_SET_USER_MEMORY_REGION, &region);
	return map;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		errx(2, "usage: bare KERNEL ADDRESS+LENGTH...");

	static uint8_t file[65536];
	int image = open(argv[1], O_RDONLY | O_CLOEXEC);
	ssize_t length = image < 0 ? -1 : read(image, file, sizeof file);
	if (length < (ssize_t)sizeof(Elf64_Ehdr))
		err(1, "%s", argv[1]);
	close(image);
	Elf64_Ehdr *header = (void *)file;
	Elf64_Phdr *load = (void *)(file + header->e_phoff);

	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	if (CALL(kvm, KVM_GET_API_VERSION, 0) != 12)
		errx(1, "KVM API version");
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[MAX_CPUID];
	} cpuid = { .head.nent = MAX_CPUID };
	CALL(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	int run_size = CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	int vm = CALL(kvm, KVM_CREATE_VM, 0);
	int loaded = 0;
	for (int slot = 0; slot < argc - 2; slot++) {
		char *plus;
		uint64_t gpa = strtoull(argv[slot + 2], &plus, 16);
		uint64_t len = *plus == '+' ? strtoull(plus + 1, NULL, 16) : 0;
		uint8_t *ram = add_slot(vm, slot, gpa, len);
		if (load->p_offset + load->p_filesz <= (uint64_t)length && load->p_paddr >= gpa &&
		    load->p_paddr - gpa + load->p_filesz <= len) {
			memcpy(ram + (load->p_paddr - gpa), file + load->p_offset, load->p_filesz);
			loaded = 1;
		}
	}
	if (!loaded)
		errx(1, "%s: no RAM for its segment", argv[1]);

	uint64_t identity = 0xfffbc000;
	CALL(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	CALL(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args[0] = 24 };
	CALL(vm, KVM_ENABLE_CAP, &split);

	int cpu = CALL(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of the vCPU");
	CALL(cpu, KVM_SET_CPUID2, &cpuid);
	struct kvm_sregs sregs;
	CALL(cpu, KVM_GET_SREGS, &sregs);
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_segment data = code;
	data.type = 3;
	data.selector = 0x18;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x11;
	CALL(cpu, KVM_SET_SREGS, &sregs);
	struct kvm_regs regs = { .rip = load->p_paddr + (header->e_entry - load->p_vaddr), .rflags = 2 };
	CALL(cpu, KVM_SET_REGS, &regs);

	for (;;) {
		CALL(cpu, KVM_RUN, 0);
		if (run->exit_reason != KVM_EXIT_IO)
			errx(1, "exit %u", run->exit_reason);
		if (run->io.port == DEBUG_EXIT)
			return 0;
		if (run->io.port == COM1 && write(1, (uint8_t *)run + run->io.data_offset, 1) != 1)
			err(1, "write");
	}
}
