# Entry from the boot loader, by PVH or by the Linux 64-bit protocol, up to Rust's start_kernel.
#
# Both paths decide the paging depth first: 5 levels if CPUID offers LA57 and the command line does
# not say "no5lvl" (Linux: arch/x86/boot/startup/la57toggle.S). They build early page tables: the
# low 4 GiB identity-mapped and at PAGE_OFFSET, and the image at its link address, all with 2 MiB
# pages. The final tables (mm/paging.rs) replace them.
#
# Register plan, 32 and 64 bit: bp = physical base of the image, si = boot information (low 4 GiB),
# bx = protocol (1 Linux, 2 PVH: abi BootProtocol). Everything before `high` runs at its physical
# address and names symbols only relative to the instruction pointer.

.set PTE_TABLE, 0x3                 # present, writable
.set PTE_LARGE, 0x83                # present, writable, 2 MiB
.set LINK_BASE, 0xffffffff81000000
.set CR4_PAE, 1 << 5
.set CR4_LA57, 1 << 12
.set MSR_EFER, 0xc0000080

# ZF clear if the string at \reg contains "no5lvl". Spoils \reg.
.macro find_no5lvl reg
    test \reg, \reg
    jz 9f
8:  cmpb $0, (\reg)
    je 9f
    inc \reg
    cmpl $0x6c356f6e, -1(\reg)      # "no5l"
    jne 8b
    cmpw $0x6c76, 3(\reg)           # "vl"
    jne 8b
    test \reg, \reg
9:
.endm

# ZF clear if the CPU offers LA57. Spoils eax, ecx, edx and keeps ebx in \save.
.macro cpu_has_la57 save
    mov %ebx, \save
    xor %eax, %eax
    cpuid
    cmp $7, %eax
    mov $0, %eax
    jb 9f
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    mov %ecx, %eax
    and $(1 << 16), %eax
9:  mov \save, %ebx
    test %eax, %eax
.endm

# Fills the early tables. \b holds the image's base, \d is scratch, both of the mode's width;
# spoils eax, ecx.
.macro build_tables b, d
    # low 4 GiB: four tables of 2 MiB pages
    lea early_pmd - _start(\b), \d
    mov $PTE_LARGE, %eax
    mov $2048, %ecx
1:  movl %eax, (\d)
    add $0x200000, %eax
    add $8, \d
    dec %ecx
    jnz 1b
    lea early_pud - _start(\b), \d
    lea early_pmd - _start + PTE_TABLE(\b), %eax
    movl %eax, (\d)
    add $4096, %eax
    movl %eax, 8(\d)
    add $4096, %eax
    movl %eax, 16(\d)
    add $4096, %eax
    movl %eax, 24(\d)
    # the image at its link address: 64 MiB from its base
    lea early_pmd_kernel - _start + 8 * 8(\b), \d
    lea PTE_LARGE(\b), %eax
    mov $32, %ecx
1:  movl %eax, (\d)
    add $0x200000, %eax
    add $8, \d
    dec %ecx
    jnz 1b
    lea early_pmd_kernel - _start + PTE_TABLE(\b), %eax
    movl %eax, early_pud_kernel - _start + 510 * 8(\b)
    # 4 levels: identity in slot 0, PAGE_OFFSET in slot 273, the image in slot 511
    lea early_top4 - _start(\b), \d
    lea early_pud - _start + PTE_TABLE(\b), %eax
    movl %eax, (\d)
    movl %eax, 273 * 8(\d)
    lea early_pud_kernel - _start + PTE_TABLE(\b), %eax
    movl %eax, 511 * 8(\d)
    # 5 levels: the 4-level table under the same three purposes
    lea early_top5 - _start(\b), \d
    lea early_top4 - _start + PTE_TABLE(\b), %eax
    movl %eax, (\d)
    movl %eax, 273 * 8(\d)
    movl %eax, 511 * 8(\d)
.endm

.section .boot.text, "ax"
.globl _start
_start:

# ---- PVH: 32-bit protected mode, paging off, EBX = start_info --------------------------------
.code32
.globl pvh_start32
pvh_start32:
    cli
    cld
    # PVH promises no stack: borrow start_info's version field for one return address.
    mov 4(%ebx), %eax
    lea 8(%ebx), %esp
    call 1f
1:  pop %ebp
    sub $(1b - _start), %ebp
    mov %eax, 4(%ebx)
    mov %ebx, %esi
    lea boot_stack_top - _start(%ebp), %esp
    mov $2, %ebx
    mov 24(%esi), %edi              # start_info.cmdline_paddr
    find_no5lvl %edi
    mov $0, %edi
    jnz enter_long_mode
    cpu_has_la57 %edi
    mov $0, %edi
    jz enter_long_mode
    mov $CR4_LA57, %edi

# EDI = CR4_LA57 or 0: builds the tables and enters long mode with that depth.
enter_long_mode:
    push %edi
    build_tables %ebp, %edi
    pop %edi
    mov $CR4_PAE, %eax
    or %edi, %eax
    mov %eax, %cr4
    lea early_top4 - _start(%ebp), %eax
    test %edi, %edi
    jz 1f
    lea early_top5 - _start(%ebp), %eax
1:  mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $0x900, %eax                 # NXE, LME
    wrmsr
    lea boot_gdt - _start(%ebp), %eax
    lea boot_gdtr - _start(%ebp), %ecx
    mov %eax, 2(%ecx)
    lgdt (%ecx)
    push $8
    lea long_mode - _start(%ebp), %eax
    push %eax
    mov $0x80010033, %eax           # PG WP NE ET MP PE
    mov %eax, %cr0
    lret

# ---- Linux 64-bit protocol: long mode, RSI = boot_params -----------------------------------------
.code64
.globl startup_64
startup_64:
    cli
    cld
    lea _start(%rip), %rbp
    lea boot_stack_top(%rip), %rsp
    mov $1, %ebx
    mov 0x228(%rsi), %edi           # hdr.cmd_line_ptr
    find_no5lvl %rdi
    mov $0, %edi
    jnz 2f
    cpu_has_la57 %edi
    mov $0, %edi
    jz 2f
    mov $CR4_LA57, %edi
2:  mov %cr4, %rax
    xor %edi, %eax
    test $CR4_LA57, %eax
    jnz change_depth
    push %rdi
    build_tables %rbp, %rdi
    pop %rdi
    lea early_top4(%rip), %rax
    test %edi, %edi
    jz 3f
    lea early_top5(%rip), %rax
3:  mov %rax, %cr3
    jmp long_mode

# The depth can change only with paging off, which needs 32-bit code.
change_depth:
    lea boot_gdt(%rip), %rax
    mov %rax, boot_gdtr + 2(%rip)
    lgdt boot_gdtr(%rip)
    push $0x18
    lea leave_long_mode(%rip), %rax
    push %rax
    lretq
.code32
leave_long_mode:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $MSR_EFER, %ecx
    rdmsr
    and $0xfffffeff, %eax
    wrmsr
    jmp enter_long_mode

.code64
long_mode:
    lea boot_gdt(%rip), %rax
    mov %rax, boot_gdtr + 2(%rip)
    lgdt boot_gdtr(%rip)
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $MSR_EFER, %ecx             # a loader that entered in long mode need not have set NXE
    rdmsr
    or $0x800, %eax
    wrmsr
    movabs $LINK_BASE, %r8
    lea high(%rip), %rax
    sub %rbp, %rax
    add %r8, %rax
    jmp *%rax
high:
    lea boot_stack_top(%rip), %rsp
    push $8
    lea 1f(%rip), %rax
    push %rax
    lretq
1:  # R_X86_64_RELATIVE only: the word at r_offset becomes the addend.
    lea __rela_start(%rip), %rax
    lea __rela_end(%rip), %rcx
2:  cmp %rcx, %rax
    jae 3f
    mov (%rax), %rdx
    mov 16(%rax), %r8
    mov %r8, (%rdx)
    add $24, %rax
    jmp 2b
3:  mov %ebx, %edi
    mov %esi, %esi
    mov %rbp, %rdx
    xor %ebp, %ebp
    call start_kernel
    ud2

# ---- Application processors: real mode at a page below 1 MiB, copied there by smp.rs ---------------
# The page is mapped read-only, so the code uses no stack before its CPU's own, and the descriptors
# carry the accessed bit.
.code16
.globl ap_trampoline
ap_trampoline:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    xor %ebx, %ebx
    mov %ax, %bx
    shl $4, %ebx
    lgdtl ap_gdt - ap_trampoline
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    .byte 0x66, 0xea                # far jump to 0x18:ap_protected; smp.rs adds the page's address
.globl ap_jump
ap_jump:
    .long ap_protected - ap_trampoline
    .word 0x18
.code32
ap_protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov ap_cr4 - ap_trampoline(%ebx), %eax
    mov %eax, %cr4
    mov ap_cr3 - ap_trampoline(%ebx), %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $0x900, %eax
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
    ljmp *ap_long_pointer - ap_trampoline(%ebx)
.code64
ap_long:
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov ap_stack - ap_trampoline(%rbx), %rsp
    mov ap_cpu - ap_trampoline(%rbx), %rdi
    xor %ebp, %ebp
    mov ap_entry - ap_trampoline(%rbx), %rax
    call *%rax
    ud2
    .balign 8
ap_gdt:                             # the null descriptor doubles as the GDT pointer
    .word 31
.globl ap_gdt_base
ap_gdt_base:
    .long ap_gdt - ap_trampoline    # smp.rs adds the page's address
    .word 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
.globl ap_long_pointer
ap_long_pointer:
    .long ap_long - ap_trampoline   # smp.rs adds the page's address
    .word 8, 0
.globl ap_cr3, ap_cr4, ap_stack, ap_cpu, ap_entry, ap_trampoline_end
ap_cr3:   .quad 0
ap_cr4:   .quad 0
ap_stack: .quad 0
ap_cpu:   .quad 0
ap_entry: .quad 0
ap_trampoline_end:

.section .data
    .balign 16
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: 64-bit code
    .quad 0x00cf93000000ffff        # 0x10: data
    .quad 0x00cf9b000000ffff        # 0x18: 32-bit code
boot_gdtr:
    .word 31
    .quad 0                         # written when the base is known

.section .boot.bss, "aw", @nobits
    .balign 4096
early_top5:       .skip 4096
early_top4:       .skip 4096
early_pud:        .skip 4096
early_pmd:        .skip 4096 * 4
early_pud_kernel: .skip 4096
early_pmd_kernel: .skip 4096
boot_stack:       .skip 16384
boot_stack_top:
.text
