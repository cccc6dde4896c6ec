# The general registers of a TrapFrame (trap.rs), and the call of its handler: for trap.s and pti.s.

.macro restore_registers_but_rcx_rax
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx
    popq %\register
    .endr
.endm

.macro restore_registers
    restore_registers_but_rcx_rax
    popq %rcx
    popq %rax
.endm

# Vector and error code are on the stack, above what the CPU pushed.
.macro call_trap_entry
    cld
    .irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\register
    .endr
    mov %rsp, %rdi
    xor %ebp, %ebp
    call trap_entry
.endm
