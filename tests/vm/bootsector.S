# SPDX-License-Identifier: GPL-2.0-only
#
# A guest of one sector. Through the firmware (INT 13h, extended functions 42h and 43h) it reads each of
# the BLOCKS blocks from block 1 on, flips bits in it, and writes it 2 * BLOCKS further on. Then it says
# "done" on the first serial port, or "error" at the first request that failed, and powers off.
        .set    BLOCKS, 512
        .set    BUFFER, 0x8000
        .set    PM1A_CNT, 0x604         # QEMU's q35 and pc
        .set    SLP_EN, 0x2000

        .code16
        .globl  _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        movb    %dl, drive
        movw    $BLOCKS, %cx
block:  pushw   %cx
        movb    $0x42, %ah
        call    disk
        movw    $BUFFER, %si
        movw    $256, %cx
flip:   xorw    $0x5a5a, (%si)
        addw    $2, %si
        loop    flip
        addl    $(2 * BLOCKS), lba
        movw    $0x4300, %ax            # without verification
        call    disk
        subl    $(2 * BLOCKS - 1), lba
        popw    %cx
        loop    block
        movw    $done, %si
        jmp     say

disk:   movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        jc      failed
        ret
failed: movw    $error, %si

say:    movw    $0x3f8, %dx
        lodsb
        testb   %al, %al
        jz      off
        outb    %al, %dx
        jmp     say
off:    movw    $PM1A_CNT, %dx
        movw    $SLP_EN, %ax
        outw    %ax, %dx
halt:   hlt
        jmp     halt

done:   .asciz  "done"
error:  .asciz  "error"
drive:  .byte   0
packet: .byte   16, 0
        .word   1
        .word   BUFFER, 0
lba:    .long   1, 0

        .org    510
        .word   0xaa55
