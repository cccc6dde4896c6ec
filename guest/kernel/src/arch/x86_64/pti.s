# Entry with page-table isolation: as trap.s, but ring 3 runs on tables that map nothing of the kernel but this file's section
# .entry.text, the descriptor tables, and the stacks that the CPU itself switches to (pti.rs).
#
# From ring 3 the CPU arrives on the entry stack, the end of the second page of its area, or on an IST stack. Here the kernel's tables are
# loaded, and the frame is moved to the task's kernel stack. On the way back it is moved to the entry stack, and the user's tables are
# loaded by code that both map. Traps of ring 0 change no tables, but for those that may come in this file between the two.

.set PTI_AREA, 0x40000              # percpu.rs: AREA_SIZE
.set PTI_KSTACK, 8                  # percpu.rs: PerCpu::kstack_top
.set PTI_KERNEL_CR3, 0x1100         # pti.rs: Words::kernel_cr3
.set PTI_USER_CR3, 0x1108           # pti.rs: Words::user_cr3
.set PTI_SCRATCH, 0x1110            # pti.rs: Words::scratch
.set PTI_STACK_TOP, 0x2000          # pti.rs: STACK_TOP
.set PTI_THREAD_SIZE, 0x4000        # memvisor_abi::THREAD_SIZE
.set PTI_THREAD_INFO, 0x3ff0        # percpu.rs: thread_info, whose first word is the area

.section .entry.text, "ax"
.balign 16
.globl pti_stubs
pti_stubs:
.set pti_vector, 0
.rept 256
    .balign 16
    .if !(pti_vector == 8 || (pti_vector >= 10 && pti_vector <= 14) || pti_vector == 17 || pti_vector == 21 || pti_vector == 29 || pti_vector == 30)
    pushq $0
    .endif
    pushq $pti_vector
    .if pti_vector == 2 || pti_vector == 8 || pti_vector == 14 || pti_vector == 18
    jmp pti_ist_entry
    .else
    jmp pti_entry
    .endif
    .set pti_vector, pti_vector + 1
.endr

# vector, error code, rip, cs, rflags, rsp, ss are on the stack.
.balign 16
pti_entry:
    testb $3, 24(%rsp)
    jz pti_trap_common
pti_from_user:
    pushq %rax
    pushq %rcx
    mov %rsp, %rax
    and $-PTI_AREA, %rax
    mov PTI_KERNEL_CR3(%rax), %rcx
    mov %rcx, %cr3
    mov PTI_KSTACK(%rax), %rax
    sub $72, %rax
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56, 64
    mov \offset(%rsp), %rcx
    mov %rcx, \offset(%rax)
    .endr
    mov %rax, %rsp
    popq %rcx
    popq %rax
    jmp pti_trap_common

# On an IST stack. One that interrupts ring 0 may find the user's tables: between arrival and the load of the kernel's, or behind the load
# of the user's. None of those returns.
.balign 16
pti_ist_entry:
    testb $3, 24(%rsp)
    jnz pti_from_user
    pushq %rax
    pushq %rcx
    mov %rsp, %rax
    and $-PTI_AREA, %rax
    mov %cr3, %rcx
    cmp PTI_USER_CR3(%rax), %rcx
    jne 1f
    mov PTI_KERNEL_CR3(%rax), %rcx
    mov %rcx, %cr3
1:  popq %rcx
    popq %rax
    jmp pti_trap_common

# syscall on hardware that enters ring 0: RCX = return address, R11 = flags, user stack and tables.
.balign 16
.globl pti_syscall_entry
pti_syscall_entry:
    swapgs
    mov %rsp, %gs:PTI_SCRATCH
    mov %gs:PTI_KERNEL_CR3, %rsp
    mov %rsp, %cr3
    mov %gs:PTI_KSTACK, %rsp
    pushq $0x1b                     # user data selector
    pushq %gs:PTI_SCRATCH
    swapgs
    pushq %r11
    pushq $0x23                     # user code selector
    pushq %rcx
    pushq $0
    pushq $256                      # trap.rs: VECTOR_SYSCALL
    jmp pti_trap_common

# rax = the CPU's area; on its entry stack are rcx, rax, rip, cs, rflags, rsp, ss.
.balign 16
pti_exit:
    mov PTI_USER_CR3(%rax), %rcx
    mov %rcx, %cr3
    popq %rcx
    popq %rax
    iretq

.text
.balign 16
pti_trap_common:
    call_trap_entry
pti_return:
    testb $3, 144(%rsp)
    jz trap_return
    restore_registers_but_rcx_rax
    # rcx, rax, vector, error code, rip, cs, rflags, rsp, ss are left, on the stack of a thread.
    mov %rsp, %rax
    and $-PTI_THREAD_SIZE, %rax
    mov PTI_THREAD_INFO(%rax), %rax
    .irp from, 0, 8
    mov \from(%rsp), %rcx
    mov %rcx, PTI_STACK_TOP - 56 + \from(%rax)
    .endr
    .irp from, 32, 40, 48, 56, 64
    mov \from(%rsp), %rcx
    mov %rcx, PTI_STACK_TOP - 72 + \from(%rax)
    .endr
    lea PTI_STACK_TOP - 56(%rax), %rsp
    jmp pti_exit

# void pti_enter_user(const TrapFrame *frame): as enter_user.
.globl pti_enter_user
pti_enter_user:
    mov %rdi, %rsp
    jmp pti_return
