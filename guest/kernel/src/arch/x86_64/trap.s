# Trap, interrupt and system-call entry.
#
# A stub of 16 bytes a vector pushes (error code,) vector and joins trap_common, which saves the
# general registers: the stack then holds a TrapFrame (trap.rs). The way back is iretq, and sysretq from most system calls.
# GS always holds the user's base: the kernel finds its per-CPU area through RSP (percpu.rs), and
# only syscall_entry borrows the kernel's GS base for two instructions, because it arrives on the
# user's stack.

.set PERCPU_SIZE, 0x40000           # percpu.rs: AREA_SIZE
.set PERCPU_KSTACK, 8               # percpu.rs: PerCpu::kstack_top
.set PERCPU_SCRATCH, 16             # percpu.rs: PerCpu::scratch

.text
.balign 16
.globl trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if vector == 14
    jmp page_fault_entry
    .else
    .if !(vector == 8 || (vector >= 10 && vector <= 13) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .endif
    .set vector, vector + 1
.endr

# #PF arrives on its own IST stack, so that a kernel with a broken stack can still report. A fault
# from ring 3 moves to the task's kernel stack, because its handler may fault in turn.
.balign 16
page_fault_entry:
    testb $3, 16(%rsp)
    jz 1f
    pushq %rax
    pushq %rcx
    mov %rsp, %rax
    and $-PERCPU_SIZE, %rax
    mov PERCPU_KSTACK(%rax), %rax
    sub $64, %rax
    mov 56(%rsp), %rcx              # ss
    mov %rcx, 56(%rax)
    mov 48(%rsp), %rcx              # rsp
    mov %rcx, 48(%rax)
    mov 40(%rsp), %rcx              # rflags
    mov %rcx, 40(%rax)
    mov 32(%rsp), %rcx              # cs
    mov %rcx, 32(%rax)
    mov 24(%rsp), %rcx              # rip
    mov %rcx, 24(%rax)
    mov 16(%rsp), %rcx              # error code
    mov %rcx, 16(%rax)
    mov 8(%rsp), %rcx               # rax
    mov %rcx, 8(%rax)
    mov (%rsp), %rcx
    mov %rax, %rsp
    mov 8(%rsp), %rax
    add $16, %rsp
1:  pushq $14

trap_common:
    call_trap_entry
    # A system call that goes on where `syscall` left ring 3 goes back by sysret (Linux: syscall_return_via_sysret): RCX and R11 are
    # RIP and RFLAGS, as they are after every call that does not change them. Above the lower half sysret would trap in ring 0; RF and TF it
    # does not restore as iret does.
    cmpq $256, 120(%rsp)            # vector
    jne trap_return
    mov 136(%rsp), %rcx             # rip
    cmp 104(%rsp), %rcx             # rcx
    jne trap_return
    mov 152(%rsp), %r11             # rflags
    cmp 32(%rsp), %r11              # r11
    jne trap_return
    test $0x10100, %r11             # RF, TF
    jnz trap_return
    mov %rcx, %rax
    shr $47, %rax
    jnz trap_return
    cmpq $0x23, 144(%rsp)           # cs
    jne trap_return
    cmpq $0x1b, 168(%rsp)           # ss
    jne trap_return
    restore_registers
    mov 40(%rsp), %rsp              # rsp
    sysretq
.globl trap_return
trap_return:
    restore_registers
    add $16, %rsp
    iretq

# syscall on hardware that enters ring 0: RCX = return address, R11 = flags, user stack.
.balign 16
.globl syscall_entry
syscall_entry:
    swapgs
    mov %rsp, %gs:PERCPU_SCRATCH
    mov %gs:PERCPU_KSTACK, %rsp
    pushq $0x1b                     # user data selector
    pushq %gs:PERCPU_SCRATCH
    swapgs
    pushq %r11
    pushq $0x23                     # user code selector
    pushq %rcx
    pushq $0
    pushq $256                      # trap.rs: VECTOR_SYSCALL
    jmp trap_common

# void enter_user(const TrapFrame *frame): continues in ring 3. The frame is on a kernel stack that begins anew with the next trap.
.globl enter_user
enter_user:
    mov %rdi, %rsp
    jmp trap_return

# void call_on_stack(u64 stack_top, void (*entry)(void)): never returns.
.globl call_on_stack
call_on_stack:
    mov %rdi, %rsp
    xor %ebp, %ebp
    call *%rsi
    ud2

# void halt_until_interrupt(void): interrupts are on while it halts, and off afterwards. trap.rs (skip_halt) knows what lies between.
.balign 16
.globl halt_until_interrupt, halt, halted
halt_until_interrupt:
    sti
halt:
    hlt
halted:
    cli
    ret

# void raise_interrupt(stub, u64 rip): what the CPU does for an interrupt that comes at `rip`, whatever IF says.
.globl raise_interrupt, raised
raise_interrupt:
    mov %rsp, %rax
    and $-16, %rsp
    pushq $0x10                     # kernel data selector
    pushq %rax
    pushfq
    pushq $0x08                     # kernel code selector
    pushq %rsi
    cli
    jmp *%rdi
raised:
    ret

# Accesses that may fault: trap.rs turns a fault at a probe into its recovery at probe_fault, and the
# function returns the vector number + 1 (0 = no fault).
.globl probe_start, probe_end, probe_fault
probe_start:
.globl probe_read
probe_read:                         # rdi = address
    mov (%rdi), %rcx
    xor %eax, %eax
    ret
.globl probe_write
probe_write:                        # rdi = address: writes back what it reads
    mov (%rdi), %cl
    mov %cl, (%rdi)
    xor %eax, %eax
    ret
.globl probe_exec
probe_exec:                         # rdi = address of a ret instruction
    call *%rdi
    xor %eax, %eax
    ret
.globl probe_cr4
probe_cr4:                          # rdi = new CR4
    mov %rdi, %cr4
    xor %eax, %eax
    ret
probe_end:
probe_fault:                        # rax = vector + 1, set by trap.rs
    ret
