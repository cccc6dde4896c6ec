# Switching stacks: between threads, and onto the interrupt stack.

.text
# void switch_stacks(u64 *save, u64 load): leaves this stack with its stack pointer in *save, and continues where
# the owner of the stack `load` left it. Callee-saved registers travel on the stacks.
.balign 16
.globl switch_stacks
switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret

# Where a new thread's first switch returns to: sched/thread.rs lays out its stack so.
.globl thread_start
thread_start:
    xor %ebp, %ebp
    call thread_main
    ud2

# void call_on_irq_stack(u64 arg, void (*f)(u64), u64 top): calls f on another stack and comes back.
.globl call_on_irq_stack
call_on_irq_stack:
    pushq %rbp
    mov %rsp, %rbp
    mov %rdx, %rsp
    call *%rsi
    mov %rbp, %rsp
    popq %rbp
    ret
